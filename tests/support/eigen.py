"""What must hold of directions that keys and queries share, and of how many of them there are."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kvbench.bench import source_of
from kvbench.cache.codecs import eigen
from kvbench.cache.codecs.basis import Basis
from kvbench.cache.codecs.eigen import EigenAttention
from kvbench.cache.codecs.moments import blocks, find, main_directions
from kvbench.cache.rotary import turn, turned_back
from kvbench.calibration import watching
from kvbench.configuration import check, compose
from kvbench.models.view import view_of
from kvbench.runner import job_of
from tests.support.checks import NEW, uniform
from tests.support.coordinates import EXACT_LATENT
from tests.support.measured import SOURCE
from tests.support.models import attention, model
from tests.support.moments import asked, where
from tests.support.palu import hidden_states
from tests.support.smoothing import embedded
from tests.support.strategies import composed


def rule_of(*overrides: str) -> EigenAttention:
    """Return Eigen Attention with the moments of the tests' models."""
    made = composed("eigen_attention", where(), *overrides).codec
    assert isinstance(made, EigenAttention)
    return made


def directions_of(basis: Basis) -> Tensor:
    """Return directions in float64 [G, D, r]."""
    assert basis.directions is not None
    return basis.directions[:, 0].double()


def directions_are_those_of_stacked_rows(model_name: str) -> None:
    """They are orthonormal, and what lies along them is what an SVD of stacked keys and queries keeps, or of values."""
    made, rule = model(model_name), rule_of("codec.kept=0.6")
    view, states = view_of(made), hidden_states(made)
    with asked(made) as queries:
        for window in SOURCE.windows(4, 40):
            made(torch.tensor([window]), use_cache=False)
    for layer, inputs in enumerate(states):
        shape = view.layers[layer]
        keys, values = rule.bases(view, layer)
        assert shape.key_projection is not None
        assert shape.value_projection is not None
        asking = torch.cat(queries[layer]).unflatten(1, (shape.kv_heads, -1))  # [N, G, H / G, D]
        share = asking.shape[2]
        for head in range(shape.kv_heads):
            of_keys = inputs @ shape.key_projection.weight[head].mT
            of_values = inputs @ shape.value_projection.weight[head].mT
            stacked = torch.cat([of_keys, asking[:, head].flatten(0, 1) / share**0.5])
            for basis, rows in ((keys, stacked), (values, of_values)):
                mine, rank = directions_of(basis)[head], basis.rank
                assert 0 < rank < shape.key_dim
                torch.testing.assert_close(mine.mT @ mine, torch.eye(rank).double(), rtol=0, atol=1e-6)
                left, squares, right = torch.linalg.svd(rows.double(), full_matrices=False)
                best = (left[:, :rank] * squares[:rank]) @ right[:rank]
                torch.testing.assert_close(rows @ mine @ mine.mT, best, rtol=0, atol=1e-4 * float(rows.abs().max()))


def ranks_are_those_of_one_share() -> None:
    """No threshold that leaves as few directions is higher than the least share kept, and all sides reach it."""
    view = embedded().view
    moments = find("", view)
    assert moments is not None
    sizes = [32] * (2 * len(view.layers))
    squares = [main_directions(each)[0] for each in eigen._moments(moments, sizes)]
    for kept in (0.25, 0.5, 0.6, 0.9):
        rule = composed("eigen_attention", f"codec.kept={kept}").codec
        assert isinstance(rule, EigenAttention)
        ranks = [basis.rank for layer in range(len(view.layers)) for basis in rule.bases(view, layer)]
        assert sum(ranks) == round(kept * sum(sizes))
        by_threshold: dict[float, list[int]] = {}
        for each in squares:
            for threshold in (each.cumsum(1) / each.sum(1, keepdim=True)).flatten().tolist():
                by_threshold[threshold] = [least_rank(side, threshold) for side in squares]
        best = max(threshold for threshold, made in by_threshold.items() if sum(made) <= sum(ranks))
        assert all(got >= least for got, least in zip(ranks, by_threshold[best], strict=True))
        assert len(set(ranks)) > 2, "all sides keep the same: the comparison proves nothing"


def least_rank(squares: Tensor, threshold: float) -> int:
    """Return how many directions each head needs for a share of its squares [G, D]."""
    least = (squares.cumsum(1) / squares.sum(1, keepdim=True)).amin(0)
    return min(1 + int((least < threshold - 1e-12).sum()), squares.shape[1])


def queries_help() -> None:
    """On held-out text outputs of attention are less off than with as many directions of the keys alone."""
    loaded, moments = embedded(), find("", embedded().view)
    rule = composed("eigen_attention", "codec.kept=0.8").codec
    assert isinstance(rule, EigenAttention)
    assert moments is not None
    shared, alone = [], []
    for layer, keys in enumerate(moments.keys):
        basis, _ = rule.bases(loaded.view, layer)
        own = main_directions(blocks(keys, 32))[1][:, None, :, : basis.rank]
        shared.append(basis)
        alone.append(replace(basis, directions=own.float()))
    lost = torch.zeros(2, len(shared))

    def watch(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int) -> None:
        right = watching.attend(query, key, value, scale, window)
        position = torch.arange(key.shape[2])[None, None]
        for at, bases in enumerate((shared, alone)):
            basis = bases[layer]
            bare = basis.entries(basis.coordinates(turned_back(key, position, basis.rotary)))
            assert basis.rotary is not None
            got = watching.attend(query, turn(bare, position, basis.rotary), value, scale, window)
            lost[at, layer] += (got - right).square().sum() / right.square().sum()

    source = source_of(job_of(check(compose(["model=tiny", "model.device=cpu"]))), loaded)
    with torch.no_grad(), attention(loaded.model, watching.ATTENTION):  # type: ignore[arg-type]
        for ids in source.windows(8, 256):
            watching.forward(loaded.model, torch.tensor([ids]), watch)
    assert 0 < lost[0].sum() < 0.9 * lost[1].sum(), lost
    assert int((lost[0] < lost[1]).sum()) >= 3, lost


def latents_take_what_their_ranks_say() -> None:
    """A slot takes a number for each direction of each head, and the directions are held once."""
    view = view_of(model("llama_gqa"))
    rule, strategy = (
        rule_of("codec.kept=0.6", EXACT_LATENT),
        composed("eigen_attention", where(), "codec.kept=0.6", EXACT_LATENT),
    )
    ranks = [basis.rank for layer in range(2) for basis in rule.bases(view, layer)]
    heads, dim, slots = view.layers[0].kv_heads, view.layers[0].key_dim, 24 + NEW
    assert sum(ranks) == round(0.6 * 4 * dim)
    numbers = sum(heads * rank * (dim + slots) for rank in ranks)
    assert strategy.allocated_bytes(view, uniform()) == 8 * numbers + 2 * 4 * slots
