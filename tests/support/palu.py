"""What must hold of directions that keys and values are measured to lie along, and of scales of keys."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.bench import source_of
from kvbench.cache.codecs import palu
from kvbench.cache.codecs.moments import blocks, find
from kvbench.cache.codecs.palu import Palu, allotted
from kvbench.configuration import check, compose
from kvbench.engines.arm import Arm
from kvbench.engines.eager import Eager
from kvbench.models.view import view_of
from kvbench.quality.evaluate import likelihood
from kvbench.runner import job_of
from tests.support.checks import NEW, uniform
from tests.support.coordinates import EXACT_LATENT, ROUNDED
from tests.support.drive import drive
from tests.support.latents import network
from tests.support.measured import SOURCE, folder
from tests.support.models import ids, model
from tests.support.moments import where
from tests.support.smoothing import embedded
from tests.support.strategies import composed, strategy

UNIFORM = "codec.ranks=uniform"


def rule_of(*overrides: str) -> Palu:
    """Return Palu with the moments of the tests' models."""
    made = composed("palu", where(), *overrides).codec
    assert isinstance(made, Palu)
    return made


def hidden_states(made: PreTrainedModel) -> list[Tensor]:
    """Return what the weights of each layer's keys and values multiply in the measured texts [N, hidden]."""
    found: list[list[Tensor]] = [[] for _ in view_of(made).layers]
    norms = [made.get_submodule(norm.norm) for norm in view_of(made).norms[::2]]
    handles = [
        norm.register_forward_hook(lambda *seen, at=at: found[at].append(seen[-1][0])) for at, norm in enumerate(norms)
    ]
    for window in SOURCE.windows(4, 40):
        made(torch.tensor([window]), use_cache=False)
    for handle in handles:
        handle.remove()
    return [torch.cat(rows) for rows in found]


def directions_are_those_of_the_whitened_weights(model_name: str) -> None:
    """What is kept of XW is X times the weights cut by the paper's route: whitened by Cholesky, SVD, undone."""
    made, rule = model(model_name), rule_of("codec.kept=0.5", UNIFORM)
    view = view_of(made)
    for layer, inputs in enumerate(hidden_states(made)):
        shape = view.layers[layer]
        for basis, projection in zip(
            rule.bases(view, layer), (shape.key_projection, shape.value_projection), strict=True
        ):
            assert basis is not None
            assert projection is not None
            weight = projection.weight.flatten(0, 1)  # [G * D, hidden]
            whitening = torch.linalg.cholesky(inputs.mT @ inputs)
            left, values, right = torch.linalg.svd(weight @ whitening, full_matrices=False)
            rank = len(weight) // 2
            cut = (left[:, :rank] * values[:rank]) @ right[:rank] @ torch.linalg.inv(whitening)
            given = (inputs @ weight.mT).unflatten(1, (shape.kv_heads, -1)).transpose(0, 1)[None]
            plain = replace(basis, bias=None)
            got = plain.entries(plain.coordinates(given))[0].transpose(0, 1).flatten(1)
            torch.testing.assert_close(got, inputs @ cut.mT, rtol=0, atol=1e-4 * float(given.abs().max()))
            plainly = torch.linalg.svd(weight, full_matrices=False)[0][:, :rank]
            lost = float((given[0].transpose(0, 1).flatten(1) - got).norm())
            by_weights = float((inputs @ weight.mT @ (torch.eye(len(weight)) - plainly @ plainly.mT).double()).norm())
            assert lost < 0.95 * by_weights, "weights alone would do as well"


def whitening_loses_less() -> None:
    """On held-out text the embedded model loses less with measured directions than with those of its weights."""
    loaded, found = embedded(), []
    job = job_of(check(compose(["model=tiny", "model.device=cpu"])))
    full = composed("baseline")
    share = ("codec.most=0.5", "codec.least=0.5")
    for made in (composed("palu", "codec.kept=0.5", UNIFORM, EXACT_LATENT), composed("lorc", *share, EXACT_LATENT)):
        run = uniform(128, 32)
        assert made.allocated_bytes(loaded.view, run) == composed("lorc", *share, EXACT_LATENT).allocated_bytes(
            loaded.view, run
        )
        judged, stock = (
            Arm(name=name, model=loaded.model, view=loaded.view, strategy=how, engine=Eager(prefill_chunk=0))
            for name, how in (("strategy", made), ("baseline", full))
        )
        with torch.no_grad():
            windows = torch.tensor(source_of(job, loaded).windows(8, 161))
            seen = likelihood((judged, stock), windows, context=128, batch_size=8, progress=lambda share: None)
        found.append((seen.nll[0] - seen.nll[1]) / seen.tokens)
    assert 0 < found[0] < 0.85 * found[1], found


def errors_fall_with_the_directions_kept(model_name: str) -> None:
    """The more directions, the less of the moments is left out, side by side, and with all of them nothing is."""
    view = view_of(model(model_name))
    moments = find(str(folder("moments")), view)
    assert moments is not None
    for layer, name in itertools.product(range(2), ("keys", "values")):
        left = []
        for kept in (0.25, 0.5, 0.75, 1.0):
            bases = palu._bases(view, rule_of(f"codec.kept={kept}", UNIFORM))[layer]
            directions = (bases[0] if name == "keys" else bases[1]).directions
            assert directions is not None
            flat, whole = directions.flatten(1, 2), getattr(moments, name)[layer].double()
            inside = flat.mT @ whole @ flat
            left.append(float(whole.diagonal(dim1=1, dim2=2).sum() - inside.diagonal(dim1=1, dim2=2).sum()))
        assert all(more >= less for more, less in itertools.pairwise(left)), left
        assert left[0] > left[2] > 0
        assert abs(left[-1]) < 1e-6 * left[0]


