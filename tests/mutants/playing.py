"""Operations done again with one thing wrong each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from kvbench.engines import tape
from kvbench.kernels import playing
from tests.mutants.core_mutant import Mutant
from tests.mutants.native_rows import recompiled
from tests.support.playing import check

_mutant = partial(recompiled, playing, "SOURCE", "_library")


def whatever_it_says(func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Take no notice of how much is added."""
    return known(func, args, {}, out)


def known_to_be_constant(
    self: tape.Tape, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any
) -> Callable[[], object] | None:
    """Never make numbers anew that somebody counts on from."""
    self._constants.clear()
    return note(self, func, args, kwargs, out)


note, known = tape.Tape._note, playing.of_torch
MUTANTS = (
    _mutant("powers are of 3", "n = std::nearbyint(x * 1.44269504f)", "n = std::nearbyint(x)", check("softmax")),
    _mutant("what is hidden counts", "x < -87 ? 0 : y", "x < -1e30f ? 1 : y", check("softmax of what is hidden")),
    _mutant("a large number is no number", "exponential(a < -88 ? 88 : -a)", "exponential(-a)", check("silu")),
    _mutant("the rest is hidden", "hidden ? number : a", "hidden ? a : number", check("hide")),
    _mutant("all marks stay", "{ return !a; }", "{ return a; }", check("do not")),
    _mutant("what is equal differs", "{ return a != b; }", "{ return a == b; }", check("differ")),
    _mutant("the last dimension lies together", "out[k * step] = make(a[k * a_step]", "out[k] = make(a[k]",
            check("silu by columns"), check("copy to rows")),
    _mutant("rows are put to the first place", "far[where[k * o.steps[2][3]] *", "far[where[0] * 0 *",
            check("put rows"), check("put numbers"), check("take")),
    _mutant("nothing is negative", "return -a;", "return a;", check("negate"), check("rotate")),
    _mutant("kernels are left out", "return o.call(o.places[0])", "return", check("call a kernel")),
    _mutant("numbers change their sign", "return (float)a;", "return (float)-a;",
            check("torch.int32 as torch.float32")),
    _mutant("division is towards 0", "a / b - ((a % b != 0) & ((a < 0) != (b < 0)))", "a / b", check("divide"),
            check("remainder")),
    _mutant("the last of equals is the least", "given[k * o.steps[1][3]] < given", "given[k * o.steps[1][3]] <= given",
            check("the least of equals")),
    Mutant(name="how much is added does not matter", patches=((playing, "of_torch", whatever_it_says),),
           killed_by=(check("add twice as much"),)),
    Mutant(name="what was counted stays counted", patches=((tape.Tape, "_note", known_to_be_constant),),
           killed_by=(check("count on"), check("begin with nothing"))),
    Mutant(name="what kernels count from stays", patches=((tape.Tape, "_changes", lambda self, tensor: None),),
           killed_by=(check("a kernel's own place"),)),
)  # fmt: skip
