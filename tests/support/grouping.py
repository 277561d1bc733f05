"""What must hold for heads that become one: when the model does not notice, and what is left of it."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kvbench.models.norms import weight_of
from kvbench.models.view import attention_of, view_of, weights_bytes
from kvbench.strategies.transform.grouped import Grouped
from kvbench.types import ModelView, RunShape
from tests.support.checks import EXACT, NEW, PROMPT, assert_close, uniform
from tests.support.drive import drive, slots_of
from tests.support.models import HEADS, WIDTH, attention, ids, model
from tests.support.strategies import composed

KINDS = ("llama_mha", "gpt2", "phi3")  # separate projections, one for all three, and a part of each key not rotated
GROUPED = (*KINDS, "llama_gqa", "mistral", "qwen3", "gemma3")
ALIGNMENTS = ("none", "procrustes")


def grouped(num_groups: int, align: str) -> Grouped:
    """Return the transform."""
    made = composed("gqa", f"transform.num_groups={num_groups}", f"transform.align={align}").transform
    assert isinstance(made, Grouped)
    return made


def logits(network: nn.Module) -> Tensor:
    """Return the logits of some ids [2, 30, V] by transformers' own attention."""
    with attention(cast("PreTrainedModel", network), "sdpa") as stock:
        out: Tensor = stock(ids(7, 2, 30), use_cache=False).logits
    return out


def groups_of(network: nn.Module) -> int:
    """Return the KV heads of a model."""
    return view_of(network).layers[0].kv_heads


def as_many_groups_as_heads_change_nothing(name: str) -> None:
    """With a group for each head the logits are the model's, aligned or not; with fewer they are not."""
    network = model(name)
    want = logits(network)
    for align in ALIGNMENTS:
        made = grouped(groups_of(network), align)
        if made.unsupported(view_of(network)) is None:
            assert_close(logits(made.prepare(network)), want)
            assert (logits(grouped(1, align).prepare(network)) - want).abs().max() > 1e-3
    assert torch.equal(logits(grouped(groups_of(network), "none").prepare(network)), want)


@functools.cache
def alike(name: str, *, turned: bool) -> PreTrainedModel:
    """Return the model with keys and values that are the same in both heads of a pair, but for a turn if asked for."""
    made = copy.deepcopy(model(name))
    generator = torch.Generator().manual_seed(3)
    for index, layer in enumerate(view_of(made).layers):
        found = attention_of(made, index)
        assert found is not None
        heads = _heads(found[0], layer.query_heads, layer.kv_heads)
        size = 0 if layer.rotary is None else len(layer.rotary)
        out = _per_head(found[1], layer.query_heads)
        for one in range(0, layer.kv_heads, 2):
            for made_by in heads[1:]:
                made_by[one + 1] = made_by[one]
            if not turned:
                continue
            keys, values = _turn(size, generator), torch.linalg.qr(_noise(WIDTH, generator))[0]
            heads[1][one + 1], heads[2][one + 1] = keys @ heads[1][one + 1], values @ heads[2][one + 1]
            share = layer.query_heads // layer.kv_heads
            for query in range((one + 1) * share, (one + 2) * share):
                heads[0][query] = keys @ heads[0][query]
                out[query] = values @ out[query]
    return made


def _noise(width: int, generator: torch.Generator) -> Tensor:
    return torch.randn(width, width, dtype=torch.float64, generator=generator)


def _turn(planes: int, generator: torch.Generator) -> Tensor:
    """Return a rotation [D, D] of keys: by one angle in each plane that positions turn, any way in the rest."""
    turn = torch.eye(WIDTH, dtype=torch.float64)
    for plane, angle in enumerate(torch.rand(planes, generator=generator, dtype=torch.float64) * 6):
        rows = torch.tensor([plane, plane + planes])
        turn[rows[:, None], rows] = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    rest = WIDTH - 2 * planes
    turn[2 * planes :, 2 * planes :] = torch.linalg.qr(_noise(rest, generator))[0] if rest else 0
    return turn


def _heads(module: Any, query_heads: int, kv_heads: int) -> list[Tensor]:
    """Return the weights [heads, D, hidden] of queries, keys and values, views of the module's."""
    counts = (query_heads, kv_heads, kv_heads)
    if hasattr(module, "k_proj"):
        rows = [weight_of(getattr(module, name)) for name in ("q_proj", "k_proj", "v_proj")]
    else:
        fused = getattr(module, "c_attn", None) or module.qkv_proj
        rows = list(weight_of(fused).split([count * WIDTH for count in counts]))
    return [row.unflatten(0, (count, WIDTH)) for row, count in zip(rows, counts, strict=True)]


def _per_head(output: nn.Module, query_heads: int) -> Tensor:
    rows: Tensor = weight_of(output).t().unflatten(0, (query_heads, WIDTH))
    return rows


