"""What must hold for a model that forgets its prompt but for what blocks read of its encoding."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from kvbench.asking import ask_likelihood, ask_recall
from kvbench.bench import Bench
from kvbench.calibrated import fingerprint
from kvbench.columns import held
from kvbench.configuration import check, compose
from kvbench.engines.arm import Arm
from kvbench.engines.eager import Eager
from kvbench.models.crossing import Crossing, Crossings, Places, crossings_of
from kvbench.models.view import view_of
from kvbench.runner import job_of
from kvbench.strategies.transform.crossing import FILE, Crossed, said_of
from kvbench.train_crossings import Read, hidden_of
from kvbench.types import ModelView, RunShape
from tests.support.checks import NEW, PROMPT, assert_close, uniform
from tests.support.drive import Driven, drive, padded
from tests.support.models import attention, ids, inverse_frequency, model
from tests.support.states import rotated
from tests.support.strategies import composed

NAME = "arch_alt_10x"
EVERY_LAYER = ("transform.compression=1", "transform.mode=kv")  # a block behind each of two layers, of all numbers
LENGTHS = (PROMPT, PROMPT - 7)
CHUNKS = (7, 1, 13, 3)
SMALL = ("codec.key_quantiser.group=4", "codec.value_quantiser.group=4", "codec.residual=8")


def made(name: str, *overrides: str, drawn: bool = True) -> PreTrainedModel:
    """Return a model with blocks of its own, whose weights are drawn at random if they shall add anything."""
    network = cast("PreTrainedModel", composed(NAME, *overrides).prepare(model(name)))
    if drawn:
        generator = torch.Generator().manual_seed(11)
        for weight in blocks(network).parameters():
            weight.data.normal_(std=weight.shape[-1] ** -0.5 * (1 + 2 * (weight.ndim == 2)), generator=generator)
    return network


def placed() -> PreTrainedModel:
    """Return a model with blocks of a folder that stand behind its first layer and read what comes out of it."""
    base = model("llama_gqa")
    view, part = view_of(base), composed(NAME).transform
    crossings = Crossings(view, Places(behind=(0,), encoded=0), cast("Crossed", part).sizes(view)[1])
    generator = torch.Generator().manual_seed(12)
    for weight in crossings.parameters():
        weight.data.normal_(std=weight.shape[-1] ** -0.5 * (1 + 2 * (weight.ndim == 2)), generator=generator)
    with TemporaryDirectory() as folder:
        save_file(crossings.state_dict(), Path(folder) / FILE, metadata=said_of(crossings, view))
        return cast("PreTrainedModel", composed(NAME, f"transform.weights='{folder}'").prepare(base))


def blocks(network: nn.Module) -> Crossings:
    """Return the blocks of a model."""
    found = crossings_of(network)
    assert found is not None
    return found


def stock(network: nn.Module, tokens: Tensor) -> Tensor:
    """Return the logits of a model alone."""
    with attention(cast("PreTrainedModel", network), "sdpa") as alone:
        logits: Tensor = alone(tokens, use_cache=False).logits
    return logits


def texts(lengths: Sequence[int], seed: int = 31) -> list[Tensor]:
    """Return a text per row: a prompt of that length and what follows it."""
    return [ids(seed + row, 1, length + NEW)[0] for row, length in enumerate(lengths)]


def driven(network: PreTrainedModel, rows: Sequence[Tensor], *overrides: str, **how: Any) -> Driven:
    """Read and decode rows through the cache."""
    run = RunShape(prompt_lengths=tuple(len(row) - NEW for row in rows), new_tokens=NEW)
    return drive(network, composed("baseline", *overrides), padded(rows), run, **how)


# -- what is read ---------------------------------------------------------------------------------------------------


def blocks_that_add_nothing_leave_the_model_to_what_follows(
    name: str, lengths: Sequence[int], chunks: Sequence[int] = (), steps: Sequence[int] = ()
) -> None:
    """Blocks begin by adding nothing: the prompt is read as ever, and what follows is read as if it stood alone."""
    rows = texts(lengths)
    got = driven(made(name, drawn=False), rows, chunks=chunks, steps=steps).logits
    for row, text in enumerate(rows):
        assert_close(got[row, PROMPT - len(text) + NEW : PROMPT], stock(model(name), text[None, :-NEW])[0])
        assert_close(got[row, PROMPT:], stock(model(name), text[None, -NEW:])[0])


def context_is_read_as_by_plain_loops(
    name: str, overrides: Sequence[str] = EVERY_LAYER, chunks: Sequence[int] = (), steps: Sequence[int] = ()
) -> None:
    """Logits are those of loops over the tokens of the context, one query of one head at a time."""
    rows, network = texts(LENGTHS), made(name, *overrides)
    got = driven(network, rows, chunks=chunks, steps=steps).logits[:, PROMPT:]
    for row, text in enumerate(rows):
        want = _by_loops(name, blocks(network), text)
        assert_close(got[row], want)
        assert (want - stock(model(name), text[None, -NEW:])[0]).abs().max() > 1e-2, "blocks add nothing to speak of"


def blocks_stand_where_they_were_trained() -> None:
    """Blocks of a folder that says so stand elsewhere, and read an encoding of what comes out of another layer."""
    rows, network = texts(LENGTHS), placed()
    got = driven(network, rows, chunks=CHUNKS).logits[:, PROMPT:]
    for row, text in enumerate(rows):
        assert_close(got[row], _by_loops("llama_gqa", blocks(network), text, is_first=True))


def _by_loops(name: str, crossings: Crossings, text: Tensor, *, is_first: bool = False) -> Tensor:
    """Return the logits [NEW, V] of what follows a context, by hooks on the model that blocks were made for.

    Args:
        name: of that model.
        crossings: the blocks.
        text: the context and what follows it.
        is_first: whether the block stands behind the first layer, whose output is encoded.
    """
    base, context = copy.deepcopy(model(name)), text[None, :-NEW]
    with attention(base, "sdpa") as alone:
        found = alone.base_model(context, use_cache=False, output_hidden_states=True)
        encoding = found.last_hidden_state[0]
        if is_first:
            encoding = torch.stack([_normed(row, torch.ones_like(row)) for row in found.hidden_states[1][0]])
        if isinstance(crossings.encoder, nn.Linear):
            encoding = encoding @ crossings.encoder.weight.T
        layers: Any = alone.base_model.h if name == "gpt2" else alone.base_model.layers
        count = len(crossings.blocks)
        for at, block in enumerate(crossings.blocks):
            stride = 1 if is_first else len(layers) // count
            layers[at * stride + stride - 1].register_forward_hook(
                lambda layer, given, out, block=block: _looped(name, block, encoding, out[0])[None]
            )
        logits: Tensor = alone(text[None, -NEW:], use_cache=False).logits
    return logits[0]


def _looped(name: str, block: Any, encoding: Tensor, hidden: Tensor) -> Tensor:
    frequency = None if name == "gpt2" else inverse_frequency(model(name).config, None)
    heads = block.q_proj.out_features // block.key_dim
    groups, length = block.k_proj.out_features // block.key_dim, len(encoding)
    keys = (encoding @ block.k_proj.weight.T).unflatten(1, (groups, -1)).transpose(0, 1)
    values = (encoding @ block.v_proj.weight.T).unflatten(1, (groups, -1)).transpose(0, 1)
    keys = rotated(keys, torch.arange(length), frequency)
    rows = []
    for now, incoming in enumerate(hidden):
        query = (_normed(incoming, block.attention_norm.weight) @ block.q_proj.weight.T).unflatten(0, (heads, -1))
        query = rotated(query[:, None], torch.tensor([length + now]), frequency)[:, 0]
        parts = []
        for head in range(heads):
            group = head * groups // heads
            paid = torch.softmax(keys[group] @ query[head] / math.sqrt(block.key_dim), dim=0)
            parts.append(sum(weight * value for weight, value in zip(paid, values[group], strict=True)))
        mixed = incoming + block.o_proj.weight @ torch.cat(cast("list[Tensor]", parts))
        normed = _normed(mixed, block.norm.weight)
        gate = block.gate_proj.weight @ normed
        rows.append(mixed + block.down_proj.weight @ (gate * gate.sigmoid() * (block.up_proj.weight @ normed)))
    return torch.stack(rows)


def _normed(row: Tensor, weight: Tensor) -> Tensor:
    return row / (row.square().mean() + 1e-5).sqrt() * weight


def without_a_context_nothing_is_added(name: str) -> None:
    """Blocks that have nothing to read leave the model as it is."""
    tokens = ids(32, 2, NEW)
    assert torch.equal(stock(made(name), tokens), stock(model(name), tokens))


def keys_are_made_once() -> None:
    """The encoding, and keys and values of it, are made while the prompt is read and in no step behind it."""
    network, calls = made("llama_gqa", "transform.compression=2", "transform.mode=hidden"), list[int]()
    own: Any = blocks(network)
    parts = [own.encoder, *(part for block in own.blocks for part in (block.k_proj, block.v_proj))]
    hooks = [part.register_forward_hook(lambda layer, given, out: calls.append(out.shape[1])) for part in parts]
    cache = driven(network, texts((PROMPT,)), chunks=(16, 8)).cache
    assert [hook.remove() for hook in hooks]
    assert calls == [16, 16, 16, 8, 8, 8]
    assert [layer.seen for layer in cache.layers] == [PROMPT + NEW] * 3


# -- bytes ----------------------------------------------------------------------------------------------------------


def bytes_are_those_of_the_blocks(name: str, *overrides: str) -> None:
    """Of a prompt, blocks hold keys and values and the layers nothing; both are what was said, in tensors."""
    network, lengths = made(name, *overrides), LENGTHS
    view, strategy = view_of(network), composed("baseline")
    run, count = RunShape(prompt_lengths=lengths, new_tokens=NEW), len(blocks(network).blocks)
    shape, layers = view.layers[0], len(view.layers) - count
    entry = 8 * shape.kv_heads * (shape.key_dim + shape.value_dim) + torch.int32.itemsize
    sizes = []

    def watch(cache: Any, seen: int) -> None:
        sizes.append([sum(t.nbytes for t in layer.tensors()) for layer in cache.layers])
        used = layers * len(lengths) * (seen - PROMPT) * entry + count * sum(lengths) * entry
        assert cache.used_bytes() == strategy.used_bytes(view, run, seen) == used

    cache = driven(network, texts(lengths), watch=watch).cache
    assert all(each == [2 * NEW * entry] * layers + [2 * PROMPT * entry] * count for each in sizes)
    assert cache.allocated_bytes() == strategy.allocated_bytes(view, run)
    assert cache.encoding_bytes == 2 * PROMPT * blocks(network).width * 8
    arm = Arm(name="strategy", model=network, view=view, strategy=strategy, engine=Eager(prefill_chunk=0))
    row = held(arm, cache, run)
    assert row["stored_ratio"] == pytest.approx(layers * entry / (8 * blocks(network).width))
    assert row["runtime_ratio"] == layers / count


def sizes_follow_the_ratio() -> None:
    """So many blocks and numbers per token come of a model's layers and the ratio that is asked for."""
    for layers, kv_heads, dim, hidden, compression, mode, want in (
        (36, 20, 64, 1280, 10, "auto", (4, 1280)),  # gpt2-large
        (36, 20, 64, 1280, 20, "auto", (2, 1280)),
        (32, 8, 128, 4096, 10, "kv", (3, 4096)),
        (4, 2, 32, 192, 10, "auto", (1, 51)),  # tiny
        (4, 2, 32, 192, 20, "auto", (1, 26)),
        (4, 2, 32, 192, 10, "kv", (1, 192)),
        (4, 2, 32, 192, 2, "hidden", (2, 192)),
    ):
        part = Crossed(compression=compression, mode=mode, weights="")  # type: ignore[arg-type]
        view = _view(layers, kv_heads, dim, hidden)
        assert part.sizes(view) == want
        assert len(part.shapes(view).layers) == layers + want[0]
    behind = {count: Places.spread(count, 36).behind for count in (2, 4)}
    assert behind == {2: (17, 35), 4: (8, 17, 26, 35)}


