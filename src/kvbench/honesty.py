"""What a strategy must not do behind the bench's back: keep tensors it does not report, leave hooks, change the ids."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

UNREPORTED_BYTES = 2**16  # libraries keep small tensors of their own


class Misbehaviour(RuntimeError):
    """A strategy whose numbers cannot be trusted."""


@contextmanager
def watched(model: nn.Module, ids: Tensor) -> Iterator[None]:
    """Raise at the end if hooks were left on the model or the token ids were changed.

    Args:
        model: every strategy runs on.
        ids: every strategy reads.
    """
    hooks, before = num_hooks(model), ids.clone()
    yield
    left = num_hooks(model) - hooks
    if left:
        raise Misbehaviour(f"the strategy left {left} hooks on the model: what is timed next is not what it seems")
    if not torch.equal(ids, before):
        raise Misbehaviour("the strategy changed the token ids: its arm no longer does the baseline's work")


@contextmanager
def scores_watched(scorer: object) -> Iterator[None]:
    """Raise where a scorer's prompts are no numbers; not for what is timed, as looking at them is work.

    Args:
        scorer: what ranks a strategy's entries.
    """
    cls = type(scorer)
    prompt = cls.prompt  # type: ignore[attr-defined]

    def watched_prompt(self: object, view: object) -> Tensor:
        score: Tensor = prompt(self, view)
        if score.isnan().any():
            raise Misbehaviour(f"{cls.__name__}.prompt returned scores that are not a number: what stays is chance")
        return score

    cls.prompt = watched_prompt  # type: ignore[attr-defined]
    try:
        yield
    finally:
        cls.prompt = prompt  # type: ignore[attr-defined]


def num_hooks(model: nn.Module) -> int:
    """Return the hooks on all modules of a model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def live_storages() -> dict[int, int]:
    """Return the bytes of every tensor storage Python can reach, by address."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.layout == torch.strided}


def held_before(before: dict[int, int], reported: Iterable[Tensor]) -> int:
    """Return the bytes of what a cache holds that lived before it was built: tables that a warm-up has left.

    Args:
        before: live storages before the cache was built.
        reported: everything the cache holds.
    """
    storages = (t.untyped_storage() for t in reported)
    mine = {storage.data_ptr() for storage in storages if storage.nbytes()}  # the empty ones have no address
    return sum(size for address, size in before.items() if address in mine)


def check_reported(before: dict[int, int], reported: Iterable[Tensor]) -> None:
    """Raise if more tensors have come to life than a cache says it holds.

    Args:
        before: live storages before the cache was built.
        reported: everything the cache holds.

    Raises:
        Misbehaviour: with the bytes.
    """
    known = before.keys() | {t.untyped_storage().data_ptr() for t in reported}
    hidden = sum(size for address, size in live_storages().items() if address not in known)
    if hidden > UNREPORTED_BYTES:
        raise Misbehaviour(f"the strategy holds {hidden} bytes of tensors that its cache does not report")
