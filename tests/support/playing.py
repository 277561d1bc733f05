"""What holds of recorded operations that are done again in C++, or in torch where C++ does not know them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import silu
from torch.utils._python_dispatch import _disable_current_modes

from kvbench.engines.tape import Tape
from kvbench.kernels import few_rows, told

B, G, M, D = 2, 3, 37, 16
Step = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """An operation, and what it is given.

    Args:
        step: of tensors; it returns a tensor, and may change what it is given.
        given: shapes of float32 numbers.
        is_known: whether C++ does all of it.
        dtype: of the numbers.
    """

    step: Step
    given: tuple[tuple[int, ...], ...]
    is_known: bool = True
    dtype: torch.dtype = torch.float32


def _places(seed: int, *shape: int) -> Tensor:
    return torch.randint(0, M, shape, generator=torch.Generator().manual_seed(seed))


WHERE = _places(1, B, G, 1)
MASK = torch.rand(B, 1, 1, M, generator=torch.Generator().manual_seed(2)) < 0.3
LEAST = torch.zeros(B, G, dtype=torch.int64)
NUMBERS = (torch.float32, torch.int32, torch.int64)
CODES = _places(3, B, G, M).int()
ROWS = torch.randperm(M, generator=torch.Generator().manual_seed(4))[:5]


def _put(whole: Tensor, row: Tensor) -> Tensor:
    return whole.scatter_(2, WHERE[..., None].expand(-1, -1, -1, D), row)


def _put_numbers(whole: Tensor, number: Tensor) -> Tensor:
    return whole.scatter_(2, WHERE[:, :1].expand(-1, G, -1), number)


def _rotated(rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = rows.chunk(2, dim=-1)
    return rows * cos + torch.cat([-second, first], dim=-1) * sin


class _Both(ctypes.Structure):
    _fields_: ClassVar = [("out", ctypes.c_void_p), ("given", ctypes.c_void_p)]


def _place(given: Tensor) -> Tensor:
    """Add to zeros in a kernel."""

    def kernel(_: int) -> None:
        with _disable_current_modes():  # torch sees nothing of what a kernel does
            out.add_(given)

    out = torch.zeros_like(given)
    told.call(kernel, _Both(out.data_ptr(), given.data_ptr()), out, given)
    return out


CASES = {
    "negate": Case(torch.neg, ((B, M),)),
    "silu": Case(lambda x: silu(x * 60), ((B, 1, M),)),
    "silu by columns": Case(lambda x: silu(x.mT), ((B, M, D),)),
    "add": Case(torch.add, ((B, G, M), (M,))),
    "add to itself": Case(lambda x, y: x.add_(y), ((B, M), (B, 1))),
    "add twice as much": Case(lambda x, y: torch.add(x, y, alpha=2), ((M,), (M,)), is_known=False),
    "add a number": Case(lambda x: x + 2, ((M,),)),
    "add a number of another kind": Case(lambda x: x + 0.5, ((M,),), is_known=False, dtype=torch.int32),
    "subtract": Case(lambda x, y: x - y, ((B, M), (M,)), dtype=torch.int32),
    "subtract in place": Case(lambda x: x.sub_(3), ((B, M),), dtype=torch.int64),
    "add a product": Case(torch.addcmul, ((B, 1, D), (B, G, D), (D,))),
    "take a product away": Case(lambda x, y: torch.addcmul(x, x, y, value=-1), ((B, D), (D,))),
    "add three products": Case(lambda x, y: torch.addcmul(x, x, y, value=3), ((B, D), (D,)), is_known=False),
    "turn": Case(lambda x: (x * 50).cos() + (x * 50).sin(), ((B, D),)),
    "remainder": Case(lambda x: x % 7, ((B, M),), dtype=torch.int64),
    "remainder below 0": Case(lambda x: x % -7, ((B, M),), dtype=torch.int32),
    "divide": Case(lambda x: x // 4, ((B, M),), dtype=torch.int64),
    "divide by what may be 0": Case(lambda x, y: x // (y * 0 + 1), ((M,), (M,)), is_known=False, dtype=torch.int64),
    "divide towards 0": Case(
        lambda x: torch.div(x, 4, rounding_mode="trunc"), ((M,),), is_known=False, dtype=torch.int64
    ),
    "clamp": Case(lambda x: x.clamp(-1, 1), ((B, M),)),
    "clamp below": Case(lambda x: x.clamp(min=1), ((B, M),), dtype=torch.int64),
    "clamp above": Case(lambda x: x.clamp(max=1), ((B, M),), dtype=torch.int32),
    "larger": Case(torch.maximum, ((B, M), (M,))),
    "smaller": Case(torch.minimum, ((B, M), (M,)), dtype=torch.int32),
    **{
        f"compare: {name}": Case(getattr(torch, name), ((B, 400), (400,)), dtype=torch.int32)
        for name in ("ne", "eq", "gt", "lt", "ge", "le")
    },
    "the least": Case(lambda x: x.argmin(dim=-1, keepdim=True), ((B, G, M),)),
    "the least of each row": Case(lambda x: x.argmin(dim=-1), ((B, G, M),)),
    "the least, to a place": Case(lambda x: torch.argmin(x, dim=-1, out=LEAST).clone(), ((B, G, M),)),
    "the least of each column": Case(lambda x: x.argmin(dim=0), ((B, M),), is_known=False),
    "the least of equals": Case(lambda x: x.clamp(min=0).argmin(dim=-1), ((B, G, M),)),
    "multiply": Case(torch.mul, ((B, G, 1, D), (D,))),
    "multiply by itself, turned": Case(lambda x: x * x.mT, ((M, M),)),
    "scale": Case(lambda x: x * 0.3, ((B, G, M, D),)),
    "scale in five dimensions": Case(lambda x: x * 0.3, ((B, G, M, 1, D),), is_known=False),
    "scale in float64": Case(lambda x: x.double() * 0.3, ((M,),), is_known=False),
    "hide": Case(lambda x: x.masked_fill(MASK, -torch.inf), ((B, G, 1, M),)),
    "differ": Case(lambda x: x.masked_fill(CODES != 5, 0), ((B, G, M),)),
    "do not": Case(lambda x: x.masked_fill(~MASK[:, :, 0], 7), ((B, G, M),)),
    "softmax": Case(lambda x: (x * 30).softmax(dim=-1), ((B, G, 1, M),)),
    "softmax of what is hidden": Case(lambda x: x.masked_fill(MASK, -torch.inf).softmax(dim=-1), ((B, G, 1, M),)),
    "softmax along another dimension": Case(lambda x: x.softmax(dim=0), ((B, M),), is_known=False),
    "join": Case(lambda x, y: torch.cat([x[..., 3:], y], dim=1), ((B, 3, D), (B, 5, D - 3))),
    "copy": Case(lambda x, y: x.copy_(y), ((B, M, D), (M, 1))),
    "copy to rows": Case(lambda x: x.mT.contiguous(), ((B, M, D),)),
    **{
        f"{kind} as {other}": Case(lambda x, other=other: x.to(other), ((B, M),), dtype=kind)
        for kind in NUMBERS
        for other in NUMBERS
        if kind != other
    },
    "numbers as halves": Case(lambda x: x.half(), ((M,),), is_known=False),
    "copy marks": Case(lambda x: x.masked_fill(MASK.clone(), 1), ((B, G, 1, M),)),
    "put rows": Case(_put, ((B, G, M, D), (B, G, 1, D))),
    "put rows that lie apart": Case(lambda x, y: _put(x, y.transpose(1, 2)), ((B, G, M, D), (B, 1, G, D))),
    "put numbers": Case(_put_numbers, ((B, G, M), (B, G, 1))),
    "put along another dimension": Case(lambda x, y: x.scatter_(1, WHERE.clamp(max=G - 1), y), ((B, G, M), (B, G, M))),
    "put one number": Case(lambda x: x.scatter_(2, WHERE, 7), ((B, G, M),), is_known=False),
    "put whole rows": Case(lambda x, y: x.index_copy_(1, ROWS, y), ((B, M, D), (B, 5, D))),
    "put positions": Case(lambda x, y: x.index_copy_(0, ROWS, y), ((M,), (5,)), dtype=torch.int32),
    "take": Case(lambda x: x.gather(2, WHERE), ((B, G, M),)),
    "take rows": Case(lambda x: x.index_select(-2, ROWS), ((B, M, D),)),
    "take positions": Case(lambda x: x.index_select(0, ROWS), ((M,),), dtype=torch.int64),
    "rotate": Case(_rotated, ((B, G, 1, D), (B, 1, 1, D), (B, 1, 1, D))),
    "call a kernel": Case(lambda x, y: few_rows.normed(x, y, 1e-6) * 2, ((M, D), (D,))),
    "count": Case(lambda x: x * torch.arange(float(D)), ((D,),)),
    "begin with nothing": Case(lambda x: torch.zeros(M, D).index_copy_(0, ROWS, x), ((5, D),), is_known=False),
    "a kernel's own place": Case(_place, ((M, D),), is_known=False),
    "count on": Case(lambda x: torch.arange(float(D)).add_(x), ((D,),), is_known=False),
}


def again_is_as_before(name: str) -> None:
    """An operation done again, on other numbers, says what torch says of them; and so it does the time after."""
    case = CASES[name]
    generator = torch.Generator().manual_seed(len(name))

    def some(shape: tuple[int, ...]) -> Tensor:
        numbers = torch.randn(shape, generator=generator)
        return numbers if case.dtype.is_floating_point else (numbers * 10).to(case.dtype)

    given = [some(shape) for shape in case.given]
    with Tape() as tape:
        out = case.step(*given)
    assert (len(tape.calls) == 1 and tape.is_native) == case.is_known
    for _ in range(2):
        for each in given:
            each.copy_(some(tuple(each.shape)))
        copies = [each.clone() for each in given]
        tape.play()
        want = case.step(*copies)
        torch.testing.assert_close(out, want, rtol=2e-6, atol=1e-7)
        for one, other in zip(given, copies, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-6, atol=1e-7)


def check(name: str) -> Callable[[], None]:
    """Return the oracle of one case."""
    return partial(again_is_as_before, name)
