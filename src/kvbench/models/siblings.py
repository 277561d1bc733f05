"""Linear layers that read the same tokens, side by side in memory and as one product."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

Product = Callable[[Tensor], Tensor]  # of tokens [..., K] with a matrix: [..., n]
ATTENTION = ("q_proj", "k_proj", "v_proj")
FEED_FORWARD = ("gate_proj", "up_proj")


def siblings(model: nn.Module, names: Sequence[str]) -> Iterator[list[nn.Linear]]:
    """Yield the linear layers of these names that one of transformers' modules gives the same tokens."""
    for parent in model.modules():
        if not type(parent).__module__.startswith("transformers.models."):
            continue
        parts = [getattr(parent, name, None) for name in names]
        if not all(type(part) in (nn.Linear, _Sibling) for part in parts):
            continue
        linear = cast("list[nn.Linear]", parts)
        alike = {(part.in_features, part.weight.dtype, part.weight.device, part.bias is None) for part in linear}
        if len(alike) == 1:
            yield linear


def join(parts: Sequence[nn.Linear], *, by_columns: bool) -> None:
    """Lay the weights of several layers side by side, as one matrix [n, K] of which each has some rows; biases, too."""
    _join([part.weight for part in parts], by_columns)
    if parts[0].bias is not None:
        _join([part.bias for part in parts], by_columns=False)


def _join(parts: Sequence[Tensor], by_columns: bool) -> None:
    found = joint(parts)
    if found is not None and (found.t() if by_columns else found).is_contiguous():
        return
    whole = torch.cat([part.data for part in parts])
    if by_columns:
        whole = whole.t().contiguous().t()
    for part, mine in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = mine


def joint(parts: Sequence[Tensor]) -> Tensor | None:
    """Return what several weights [n, K], or biases [n], are the rows of, by rows or by columns; None if nothing."""
    first, rows = parts[0].data, sum(map(len, parts))
    stride, at = first.stride(), first.storage_offset()
    if stride not in {(1,), (first.shape[-1], 1), (1, rows)}:
        return None
    for part in parts:
        is_next = part.storage_offset() == at and part.stride() == stride
        if not is_next or part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return None
        at += len(part) * stride[0]
    return first.as_strided((rows, *first.shape[1:]), stride)


def fuse(model: nn.Module, product: Callable[[Tensor, Tensor | None], Product]) -> None:
    """Make one product of those that siblings make of one token per row; of several tokens each makes its own.

    The first sibling that is asked computes for all of them, and the others hand out their columns.

    Args:
        model: its siblings that were joined become others, which have the same weights.
        product: of a matrix [n, K] and a bias [n], or None.
    """
    for names in (ATTENTION, FEED_FORWARD):
        for parts in list(siblings(model, names)):
            weight = joint([part.weight for part in parts])
            bias = None if parts[0].bias is None else joint([part.bias for part in parts])
            if weight is None or (bias is None and parts[0].bias is not None):
                continue
            shared = _Joint(product(weight, bias), [part.out_features for part in parts])
            for index, part in enumerate(parts):
                part.__class__ = _Sibling
                made: Any = part
                made.joint, made.index, made.address = shared, index, part.weight.data_ptr()


class _Joint:
    def __init__(self, product: Product, widths: list[int]) -> None:
        self.product, self.widths = product, widths
        self._given: Tensor | None = None
        self._made: tuple[Tensor, ...] = ()

    def part(self, index: int, given: Tensor) -> Tensor | None:
        """Return a sibling's columns of the product with tokens [B, 1, K]; None if the first was given others."""
        if index == 0:
            self._given, self._made = given, self.product(given).split(self.widths, dim=-1)
        elif given is not self._given:
            return None
        made = self._made[index]
        if index == len(self.widths) - 1:
            self._given, self._made = None, ()
        return made


class _Sibling(nn.Linear):
    joint: _Joint
    index: int
    address: int  # where the weights were when they were joined

    def forward(self, input: Tensor) -> Tensor:
        """Return input [..., K] by the weights, and the bias."""
        if input.shape[-2] == 1 and self.weight.data_ptr() == self.address:
            made = self.joint.part(self.index, input)
            if made is not None:
                return made
        return super().forward(input)