def _view(layers: int, kv_heads: int, dim: int, hidden: int) -> ModelView:
    view = view_of(model("llama_gqa"))
    layer = replace(view.layers[0], kv_heads=kv_heads, key_dim=dim, value_dim=dim, query_heads=hidden // dim)
    sizes = replace(view.sizes, hidden=hidden, intermediate=8)
    return replace(view, layers=(layer,) * layers, sizes=sizes)


def shapes_are_known_before(name: str) -> None:
    """What is said of layers before a model is changed is what is seen in the changed one."""
    part = composed(NAME).transform
    got, want = part.shapes(view_of(model(name))), part.view(made(name), view_of(model(name)))
    assert [layer.part for layer in got.layers] == [layer.part for layer in want.layers] == ["new", "new", "prompt"]
    for mine, theirs in zip(got.layers, want.layers, strict=True):
        assert (mine.kv_heads, mine.key_dim, mine.value_dim) == (theirs.kv_heads, theirs.key_dim, theirs.value_dim)


# -- with other parts -----------------------------------------------------------------------------------------------


def contexts_go_with_codecs(codec: str, error: float, *overrides: str) -> None:
    """Contexts and what follows them say nearly what they said when they are packed, in rows of any length."""
    network, rows = made("llama_gqa"), texts(LENGTHS)
    chosen = (f"strategy/codec={codec}", *overrides)
    packed, want = driven(network, rows, *chosen), driven(network, rows)
    behind = packed.logits[:, PROMPT:] - want.logits[:, PROMPT:]
    assert 0 < behind.abs().max() < error, behind.abs().max()
    run = RunShape(prompt_lengths=LENGTHS, new_tokens=NEW)
    strategy, view = composed("baseline", *chosen), view_of(network)
    assert packed.cache.allocated_bytes() == strategy.allocated_bytes(view, run) < want.cache.allocated_bytes()
    assert packed.cache.used_bytes() == strategy.used_bytes(view, run, PROMPT + NEW)


def restore_goes_back_exactly() -> None:
    """What was decoded once is decoded again, bit for bit, from a snapshot."""
    network, text, strategy = made("llama_gqa"), texts((PROMPT,)), composed("baseline")
    with attention(network, "kvbench"):
        cache, engine = strategy.build(view_of(network), uniform()), Eager(prefill_chunk=0)
        engine.prefill(network, cache, text[0][None, :PROMPT])
        taken, said = cache.snapshot(), []
        for _ in range(2):
            said.append([engine.step(network, cache, text[0][None, at : at + 1]) for at in range(PROMPT, PROMPT + 4)])
            cache.restore(taken)
    assert all(torch.equal(one, other) for one, other in zip(*said, strict=True))
    assert cache.get_seq_length() == PROMPT


# -- training, and what is trained ----------------------------------------------------------------------------------


def what_is_trained_is_what_runs(name: str, *, is_placed: bool = False) -> None:
    """Blocks in training read contexts as they do through the cache."""
    network, rows = placed() if is_placed else made(name, *EVERY_LAYER), texts((PROMPT, PROMPT), seed=41)
    found, got = blocks(network), driven(network, rows).logits[:, PROMPT:]
    tokens = torch.stack(rows)
    with attention(network, "sdpa") as stocked:
        encoding = found.encode(hidden_of(stocked, found, tokens[:, :PROMPT]))
        readers = [Read.of(pair, found.shape.rotary) for pair in found.pairs(encoding)]
        assert_close(stocked(tokens[:, PROMPT:], use_cache=False, readers=readers).logits, got)


def trained_blocks_are_found() -> None:
    """A folder's blocks are taken if they were made for these weights and sizes, and count as trained."""
    view, found = view_of(model("llama_gqa")), blocks(made("llama_gqa"))
    said = said_of(found, view)
    assert said["weights"] == fingerprint(view)
    kept = {name: weight.float() for name, weight in found.state_dict().items()}
    with TemporaryDirectory() as folder:
        save_file(kept, Path(folder) / FILE, metadata=said)
        network = composed(NAME, f"transform.weights='{folder}'").prepare(model("llama_gqa"))
    assert not view_of(network).is_untrained
    assert view_of(made("llama_gqa")).is_untrained
    got = blocks(network).state_dict()
    assert all(torch.equal(got[name], weight.double()) for name, weight in kept.items())


def untrained_blocks_are_asked_nothing() -> None:
    """Rows of blocks that nobody has trained say so, and have no quality; the baseline beside them has."""
    chosen = ["workload.prompt_tokens=24", "workload.new_tokens=4", "measure.threads=1", "model.device=cpu"]
    chosen += ["quality.text_windows=1", "quality.context_tokens=20", "quality.scored_tokens=4"]
    chosen += ["quality.recall_samples=2", "quality.recall_tokens=64", "quality.pairs=2"]
    try:
        found = Bench(job_of(check(compose([f"strategy={NAME}", "strategy.transform.compression=5", *chosen]))), _quiet)
        ask_likelihood(found)
        ask_recall(found)
    finally:
        torch.set_grad_enabled(True)
    rows = found.measured.rows
    assert rows["strategy"].get("fidelity") == "structure_only"
    assert "fidelity" not in rows["baseline"]
    assert not {"nll_nats", "kl_nats", "recall_key_value", "max_logit_difference"} & rows["strategy"].keys()
    assert {"nll_nats", "recall_key_value"} <= rows["baseline"].keys()
    assert rows["strategy"]["weights_bytes"] > rows["baseline"]["weights_bytes"]


def _quiet(stage: str, share: float) -> None:
    """Show nothing."""


def only_blocks_are_trained() -> None:
    """The model that blocks are made for shares its weights with what is trained, and has none that change."""
    network = made("llama_gqa")
    own = {id(p) for p in blocks(network).parameters()}
    rest = [p for p in network.parameters() if id(p) not in own]
    assert {id(p) for p in rest} == {id(p) for p in model("llama_gqa").parameters()}
    assert not hasattr(model("llama_gqa").base_model, "crossings")
    layers: Any = model("llama_gqa").base_model.layers
    hooks = [hook for layer in layers for hook in layer._forward_hooks.values()]
    assert not any(isinstance(hook, functools.partial) for hook in hooks)  # transformers' own are none
    assert any(isinstance(module, Crossing) for module in network.modules())
