"""What each scorer adds to the time to the first token, and each method takes off a decode step, beside the full cache.

    python -m benchmarks.methods_cost --out benchmarks/results/methods_cost

Model `llama8` with random weights on one CPU thread; every ratio is of blocks timed alternately in one process, with a
95% interval over rounds. Prompts are cut to a quarter, by the first method of each scorer; methods that let entries
leave while decoding hold a fifth. With --methods, the rows of others stay as they are. What methods have to know of the
model's heads is measured first, as `kvbench calibrate` does, on a single sample and into a folder that is not kept:
heads with random weights do nothing in particular, so that this tells how long such a method takes and nothing else.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.budget_curve import methods
from benchmarks.goals import Desk
from benchmarks.tables import keep
from kvbench.calibration.measures import MEASURES
from kvbench.cli import calibrate
from kvbench.configuration import ConfigError
from kvbench.engines.arm import Arm, PrefillArm
from kvbench.measure.statistics import ratio_interval
from kvbench.types import RunShape

MODEL = "llama8"
PROMPT, CONTEXT, NEW = 1024, 8192, 8
PROMPT_SHARE, DECODE_SHARE = 0.25, 0.2
ATTEMPTS = 3  # at a comparison in which other processes left no clean rounds, each after all others
DISTURBED = "no clean rounds"

Row = dict[str, Any]


class Learning(Desk):
    """A desk on which methods know of the model's heads what they need.

    Args:
        model: by its name.
        seconds: per comparison.
        folder: where that is kept.
    """

    def __init__(self, model: str, seconds: float, folder: Path) -> None:
        super().__init__(model, seconds)
        self.folder = folder
        self.learned: dict[str, str] = {}

    def learn(self, method: str) -> None:
        """Measure what a method needs to know of the model's heads, if it needs anything."""
        try:
            kind = calibrate.kind_of(method)
        except ConfigError:
            return
        if kind not in MEASURES:
            return
        overrides = [f"model={self.model}", "model.device=cpu"]
        calibrate.main(method, overrides, config_dir=None, samples=1, tokens=PROMPT, out=str(self.folder))
        self.learned[method] = f"strategy.budget.scores={self.folder}"

    def arm(self, strategy: str, *overrides: str) -> Arm:
        """Return a strategy on the model, with what it knows."""
        return super().arm(strategy, *overrides, *([self.learned[strategy]] if strategy in self.learned else []))


def arm(desk: Desk, method: str, share: float) -> Arm:
    """Return a method that keeps a share of the prompt, or what it keeps where it has no budget."""
    try:
        return desk.arm(method, "strategy.budget.unit=ratio", f"strategy.budget.amount={share}")
    except ConfigError:
        return desk.arm(method)


def one_of_each_scorer(desk: Desk, names: list[str]) -> list[str]:
    """Return the first method that scores in each way."""
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(type(arm(desk, name, PROMPT_SHARE).strategy.scorer).__name__, name)
    return list(first.values())


def prefill(desk: Desk, method: str) -> Iterator[Row]:
    """Yield the time to the first token over the full cache's."""
    run, ids = RunShape(prompt_lengths=(PROMPT,), new_tokens=NEW), desk.ids(PROMPT)
    arms = {name: PrefillArm(arm(desk, name, PROMPT_SHARE), run, ids) for name in ("baseline", method)}
    if isinstance(reason := arms[method].arm.strategy.unsupported(desk.bench.loaded.view, run), str):
        yield {"method": method, "what": "ttft", "tokens": PROMPT, "reason": reason}
        return
    row = _compared(desk, method, "ttft", PROMPT, arms, steps=1)
    yield row | {"scorer": type(arms[method].arm.strategy.scorer).__name__}


def decode(desk: Desk, method: str, full: Any) -> Iterator[Row]:
    """Yield the time of a decode step over the full cache's, for methods that go on letting entries leave."""
    made = arm(desk, method, DECODE_SHARE)
    run = RunShape(prompt_lengths=(CONTEXT,), new_tokens=NEW)
    if made.strategy.trigger.period == 0 or not made.strategy.budget.limits:
        return
    if isinstance(reason := made.strategy.unsupported(desk.bench.loaded.view, run), str):
        yield {"method": method, "what": "decode", "tokens": CONTEXT, "reason": reason}
        return
    amount = ("strategy.budget.unit=ratio", f"strategy.budget.amount={DECODE_SHARE}")
    try:
        mine = desk.decode(method, CONTEXT, *amount)
    except ConfigError:
        mine = desk.decode(method, CONTEXT)
    yield _compared(desk, method, "decode", CONTEXT, {"baseline": full, method: mine}, steps=NEW)


def _compared(desk: Desk, method: str, what: str, tokens: int, arms: dict[str, Any], *, steps: int) -> Row:
    paired = desk.compare(f"{what} of {method}", arms, steps=steps)
    found = ratio_interval(paired.samples, method, "baseline", "median")
    row: Row = {"method": method, "what": what, "tokens": tokens, "reason": "" if found else DISTURBED}
    return row | ({} if found is None else {"ratio": found.value, "low": found.low, "high": found.high})


def in_turn(desk: Desk, names: list[str], part: Callable[[str], Iterator[Row]]) -> Iterator[Row]:
    """Yield rows of methods; those that other processes disturbed come again when all others had their turn."""
    waiting = deque((name, 1) for name in names)
    while waiting:
        name, attempt = waiting.popleft()
        for row in part(name):
            if row["reason"] == DISTURBED and attempt < ATTEMPTS:
                desk.samples.pop()
                waiting.append((name, attempt + 1))
            else:
                yield row
        gc.collect()


def measured(desk: Desk, names: list[str]) -> Iterator[Row]:
    """Yield what each scorer adds to the time to the first token, and each method takes off a decode step."""
    yield from in_turn(desk, one_of_each_scorer(desk, names), lambda method: prefill(desk, method))
    full = desk.decode("baseline", CONTEXT)
    yield from in_turn(desk, names, lambda method: decode(desk, method, full))


def shown(rows: Iterator[Row]) -> Iterator[Row]:
    """Yield rows, each printed first."""
    for row in rows:
        value = f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" if "ratio" in row else row["reason"]
        print(f"{row['what']:8s}{row['method']:22s}{row['tokens']:>6}  {value}", flush=True)
        yield row


def main() -> None:
    """Measure, write one parquet of ratios and one of timed steps, and print the former."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=12.0, help="per method and comparison")
    parser.add_argument("--methods", nargs="*", default=None)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    names = arguments.methods or methods()
    with tempfile.TemporaryDirectory() as folder:
        desk = Learning(MODEL, arguments.seconds, Path(folder))
        for name in names:
            desk.learn(name)
        rows = list(shown(measured(desk, names)))
    keep(pd.DataFrame(rows).assign(model=MODEL, commit=commit), arguments.out / "ratios.parquet", ["method", "what"])
    keep(pd.concat(desk.samples).assign(commit=commit), arguments.out / "steps.parquet", ["comparison"])


if __name__ == "__main__":
    main()
