"""What must hold where the first entries and the latest are exact: others are written once, as they are anywhere."""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor

from kvbench.cache.codecs.ends import EndsFormat, EndsPayload
from kvbench.cache.codecs.latent import LatentCodec, LatentPayload
from kvbench.cache.codecs.packed import PackedPayload
from kvbench.kernels.packed import Rows
from kvbench.models.view import view_of
from tests.support.checks import assert_close
from tests.support.models import model
from tests.support.moments import where
from tests.support.strategies import composed

SINKS, WINDOW, TOKENS = 3, 5, 20
PROMPTS = (1, SINKS, SINKS + WINDOW, SINKS + WINDOW + 1, 14, TOKENS)
SIDES: tuple[Literal["key_format", "value_format"], ...] = ("key_format", "value_format")
EACH = tuple(itertools.product((0, SINKS), (0, WINDOW)))[1:]  # exact first ones and latest, not none of both


def layer(sinks: int, window: int) -> LatentCodec:
    """Return how entries of a layer are written in coordinates, some of them exact."""
    ends = (f"codec.num_sink={sinks}", f"codec.window={window}", "codec.latent.kernel=reference")
    made = composed("rotatekv", where(), *ends).codec.of_layer(view_of(model("llama_gqa")), 0)
    assert isinstance(made, LatentCodec)
    return made


