"""Values that cross borders between the parts of kvbench; imports nothing of ours."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

SpanKind = Literal["context", "question", "answer"]
Phase = Literal["prefill", "decode"]
Part = Literal["all", "prompt", "new", "none"]
Saving = Literal["physical", "packed", "offloaded", "none"]
Fidelity = Literal["exact", "lossy_training_free", "uptrained", "trained", "structure_only"]


@dataclass(frozen=True, kw_only=True)
class Span:
    """A run of token positions with one role in a sample.

    Args:
        kind: "context" is what may be compressed, "question" asks about it, "answer" is what is scored.
        start: first position.
        stop: one past the last position.
    """

    kind: SpanKind
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sequence of token ids and the roles of its parts.

    Args:
        ids: token ids [T].
        spans: in order of position; they cover the sequence.
    """

    ids: tuple[int, ...]
    spans: tuple[Span, ...]

    @property
    def pieces(self) -> list[tuple[int, ...]]:
        """Token ids of each span."""
        return [self.ids[span.start : span.stop] for span in self.spans]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What the engine says before every forward pass, so that nothing guesses its phase from shapes.

    Args:
        phase: "prefill" reads the prompt, "repeat" reads a part of it once more, "decode" goes on from it.
        is_last_chunk: whether this pass ends the prompt, or its repetition; always true while decoding.
        repeated: columns of the prompt that a repetition is about; its pass ends with them.
    """

    phase: Phase | Literal["repeat"]
    is_last_chunk: bool
    repeated: slice | None = None


PREFILL = Step(phase="prefill", is_last_chunk=True)
PREFILL_CHUNK = Step(phase="prefill", is_last_chunk=False)
DECODE = Step(phase="decode", is_last_chunk=True)


@dataclass(frozen=True, eq=False)
class Projection:
    """What makes the keys, or the values, of a layer.

    Args:
        weight: [G, D, hidden], a view of the model's.
        bias: [G, D], or None for nothing.
    """

    weight: Tensor
    bias: Tensor | None

    def of_heads(self, heads: slice) -> Projection:
        """Return the projection of some of the KV heads."""
        return Projection(self.weight[heads], None if self.bias is None else self.bias[heads])


@dataclass(frozen=True, kw_only=True)
class StateShape:
    """A tensor that a recurrent layer keeps of everything it has read.

    Args:
        size: of one row.
        dtype: of its numbers.
        start: its numbers before anything is read.
    """

    size: tuple[int, ...]
    dtype: torch.dtype
    start: float = 0.0

    def fresh(self, rows: int, device: torch.device) -> Tensor:
        """Return the state of rows that have read nothing [B, ...]."""
        return torch.full((rows, *self.size), self.start, dtype=self.dtype, device=device)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.size) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """What one layer stores: an attention layer keys and values per token, a recurrent one its states.

    Args:
        query_heads: query heads H.
        kv_heads: KV heads G; H is a multiple of G.
        key_dim: width of a key.
        value_dim: width of a value.
        window: tokens a sliding layer sees, itself included; 0 where the layer sees everything.
        rotary: inverse frequencies [rotary_dim / 2] of rotate-half RoPE; None where keys are not rotated.
        output: the output projection, as it applies to each query head's values [H, D_v, hidden]; None if unknown.
        output_bias: what it adds [hidden]; None for nothing.
        key_projection: what makes the keys; None if unknown, or if something follows it but rotation.
        value_projection: what makes the values; None as for keys.
        donor: layer before it whose entries it reads, having none of its own; None where it stores what it reads.
        states: what a recurrent layer keeps, which has no heads; none for attention.
        values_are_keys: whether a value is its key, so that keys are all that is stored.
        part: of which tokens it keeps anything: of all, of the prompt's alone, of those behind the prompt alone, or of
            none.
    """

    query_heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int
    rotary: Tensor | None
    output: Tensor | None = None
    output_bias: Tensor | None = None
    key_projection: Projection | None = None
    value_projection: Projection | None = None
    donor: int | None = None
    states: tuple[StateShape, ...] = ()
    values_are_keys: bool = False
    part: Part = "all"

    @property
    def state_bytes(self) -> int:
        """Bytes of the states of one row."""
        return sum(state.row_bytes for state in self.states)

    @property
    def stored_dim(self) -> int:
        """Numbers stored per token and KV head."""
        return self.key_dim if self.values_are_keys else self.key_dim + self.value_dim

    def of_heads(self, heads: slice) -> LayerShape:
        """Return the shape of some of the KV heads."""
        share = self.query_heads // self.kv_heads
        queries = slice(heads.start * share, heads.stop * share)
        return replace(
            self,
            query_heads=queries.stop - queries.start,
            kv_heads=heads.stop - heads.start,
            output=None if self.output is None else self.output[queries],
            key_projection=None if self.key_projection is None else self.key_projection.of_heads(heads),
            value_projection=None if self.value_projection is None else self.value_projection.of_heads(heads),
        )


@dataclass(frozen=True, kw_only=True)
class Norm:
    """A norm and the linear layers that are all that reads it, by their names in the model.

    Args:
        norm: the norm.
        readers: the linear layers.
        width: channels between them.
    """

    norm: str
    readers: tuple[str, ...]
    width: int


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a model takes beside its cache.

    Args:
        weights_bytes: of parameters and buffers.
        hidden: width of a token between the layers.
        intermediate: width inside the feed-forward parts.
        vocabulary: tokens there are.
    """

    weights_bytes: int
    hidden: int
    intermediate: int
    vocabulary: int


