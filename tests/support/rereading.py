"""What must hold where nothing is kept: every pass reads all tokens from the first one on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, PreTrainedModel

from kvbench.cache.kv_cache import KVCache
from kvbench.engines.arm import Arm, DecodeArm, generate
from kvbench.engines.eager import Eager
from kvbench.models.view import view_of
from kvbench.predicting import work_of
from kvbench.types import RunShape
from tests.support.checks import NEW, PROMPT, assert_close, uniform, usual_ids
from tests.support.drive import Driven, drive, padded
from tests.support.models import HEADS, LAYERS, WIDTH, attention, ids, model
from tests.support.storage import storages_are_exact_and_reported
from tests.support.strategies import composed

RAGGED = (PROMPT, 17, 3)
ID, PADDING = 8, 4  # bytes of an id, and of a row's length


def _changed(network: PreTrainedModel) -> PreTrainedModel:
    """Return a model that reads everything again."""
    return cast("PreTrainedModel", composed("no_cache").prepare(network))


def _driven(
    strategy: str, network: PreTrainedModel, lengths: Sequence[int], chunks: Sequence[int], steps: Sequence[int]
) -> Driven:
    text = padded([ids(50 + row, 1, length + NEW)[0] for row, length in enumerate(lengths)])
    run = RunShape(prompt_lengths=tuple(lengths), new_tokens=NEW)
    return drive(network, composed(strategy), text, run, chunks=chunks, steps=steps)


def reading_again_equals_the_full_cache(
    name: str, lengths: Sequence[int] = RAGGED, chunks: Sequence[int] = (), steps: Sequence[int] = ()
) -> None:
    """Logits are those of the full cache, of rows of any length, in passes of any size."""
    full = _driven("baseline", model(name), lengths, (), ())
    mine = _driven("no_cache", _changed(model(name)), lengths, chunks, steps)
    for row, length in enumerate(lengths):
        first = max(lengths) - length
        assert_close(mine.logits[row, first:], full.logits[row, first:])


def ids_are_all_that_is_kept(lengths: Sequence[int] = RAGGED) -> None:
    """The cache leads to nothing but ids, and what says how long rows are; no entry is ever held."""
    made, network = composed("no_cache"), _changed(model("llama_gqa"))
    text = padded([ids(row, 1, length + NEW)[0] for row, length in enumerate(lengths)])
    run = RunShape(prompt_lengths=tuple(lengths), new_tokens=NEW)
    ragged = PADDING * len(lengths) if len(set(lengths)) > 1 else 0

    def look(cache: KVCache, seen: int) -> None:
        storages_are_exact_and_reported(cache)
        columns = max(lengths) + NEW
        assert cache.allocated_bytes() == ID * len(lengths) * columns + ragged
        assert cache.used_bytes() == ID * sum(length + seen - max(lengths) for length in lengths)
        assert sum(int(held.sum()) for held in cache.entries_held()) == cache.numbers_held() == 0

    drive(network, made, text, run, watch=look)


def _arm(name: str) -> Arm:
    network = _changed(model(name))
    return Arm(
        name="strategy",
        model=network,
        view=view_of(network),
        strategy=composed("no_cache"),
        engine=Eager(prefill_chunk=0),
    )


def a_step_reads_everything() -> None:
    """Every step passes all tokens so far through the layers, and after going back those up to there again."""
    passed: list[list[int]] = []

    def note(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        passed.append(arguments[0][0].tolist())

    arm, text = _arm("llama_gqa"), ids(3, 1, PROMPT + NEW)
    embedding = arm.model.get_input_embeddings()  # type: ignore[operator]
    with attention(arm.model, "kvbench"):  # type: ignore[arg-type]
        decode = DecodeArm(arm, uniform(), text)
        hook = embedding.register_forward_pre_hook(note)
        for steps in (3, 2):
            for _ in range(steps):
                decode.step()
            decode.restore()
        hook.remove()
    assert passed == [text[0, : PROMPT + 1 + step].tolist() for step in (0, 1, 2, 0, 1)]


def greedy_tokens_are_those_of_no_cache_at_all() -> None:
    """What is generated is what the stock model says next of the whole text, token by token."""
    arm, text = _arm("gpt2"), usual_ids()[:, :PROMPT]
    with attention(arm.model, "kvbench"):  # type: ignore[arg-type]
        got = generate(arm, uniform(rows=2), text)
    with attention(model("gpt2"), "sdpa") as stock:
        for _ in range(NEW):
            text = torch.cat([text, stock(text, use_cache=False).logits[:, -1:].argmax(dim=-1)], dim=1)
    assert torch.equal(got, text[:, PROMPT:])


def other_caches_are_left_alone() -> None:
    """With a cache that keeps its entries the changed model is the model it was made of, which stays as it is."""
    kept, text = copy.deepcopy(model("llama_gqa")), usual_ids()
    network = _changed(kept)
    want = drive(kept, composed("baseline"), text, uniform(rows=2)).logits
    caches = {
        "sdpa": DynamicCache(config=kept.config),
        "kvbench": composed("baseline").build(view_of(kept), uniform(rows=2)),
    }
    for name, cache in caches.items():
        with attention(network, name):
            parts = [network(part, past_key_values=cache).logits for part in (text[:, :PROMPT], text[:, PROMPT:])]
        assert_close(torch.cat(parts, dim=1), want)
    assert not kept._forward_pre_hooks


def operations_are_those_that_are_counted() -> None:
    """What a step is said to compute is what torch counts, of which attention sees half of all pairs."""
    arm, rows = _arm("llama_gqa"), 2
    with attention(arm.model, "kvbench"):  # type: ignore[arg-type]
        decode = DecodeArm(arm, uniform(rows=rows), usual_ids())
        said = work_of(arm, decode.cache, uniform(rows=rows), decode.cache.traffic(), 1, 1).operations
        with FlopCounterMode(display=False) as counter:
            decode.step()
    found = counter.get_flop_counts()["Global"]
    square = sum(flops for operation, flops in found.items() if "attention" in str(operation))
    linear = counter.get_total_flops() - square
    tokens = PROMPT + 1
    pairs = 2 * rows * LAYERS * HEADS * 2 * WIDTH * tokens * (tokens + 1) // 2
    norms = 2 * rows * tokens * (2 * LAYERS + 1) * HEADS * WIDTH  # multiplied, but by no matrix
    assert abs(said - linear - pairs) <= 2 * norms