def heads_that_are_alike_become_one(name: str) -> None:
    """Heads with the same keys and values become one without a trace."""
    network = alike(name, turned=False)
    for align in ALIGNMENTS:
        made = grouped(groups_of(network) // 2, align).prepare(network)
        assert_close(logits(made), logits(network))


def heads_that_are_alike_but_turned_become_one(name: str) -> None:
    """Aligned, heads that differ by a turn become one without a trace; their mean alone is something else."""
    network, want = alike(name, turned=True), logits(alike(name, turned=True))
    assert_close(want, logits(alike(name, turned=False)))
    made = {align: grouped(groups_of(network) // 2, align).prepare(network) for align in ALIGNMENTS}
    assert_close(logits(made["procrustes"]), want)
    assert (logits(made["none"]) - want).abs().max() > 1e-3


def bytes_fall_with_the_heads(name: str) -> None:
    """The cache of a model with a quarter of the heads has a quarter of the bytes, but for positions and padding."""
    tokens, run = ids(5, 1, PROMPT + NEW), uniform()
    full, mine = composed("baseline"), composed("gqa", f"transform.num_groups={HEADS // 4}")
    network = mine.prepare(model(name))
    held = {}
    for made, given in ((full, model(name)), (mine, network)):
        cache = drive(cast("PreTrainedModel", given), made, tokens, run).cache
        assert cache.allocated_bytes() == made.allocated_bytes(view_of(given), run)
        slots = [slots_of(layer) for layer in cache.layers]
        sides = [side.read(PROMPT) for mine in slots for side in (mine.keys, mine.values)]
        held[made.transform.changes_heads] = sum(t.numel() * t.element_size() for t in sides)
    assert held[False] == 4 * held[True] > 0
    saved = weights_bytes(model(name)) - weights_bytes(network)
    biases = name == "gpt2"
    per_head = WIDTH * (HEADS * WIDTH + biases) * 8  # bytes
    assert saved == 2 * 2 * (HEADS - 1) * per_head, "two projections in two layers"


def the_original_stays_as_it_is(name: str) -> None:
    """The model that is given keeps every weight, module and setting, and shares what does not change."""
    network = copy.deepcopy(model(name))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    modules = {key: id(module) for key, module in network.named_modules()}
    config, want = network.config.to_dict(), logits(network)
    made = cast("Any", grouped(1, "procrustes").prepare(network))
    with attention(made, "kvbench"):
        assert torch.equal(logits(network), want), "what it attends with is shared"
    assert {key: id(m) for key, m in network.named_modules()} == modules
    assert network.config.to_dict() == config
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    changed = {key for key, module in made.named_modules() if id(module) not in modules.values()}
    assert not any("mlp" in key or "embed" in key or "wte" in key for key in changed), "more is copied than has to be"
    assert made.config.num_key_value_heads == 1


def shapes_are_known_before(name: str) -> None:
    """What is said of the heads before a model is changed is what is seen in the changed one."""
    network = model(name)
    for num_groups in (groups_of(network), 1):
        made = grouped(num_groups, "none")
        want = made.view(made.prepare(network), replace(view_of(network), asked="model=x"))
        assert _shapes(want) == _shapes(made.shapes(view_of(network)))
        assert want.asked == "model=x"
        sizes = [layer.value_projection.weight.shape for layer in want.layers if layer.value_projection is not None]
        assert sizes == [(num_groups, WIDTH, HEADS * WIDTH)] * len(want.layers)


def _shapes(view: ModelView) -> list[tuple[int, ...]]:
    return [(s.query_heads, s.kv_heads, s.key_dim, s.value_dim, s.window) for s in view.layers]


def it_goes_with_other_parts(name: str) -> None:
    """Entries of fewer heads are packed, sent elsewhere and made again, as those of any model are."""
    network = model(name)
    small = ("codec.key_quantiser.group=4", "codec.value_quantiser.group=4", "codec.residual=8")
    for error, *parts in (
        (0.5, "strategy/codec=kivi4", *small),
        (EXACT, "strategy/placement=host"),
        (EXACT, "strategy/placement=recompute"),
    ):
        made = composed("gqa", "transform.num_groups=1", *parts)
        run, given = RunShape(prompt_lengths=(PROMPT,), new_tokens=NEW), cast("PreTrainedModel", made.prepare(network))
        assert groups_of(given) == 1
        assert made.unsupported(view_of(given), run) is None
        got = drive(given, made, ids(5, 1, PROMPT + NEW), run)
        plain = drive(given, composed("baseline"), ids(5, 1, PROMPT + NEW), run)
        torch.testing.assert_close(got.logits, plain.logits, rtol=0, atol=error)
        assert made.fidelity == "lossy_training_free"
