"""Recurrent networks with one thing wrong each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.state import StateLayer
from kvbench.models import load, mamba, mamba2, recurrence, rwkv
from kvbench.types import StateShape
from tests.mutants.core_mutant import Mutant
from tests.support import recurrent

chunks, keep, fresh = recurrence.chunks, StateLayer.keep, StateShape.fresh
convolved, read_states = mamba.convolved, mamba2.read_states


def without_the_rest(numbers: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Read only what is there at once, again and again."""
    first, *others = chunks(numbers, *tensors)
    yield first
    yield from (tuple(t[:, : u.shape[1]] for t, u in zip(first, other, strict=True)) for other in others)


def of_the_next_token(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Forget that a state depends on all before it."""
    decay, states, start = context.saved_tensors
    before = torch.cat([start[:, None], states[:, :-1]], dim=1)
    return gradients[0] * before, gradients[0], gradients[0][:, 0] * decay[:, 0]


def without_a_past(
    step: Tensor, fed: Tensor, by: Tensor, of: Tensor, rate: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Forget the state before."""
    return read_states(step, fed, by, of, rate, torch.zeros_like(state))


def at_other_rates(step: Tensor, fed: Tensor, by: Tensor, of: Tensor, rate: Tensor, state: Tensor) -> Any:
    """Take rates in another order."""
    return read_states(step, fed, by, of, rate.flip(0), state)


def of_earlier_inputs(mixer: Any, inputs: Tensor, window: Tensor, real: Tensor | None) -> Any:
    """Have inputs before these a token earlier than they were."""
    return convolved(mixer, inputs, window.roll(1, dims=1), real)


def no_peaks(key: Tensor, most: Tensor, fall: Tensor) -> Tensor:
    """Divide by nothing."""
    return torch.cat([most[:, None].clamp(min=-50), torch.zeros_like(key)], dim=1)


def unshifted(rows: Tensor, last: Tensor) -> Tensor:
    """Take each token for its own predecessor."""
    return rows


def forgets_between_passes(rows: Tensor, last: Tensor) -> Tensor:
    """Begin every pass with nothing before it."""
    return torch.cat([torch.zeros_like(last)[:, None], rows[:, :-1]], dim=1)


def all_but_the_last(self: StateLayer, states: Sequence[Tensor], tokens: int) -> None:
    """Leave one state as it was."""
    keep(self, [*states[:-1], self.states[-1]], tokens)


def in_new_storage(self: StateLayer, snapshot: Any) -> None:
    """Go back to other tensors."""
    self.seen, self.states = snapshot["seen"], tuple(state.clone() for state in snapshot["states"])


def only_the_count(self: StateLayer, snapshot: Any) -> None:
    """Go back to the count of tokens, not to the states."""
    self.seen = snapshot["seen"]


def everything(self: StateLayer, tokens: int) -> None:
    """Take padding for tokens."""


def in_twice_the_width(self: StateShape, rows: int, device: torch.device) -> Tensor:
    """Keep states in float64, whatever is said."""
    made = fresh(self, rows, device)
    return made.to(torch.float64 if made.dtype == torch.float32 else made.dtype)


def none_of_ours() -> dict[str, Any]:
    """Leave every network to transformers."""
    return {}


steps, loop = recurrent.steps_equal_the_full_forward, recurrent.chunks_equal_a_loop
PIECES = (1, 13, 2, 8)

MUTANTS = (
    Mutant(
        name="later pieces are the first one",
        patches=((mamba, "chunks", without_the_rest), (rwkv, "chunks", without_the_rest)),
        killed_by=tuple(partial(loop, name, 20) for name in recurrent.SCANNED),
    ),
    Mutant(
        name="gradients do not go back in time",
        patches=((recurrence._Recurrence, "backward", staticmethod(of_the_next_token)),),
        killed_by=tuple(partial(loop, name, 20) for name in recurrent.SCANNED),
    ),
    Mutant(
        name="tokens taken together see each other only",
        patches=((mamba2, "read_states", without_a_past),),
        killed_by=(partial(steps, "mamba2"),),
    ),
    Mutant(
        name="a convolution takes older inputs",
        patches=((mamba, "convolved", of_earlier_inputs), (mamba2, "convolved", of_earlier_inputs)),
        killed_by=(partial(steps, "mamba"), partial(steps, "mamba2"), partial(steps, "mamba", PIECES)),
    ),
    Mutant(
        name="heads fall at each other's rates",
        patches=((mamba2, "read_states", at_other_rates),),
        killed_by=(partial(loop, "mamba2", 3), partial(recurrent.equals_transformers, "mamba2")),
    ),
    Mutant(
        name="weights are not scaled",
        patches=((rwkv, "_peaks", no_peaks),),
        killed_by=(recurrent.large_keys_do_not_overflow,),
    ),
    Mutant(
        name="no token has a predecessor",
        patches=((rwkv, "_shifted", unshifted),),
        killed_by=(partial(recurrent.equals_transformers, "rwkv"),),
    ),
    Mutant(
        name="passes do not know each other",
        patches=((rwkv, "_shifted", forgets_between_passes),),
        killed_by=(partial(steps, "rwkv"), partial(steps, "rwkv", PIECES)),
    ),
    Mutant(
        name="a norm is left out",
        patches=((mamba, "normed", lambda norm, hidden: hidden),),
        killed_by=(partial(recurrent.equals_transformers, "mamba"),),
    ),
    Mutant(
        name="a state is not kept",
        patches=((StateLayer, "keep", all_but_the_last),),
        killed_by=tuple(partial(steps, name) for name in recurrent.NAMES),
    ),
    Mutant(
        name="restoring makes new storage",
        patches=((StateLayer, "restore", in_new_storage),),
        killed_by=tuple(partial(recurrent.restore_is_exact, name) for name in recurrent.NAMES),
    ),
    Mutant(
        name="restoring leaves the states",
        patches=((StateLayer, "restore", only_the_count),),
        killed_by=tuple(partial(recurrent.restore_is_exact, name) for name in recurrent.NAMES),
    ),
    Mutant(
        name="padding is read",
        patches=((StateLayer, "real", everything),),
        killed_by=tuple(partial(recurrent.padded_rows_equal_rows_alone, name) for name in recurrent.NAMES),
    ),
    Mutant(
        name="states are wider than said",
        patches=((StateShape, "fresh", in_twice_the_width),),
        killed_by=tuple(partial(recurrent.bytes_are_the_closed_form, name, torch.bfloat16) for name in recurrent.NAMES),
    ),
    Mutant(
        name="transformers' networks are used",
        patches=((load, "recurrent", none_of_ours),),
        killed_by=tuple(partial(recurrent.checkpoints_of_transformers_are_loaded, name) for name in recurrent.NAMES),
        error=AttributeError,
    ),
)
