"""The operations of one decode step on a CPU, noted once and done again on the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from kvbench.engines.eager import forward
from kvbench.kernels import playing, told

if TYPE_CHECKING:
    from torch import nn

    from kvbench.cache.kv_cache import KVCache

HOST = ("_local_scalar_dense", "lift_fresh", "nonzero", "masked_select")  # numbers that pass through the host
_CONSTANTS = ("arange", "zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "zeros_like", "scalar_tensor")
_EMPTY = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
_COPIES = ("_to_copy", "clone", "to", "contiguous")


def recorded(model: nn.Module, cache: KVCache, ids: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what does a step for ids [B, 1]; the cache has counted its token, and nothing of it is done yet."""
    before, given = cache.snapshot(), ids.clone()
    with Tape() as tape:
        logits = forward(model, cache, given)
    cache.restore(before)
    cache.skip()

    def replay(ids: Tensor) -> Tensor:
        given.copy_(ids)
        tape.play()
        return logits.clone()

    return replay


class Tape(TorchDispatchMode):
    """Notes what a step does to tensors, every one of which it keeps where it is.

    What C++ can do is done there, and Python is asked for the rest.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Callable[[], object]] = []
        self._telling = told.listening(self._note_call)
        self._waiting: list[playing.Operation] = []  # to be called together, before what comes next
        self._constants: dict[int, Callable[[], object]] = {}  # by storage, what makes numbers that are never others

    def __enter__(self) -> Tape:
        self._telling.__enter__()
        return super().__enter__()  # type: ignore[no-any-return, no-untyped-call]

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        self._telling.__exit__(*raised)
        self._flush()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note it.

        Raises:
            RuntimeError: if the host reads what comes of it.
        """
        if func.overloadpacket.__name__ in HOST:
            raise RuntimeError(f"a step that reads numbers of tensors on the host cannot be recorded; it calls {func}.")
        out = func(*args, **(kwargs or {}))
        self._note(func, args, kwargs or {}, out)
        return out

    def _note(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        if func._schema.is_mutable:
            for each in (*args[:1], *kwargs.values()):
                self._changes(each)
        operations = playing.of_torch(func, args, kwargs, out)
        if operations is not None:
            self._waiting += operations
            return
        again = _again(func, args, kwargs, out)
        if again is not None and func.overloadpacket.__name__ in _CONSTANTS:
            self._constants[_storage(out)] = again
        elif again is not None:
            self._flush()
            self.calls.append(again)

    def _changes(self, tensor: object) -> None:
        """Have numbers that are no constants after all made anew before everything else."""
        constant = self._constants.pop(_storage(tensor), None) if isinstance(tensor, Tensor) else None
        self.calls[:0] = [] if constant is None else [constant]

    def _note_call(self, call: told.Call) -> None:
        for each in call.kept:
            self._changes(each)
        operation = playing.of_call(call)
        if operation is None:
            self._flush()
            self.calls.append(call)
        else:
            self._waiting.append(operation)

    def _flush(self) -> None:
        if self._waiting:
            self.calls.append(playing.Playing(self._waiting))
            self._waiting = []

    @property
    def is_native(self) -> bool:
        """Whether Python is asked for nothing."""
        return all(isinstance(call, playing.Playing) for call in self.calls)

    def play(self) -> None:
        """Do everything again."""
        for call in self.calls:
            call()


def _again(func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> Callable[[], object] | None:
    """Return what does an operation again, into the tensors that came of it; None where there is nothing to do."""
    name = func.overloadpacket.__name__
    if func._schema.is_mutable:
        return partial(func, *args, **kwargs)
    made = [each for each in pytree.tree_leaves(out) if isinstance(each, Tensor)]
    given = {_storage(each) for each in pytree.tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
    if name in _EMPTY or all(_storage(each) in given for each in made):
        return None
    if name in _COPIES:
        return partial(made[0].copy_, args[0])
    found = _with_out(func)
    if found is None or len(found[1]) != len(made):
        return partial(_copied, func, args, kwargs, made)
    again = partial(found[0], *args, **kwargs, **dict(zip(found[1], made, strict=True)))
    return again if len(made) > 1 else _quicker(name, args, kwargs, made[0]) or again


def _quicker(name: str, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Callable[[], object] | None:
    """Return torch's own function where it does what the operation did: it is called in half of the time."""
    before, function = out.clone(), getattr(torch, name, None)
    if function is None:
        return None
    again = partial(function, *args, **kwargs, out=out)
    try:
        again()
    except (TypeError, RuntimeError):
        return None
    if torch.equal(out, before):
        return again
    out.copy_(before)
    return None


def _copied(func: Any, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> None:
    new = [each for each in pytree.tree_leaves(func(*args, **kwargs)) if isinstance(each, Tensor)]
    for out, made in zip(outs, new, strict=True):
        out.copy_(made)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@cache
def _with_out(func: Any) -> tuple[Any, tuple[str, ...]] | None:
    """Return the same operation that is given tensors to write to, and what it calls these."""
    wanted = [(argument.name, str(argument.type)) for argument in func._schema.arguments]
    for name in func.overloadpacket.overloads():
        other = getattr(func.overloadpacket, name)
        outs = tuple(a.name for a in other._schema.arguments if a.alias_info is not None and a.alias_info.is_write)
        given = [(a.name, str(a.type)) for a in other._schema.arguments if a.name not in outs]
        if outs and given == wanted:
            return other, outs
    return None