def text(dtype: torch.dtype = torch.float64) -> Tensor:
    """Return entries [2, 2, TOKENS, 8]."""
    return torch.randn(2, 2, TOKENS, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


def at(tokens: int = TOKENS) -> Tensor:
    """Return positions [2, 1, tokens], of which rows have their own."""
    return torch.arange(tokens, dtype=torch.int32)[None, None] + torch.tensor([[[0]], [[4]]], dtype=torch.int32)


def filled(how: EndsFormat, entries: Tensor, prompt: int, stop: int = TOKENS) -> EndsPayload:
    """Return a payload after a prompt and the tokens that follow it."""
    payload = how.empty(entries, TOKENS)
    payload.write(0, entries[:, :, :prompt], at()[:, :, :prompt])
    for slot in range(prompt, stop):
        payload.write(slot, entries[:, :, slot : slot + 1], at()[:, :, slot : slot + 1])
        payload.settle(at())
    return payload


def ends(codec: LatentCodec, side: Literal["key_format", "value_format"]) -> EndsFormat:
    """Return one side."""
    how = getattr(codec, side)
    assert isinstance(how, EndsFormat)
    return how


# -- oracles --------------------------------------------------------------------------------------------------------


def the_first_and_the_latest_are_exact() -> None:
    """They are what came in, bit for bit; all others are what they are where nothing is exact, however long prompts."""
    for (sinks, window), side, dtype in itertools.product(EACH, SIDES, (torch.float64, torch.bfloat16)):
        entries, how = text(dtype), ends(layer(sinks, window), side)
        alone = getattr(layer(0, 0), side).empty(entries, TOKENS)
        alone.write(0, entries, at())
        want = alone.read(TOKENS, at())
        assert not torch.equal(want, entries), "nothing is lost: the comparison proves nothing"
        for prompt, stop in itertools.product(PROMPTS, (9, 15, TOKENS)):
            stop = max(prompt, stop)
            got, last = filled(how, entries, prompt, stop).read(stop, at()), max(sinks, stop - window)
            assert torch.equal(got[:, :, :sinks], entries[:, :, : min(sinks, stop)])
            assert torch.equal(got[:, :, last:], entries[:, :, last:stop])
            torch.testing.assert_close(got[:, :, sinks:last], want[:, :, sinks:last], rtol=0, atol=1e-12)


def a_token_is_written_once() -> None:
    """Codes are those of a token when it leaves the window, and never change."""
    entries, how = text(), ends(layer(SINKS, WINDOW), "key_format")
    payload = how.empty(entries, TOKENS)
    assert isinstance(payload.inner, LatentPayload)
    packed = payload.inner.inner
    assert isinstance(packed, PackedPayload)
    before = torch.zeros(2, 1, 0, packed.kept[0].shape[3], dtype=torch.uint8)
    for slot in range(TOKENS):
        payload.write(slot, entries[:, :, slot : slot + 1], at()[:, :, slot : slot + 1])
        assert (packed.kept[0][:, :, before.shape[2] :] == 0).all(), "a token was written before it left the window"
        payload.settle(at())
        now = packed.kept[0][:, :, : max(0, slot + 1 - SINKS - WINDOW)].clone()
        assert torch.equal(now[:, :, : before.shape[2]], before)
        before = now
    assert before.shape[2] == TOKENS - SINKS - WINDOW
    assert before.any(dim=3).all()


def bytes_are_those_of_codes_and_exact_entries() -> None:
    """The closed forms are the bytes held, of any length, before and after it grew, and of what is in use."""
    for (sinks, window), side, capacity in itertools.product(EACH, SIDES, (1, SINKS, 9, TOKENS)):
        codec = layer(sinks, window)
        how, entries = ends(codec, side), text(torch.bfloat16)
        payload = how.empty(entries, capacity)
        for room in (capacity, capacity + 5):
            payload.grow(room, 0)
            between = max(0, room - sinks - window)
            exact = min(room, sinks) + (window + 1 if window else 0)
            packed = (1 * (16 // 4 + 4)) if side == "key_format" else (2 * (8 // 4 + 4))  # 2 bits, scale and least
            want = 2 * (between * packed + exact * 2 * 8 * 2)
            assert how.allocated_bytes(2, 8, room, torch.bfloat16) * 2 == want
            shared = {t.data_ptr() for t in (*codec.keys.basis.tensors(), *directions(codec))}
            held = [t for t in payload.tensors() if t.numel() > 0 and t.data_ptr() not in shared]
            assert sum(t.untyped_storage().nbytes() for t in held) == want
            assert payload.capacity == room
        full = how.used_bytes(2, 8, TOKENS, torch.bfloat16)
        assert full == (TOKENS - sinks - window) * packed + (sinks + window) * 2 * 8 * 2


def directions(codec: LatentCodec) -> tuple[Tensor, ...]:
    """Return what the values of a layer share."""
    basis = getattr(codec.values, "basis", None)
    return () if basis is None else basis.tensors()


def attention_is_that_on_what_is_read() -> None:
    """Products with entries and sums of them are those of what is read, wherever the window begins."""
    for (sinks, window), stop in itertools.product(EACH, (2, 9, 13, TOKENS)):
        codec, entries = layer(sinks, window), text()
        rows = torch.randn(2, 2, 3, 8, generator=torch.Generator().manual_seed(2)).double()
        weights = torch.rand(2, 2, 3, stop, generator=torch.Generator().manual_seed(3)).double()
        for side in SIDES:
            payload = filled(ends(codec, side), entries, 1, stop)
            made, whole = payload.entries(stop, at()), payload.read(stop, at())
            assert isinstance(made, Rows)
            assert made.exact == min(stop, sinks) + min(max(0, stop - sinks), window)
            assert_close(made.logits(rows), rows @ whole.transpose(-1, -2))
            if side == "value_format":
                assert_close(made.weighted(weights), weights @ whole)


def what_came_later_can_be_taken_back() -> None:
    """After going back the same tokens make the same entries, and others do not show."""
    entries, how = text(), ends(layer(SINKS, WINDOW), "key_format")
    payload = filled(how, entries, 6, 13)
    before, kept = payload.read(13, at()), payload.snapshot()
    for slot in range(13, 19):
        payload.write(slot, entries[:, :, :1] + 1, at()[:, :, slot : slot + 1])
        payload.settle(at())
    payload.restore(kept)
    assert torch.equal(payload.read(13, at()), before)
    for slot in range(13, TOKENS):
        payload.write(slot, entries[:, :, slot : slot + 1], at()[:, :, slot : slot + 1])
        payload.settle(at())
    assert torch.equal(payload.read(TOKENS, at()), filled(how, entries, 6).read(TOKENS, at()))