@dataclass(frozen=True, kw_only=True)
class ModelView:
    """What a strategy may know of a model.

    Args:
        layers: one shape per layer.
        sizes: what it takes beside its cache.
        dtype: of keys and values.
        device: where they are made.
        max_positions: longest sequence the model can read.
        has_learned_positions: whether a position is a row of a table (GPT-2) rather than a rotation.
        norms: those that begin attention and feed-forward parts, in order; empty where they cannot be told.
        asked: how the command line asks for the model, for messages; "" if it was not loaded by name.
        is_untrained: whether parts of it that matter were added and never trained, so that what it says means nothing.
        is_compiled: whether products of a few rows are computed by C++ that was compiled for this processor.
        replays: whether a decode step is recorded once, and is the same work at the same addresses ever after.
        places: device of each layer, where they are not all on `device`; empty where they are.
    """

    layers: tuple[LayerShape, ...]
    sizes: Sizes
    dtype: torch.dtype
    device: torch.device
    max_positions: int
    has_learned_positions: bool
    norms: tuple[Norm, ...] = ()
    asked: str = ""
    is_untrained: bool = False
    is_compiled: bool = False
    replays: bool = False
    places: tuple[torch.device, ...] = ()

    def device_of(self, layer: int) -> torch.device:
        """Return the device that makes the keys and values of a layer."""
        return self.places[layer] if self.places else self.device

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Every device of the model, the one that reads ids first."""
        return tuple(dict.fromkeys((self.device, *self.places)))

    @property
    def keeps_context(self) -> bool:
        """Whether some layers keep nothing but what is made of the prompt, which the others forget."""
        return any(layer.part == "prompt" for layer in self.layers)

    @property
    def keeps_nothing(self) -> bool:
        """Whether every pass reads all tokens so far, of which no layer keeps anything."""
        return any(layer.part == "none" for layer in self.layers)

    @property
    def is_recurrent(self) -> bool:
        """Whether layers keep states."""
        return any(layer.states for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class RunShape:
    """How long the sequences of a batch are.

    Args:
        prompt_lengths: tokens of each row's prompt; shorter rows are padded on the left to the longest.
        new_tokens: tokens that follow the prompt, or None where nobody knows.
    """

    prompt_lengths: tuple[int, ...]
    new_tokens: int | None

    @property
    def batch_size(self) -> int:
        """Rows of the batch."""
        return len(self.prompt_lengths)

    @cached_property
    def prompt_tokens(self) -> int:
        """Columns of the padded prompt."""
        return max(self.prompt_lengths)

    @cached_property
    def padding(self) -> tuple[int, ...]:
        """Columns of padding on the left of each row."""
        return tuple(self.prompt_tokens - length for length in self.prompt_lengths)

    def of(self, part: Part) -> RunShape:
        """Return how long the sequences are to a layer that keeps this part of them."""
        if part == "new":
            return replace(self, prompt_lengths=(0,) * self.batch_size)
        return self if part == "all" else replace(self, new_tokens=0)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt that arrives while others run, and how much is generated after it.

    Args:
        number: its index in the list.
        arrival_s: seconds after the start, or after the end of the request that it follows.
        prompt: token ids [T]; where it follows another request, only what comes after that one's prompt and what was
            generated after it.
        new_tokens: tokens to generate greedily.
        group: which leaf of the tree of prefixes it belongs to, or which conversation.
        follows: number of the request whose end it waits for, or None.
    """

    number: int
    arrival_s: float
    prompt: tuple[int, ...]
    new_tokens: int
    group: int = 0
    follows: int | None = None
