"""What must hold for a network whose heads all read one latent."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from kvbench.models.view import view_of
from kvbench.strategies.transform.mla import Mla
from tests.support import generic
from tests.support.checks import NEW, PROMPT, assert_close, uniform
from tests.support.drive import drive, slots_of
from tests.support.models import HEADS, WIDTH, attention, ids, inverse_frequency, model
from tests.support.strategies import composed

NAME = "expanded"
_KEPT: list[list[list[list[int]]]] = []  # pairs that stay rotated, per layer and KV head


def made(name: str, rotary_share: float = 0.25, latent_share: float = 0.5) -> PreTrainedModel:
    """Return a model that keeps latents."""
    strategy = composed("mla", f"transform.rotary_share={rotary_share}", f"transform.latent_share={latent_share}")
    return cast("PreTrainedModel", strategy.prepare(model(name)))


def stock(network: nn.Module, tokens: Tensor, attend: str = "sdpa") -> Tensor:
    """Return the logits of ids by another attention function."""
    with attention(cast("PreTrainedModel", network), attend) as other:
        logits: Tensor = other(tokens, use_cache=False).logits
    return logits


def full_rank_with_all_rotation_is_the_model(name: str) -> None:
    """With everything rotated and no rank cut, nothing has changed, without a cache and with ours."""
    tokens, before = ids(91, 2, PROMPT + NEW), _with_biases(model(name))
    network = cast("PreTrainedModel", Mla(rotary_share=1, latent_share=1).prepare(before))
    want = stock(before, tokens)
    assert_close(stock(network, tokens), want)
    assert_close(drive(network, composed("baseline"), tokens, uniform(rows=2)).logits, want)


def _with_biases(given: PreTrainedModel) -> PreTrainedModel:
    """Return a model whose biases, where there are any, are not 0."""
    changed, generator = copy.deepcopy(given), torch.Generator().manual_seed(9)
    for name, weight in changed.named_parameters():
        if name.endswith("bias"):
            weight.normal_(generator=generator)
    return changed


# -- keys and values of every head ----------------------------------------------------------------------------------


def absorbed_equals_expanded(name: str, rotary_share: float, latent_share: float) -> None:
    """What no head's keys and values are made for says what a model says that makes them, of weights of that rank."""
    tokens, network = ids(92, 2, PROMPT + NEW), made(name, rotary_share, latent_share)
    expanded = copy.deepcopy(model(name))
    _KEPT.append([])
    try:
        for layer, shape in zip(cast("Any", expanded).model.layers, view_of(network).layers, strict=True):
            groups, kept = layer.self_attn.k_proj.out_features // WIDTH, round(rotary_share * WIDTH // 2)
            _KEPT[-1].append(_cut(layer.self_attn, kept, shape.key_dim - groups * 2 * kept))
        want = stock(expanded, tokens, NAME)
    finally:
        _KEPT.pop()
    assert (want - stock(model(name), tokens)).abs().max() > 1e-3, "nothing is cut: this proves nothing"
    assert_close(stock(network, tokens), want)
    assert_close(drive(network, composed("baseline"), tokens, uniform(rows=2)).logits, want)