def turned_directions_are_about_as_large() -> None:
    """Keys of the embedded model are 20 times as large along one direction as along most, and turned ones 4 at most."""
    view = embedded().view
    rule, moments = composed("palu", "codec.kept=1").codec, find("", view)
    assert isinstance(rule, Palu)
    assert moments is not None
    for layer, whole in enumerate(moments.keys):
        directions = rule.bases(view, layer)[0].directions
        assert directions is not None
        flat = directions.flatten(1, 2)[0].double()
        spread, alone = (flat.mT @ whole[0].double() @ flat).diagonal(), torch.linalg.eigvalsh(whole[0].double())
        assert float(spread.max() / spread.mean()) < 4
        assert float(alone.max() / alone.mean()) > 20


def shares_follow_the_gradients() -> None:
    """Sides keep directions in proportion to their squared gradients, at least 8, at most all, so many in all."""
    assert allotted([1, 1, 2], [9, 9, 9], 8) == [2, 2, 4]
    assert allotted([1, 1, 98], [9, 9, 5], 8) == [2, 1, 5]
    assert allotted([0, 5, 5], [9, 9, 9], 9) == [1, 4, 4]
    assert allotted([1, 1], [4, 4], 8) == [4, 4]
    view = view_of(model("llama_mha"))
    moments = find(str(folder("moments")), view)
    assert moments is not None
    weights = [float(side) for layer in moments.gradients for side in layer]
    for kept in (0.5, 0.75):
        got = [b.rank for sides in palu._bases(view, rule_of(f"codec.kept={kept}")) for b in sides]
        assert sum(got) == kept * 4 * 32
        assert got == [8 * units for units in allotted(weights, [4] * 4, int(kept * 16))]
        assert got != [b.rank for sides in palu._bases(view, rule_of(f"codec.kept={kept}", UNIFORM)) for b in sides]


def groups_have_their_own_directions() -> None:
    """Groups of fewer heads lie along the directions of their own block of the moments, and hold what formulas say."""
    view = view_of(model("llama_mha"))
    moments = find(str(folder("moments")), view)
    assert moments is not None
    for heads, groups in ((1, 4), (2, 2), (3, 2), (4, 1)):
        made, size = rule_of(f"codec.heads={heads}", UNIFORM, EXACT_LATENT), 32 // groups
        whole = moments.keys[1][0].double()
        for at in range(groups):
            mine = whole[at * size : (at + 1) * size, at * size : (at + 1) * size]
            torch.testing.assert_close(blocks(moments.keys[1], size)[at].double(), mine)
            best = torch.linalg.eigvalsh(mine)[-made.bases(view, 1)[0].rank :].sum()
            directions = made.bases(view, 1)[0].directions
            assert directions is not None
            flat = directions[at].flatten(0, 1)
            torch.testing.assert_close((flat.mT @ mine @ flat).trace(), best)
        ranks = [basis.rank for layer in (0, 1) for basis in made.bases(view, layer)]
        fixed = sum(groups * size * rank * 8 for rank in ranks)
        slots = 24 + NEW
        numbers = sum(groups * rank * 8 * slots for rank in ranks)
        strategy_here = composed("palu", where(), f"codec.heads={heads}", UNIFORM, EXACT_LATENT)
        assert strategy_here.allocated_bytes(view, uniform()) == fixed + numbers + 2 * 4 * slots
        assert strategy_here.codec.joins_heads == (heads > 1)


def smoothing_keys_is_folding_scales_into_weights(model_name: str) -> None:
    """Keys that weights make smaller, and queries that weights make larger, are what the codec of 4 bits writes."""
    made, tokens = network(model_name), ids(5, 1, 24 + NEW)
    smaller = folded(made)
    want = drive(made, strategy("baseline"), tokens, uniform())
    same = drive(smaller, strategy("baseline"), tokens, uniform())
    torch.testing.assert_close(same.logits, want.logits, rtol=0, atol=1e-6)  # norms of transformers round to float32
    got = drive(made, strategy("qoq_kv4", ROUNDED), tokens, uniform())
    packed = drive(smaller, strategy("quantization_4bit"), tokens, uniform())
    torch.testing.assert_close(got.logits, packed.logits, rtol=0, atol=1e-6)
    plain = drive(made, strategy("quantization_4bit"), tokens, uniform())
    assert (plain.logits - got.logits).abs().max() > 1e-4, "smoothing changes nothing: the comparison proves nothing"


def folded(made: PreTrainedModel) -> PreTrainedModel:
    """Return a model whose keys are divided by QoQ's scales, and queries multiplied, by its weights."""
    out, view = copy.deepcopy(made), view_of(made)
    rule = strategy("qoq_kv4").codec.of_layer
    for layer, shape in enumerate(view.layers):
        scale = rule(view, layer).key_format.basis.scale  # type: ignore[attr-defined]
        share = shape.query_heads // shape.kv_heads
        for_queries = scale.repeat_interleave(share, dim=0).flatten()
        with torch.no_grad():
            block: Any = out.get_submodule(view.norms[2 * layer].norm.rpartition(".")[0])
            if hasattr(block, "attn"):
                fused = block.attn.c_attn
                width = len(for_queries)
                for parameter in (fused.weight, fused.bias):
                    parameter[..., :width] *= for_queries
                    parameter[..., width : 2 * width] /= scale.flatten()
            else:
                block.self_attn.q_proj.weight *= for_queries[:, None]
                block.self_attn.k_proj.weight /= scale.flatten()[:, None]
    return out