def _cut(own: Any, num_pairs: int, rank: int) -> list[list[int]]:
    """Cut the weights of keys that are not rotated and of values to a rank, and return the pairs that are."""
    half, groups = WIDTH // 2, own.k_proj.out_features // WIDTH
    kept, rows = [], []
    for group in range(groups):
        loud = []
        for pair in range(half):
            key = own.k_proj.weight[[group * WIDTH + pair, group * WIDTH + pair + half]].norm()
            heads = range(group * HEADS // groups, (group + 1) * HEADS // groups)
            query = sum(own.q_proj.weight[[head * WIDTH + pair, head * WIDTH + pair + half]].norm() for head in heads)
            loud.append((float(key * query), pair))
        mine = sorted(pair for _, pair in sorted(loud)[::-1][:num_pairs])
        kept.append(mine)
        rows += [group * WIDTH + at for at in range(WIDTH) if at % half not in mine]
    together = torch.cat([own.k_proj.weight[rows], own.v_proj.weight])
    main = torch.linalg.eigh(together @ together.mT).eigenvectors[:, -rank:]
    low = main @ (main.mT @ together)
    own.k_proj.weight[rows] = low[: len(rows)]
    own.v_proj.weight.copy_(low[len(rows) :])
    return kept


def _expanded(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: object, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attend causally once the pairs that shall not be rotated are turned back."""
    share = query.shape[1] // key.shape[1]
    kept = torch.zeros(key.shape[1], WIDTH // 2, dtype=torch.bool)
    for group, pairs in enumerate(_KEPT[-1][module.layer_idx]):
        kept[group, pairs] = True
    query, key = (
        _turned_back(rows, kept.repeat_interleave(rows.shape[1] // len(kept), dim=0), module.config)
        for rows in (query, key)
    )
    keys, values = (t.repeat_interleave(share, dim=1) for t in (key, value))
    logits = query @ keys.mT * scaling
    seen = torch.ones(logits.shape[-2:]).tril().bool()
    return (torch.where(seen, logits, -torch.inf).softmax(dim=-1) @ values).transpose(1, 2), None


def _turned_back(rows: Tensor, kept: Tensor, config: Any) -> Tensor:
    angle = torch.arange(rows.shape[2])[:, None] * inverse_frequency(config, None)
    angle = torch.where(kept[:, None], 0, angle)  # [heads, T, D / 2]
    one, other = rows.chunk(2, dim=-1)
    return torch.cat([one * angle.cos() + other * angle.sin(), other * angle.cos() - one * angle.sin()], dim=-1)


AttentionInterface.register(NAME, _expanded)
AttentionMaskInterface.register(NAME, lambda *arguments, **keywords: None)


# -- bytes ----------------------------------------------------------------------------------------------------------


def bytes_are_one_latent_and_its_rotation(name: str) -> None:
    """A token holds so many numbers per layer and its position, in one storage."""
    network, strategy, tokens = made(name), composed("baseline"), PROMPT + NEW
    cache = drive(network, strategy, ids(93, 1, tokens), uniform()).cache
    shapes = view_of(network).layers
    numbers = sum(shape.key_dim for shape in shapes)
    before = sum(shape.kv_heads * (shape.key_dim + shape.value_dim) for shape in view_of(model(name)).layers)
    assert numbers < before
    assert cache.used_bytes() == tokens * (numbers * torch.float64.itemsize + len(shapes) * torch.int32.itemsize)
    assert cache.allocated_bytes() == strategy.allocated_bytes(view_of(network), uniform()) == cache.used_bytes()
    assert cache.numbers_held() == tokens * numbers
    for layer in cache.layers:
        slots = slots_of(layer)
        keys, values = slots.keys.read(slots.filled), slots.values.read(slots.filled)
        assert values.data_ptr() == keys.data_ptr()


def shapes_are_known_before(name: str) -> None:
    """What is said of latents before a model is changed is what is seen in the changed one."""
    part = composed("mla").transform
    assert isinstance(part, Mla)
    got, want = part.shapes(view_of(model(name))), part.view(made(name), view_of(model(name)))
    for mine, theirs in zip(got.layers, want.layers, strict=True):
        assert mine == theirs
        assert mine.values_are_keys
    assert got.has_learned_positions == want.has_learned_positions == (name == "gpt2")


# -- with other parts -----------------------------------------------------------------------------------------------


def latents_go_with_selection(name: str) -> None:
    """Attention to what the cache says it holds of latents, and nothing else, gives its logits."""
    generic.equals_dense_attention_under_what_is_held("h2o", name, ("strategy/transform=mla",))


def latents_go_with_codecs(name: str) -> None:
    """Packed latents say nearly what they said, and values are read of the keys' codes."""
    network, tokens = made(name), ids(94, 2, PROMPT + NEW)
    want = stock(network, tokens)
    strategy = composed("mla", "strategy/codec=int8")
    packed = drive(network, strategy, tokens, uniform(rows=2))
    torch.testing.assert_close(packed.logits, want, rtol=0, atol=0.05)
    assert packed.cache.allocated_bytes() == strategy.allocated_bytes(view_of(network), uniform(rows=2))
