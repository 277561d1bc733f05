"""Arms on different networks with one thing wrong each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from kvbench import asking, bench
from kvbench.bench import Bench
from kvbench.engines.arm import Arm
from kvbench.job import Job, Row
from kvbench.types import RunShape
from kvbench.workloads.source import TokenSource
from tests.mutants.core_mutant import Mutant
from tests.support import matched

check_memory = bench.check_memory


def of_the_model(self: Bench, name: str, strategy: Any) -> Arm:
    """Run both arms on the model."""
    loaded = self.loaded
    return Arm(name=name, model=loaded.model, view=loaded.view, strategy=strategy, engine=self.engine)


def silent(self: Bench, name: str) -> Row:
    """Say of no arm that it runs on another network."""
    return {}


def of_the_baseline(self: Bench, run: RunShape, name: str) -> Tensor:
    """Give both arms the same ids."""
    return ids(self, run, "baseline")


def against_itself(found: Bench) -> None:
    """Compare the networks as if they were one."""
    object.__setattr__(found.job, "matched", None)
    asking.ask_likelihood(found)


def of_the_text(self: TokenSource, count: int, tokens: int) -> list[list[int]]:
    """Begin all windows as the embedded tokenizer does."""
    return windows(replace(self, prefix=self.prefix[:1]), count, tokens)


def without_parts(self: Job) -> Any:
    """Leave out what the strategy does beside choosing the network."""
    return self.baseline


def of_one(job: Job) -> None:
    """Look for room for the model alone."""
    check_memory(replace(job, matched=None, strategy=job.baseline))  # type: ignore[arg-type]


ids, windows = Bench.ids, TokenSource.windows

MUTANTS = (
    Mutant(
        name="both arms run on the model",
        patches=((Bench, "_arm", of_the_model),),
        killed_by=(matched.arms_run_on_their_own_networks,),
    ),
    Mutant(
        name="both caches are of the model's heads",
        patches=((Bench, "_arm", of_the_model),),
        killed_by=(matched.bytes_are_of_the_other_network,),
        error=IndexError,  # of ids of a larger vocabulary
    ),
    Mutant(
        name="rows do not name the network",
        patches=((Bench, "_network", silent),),
        killed_by=(matched.arms_run_on_their_own_networks,),
        error=KeyError,
    ),
    Mutant(
        name="ids are the model's",
        patches=((Bench, "ids", of_the_baseline),),
        killed_by=(matched.ids_are_of_each_vocabulary,),
    ),
    Mutant(
        name="networks are compared token by token",
        patches=((asking, "_ask_alone", against_itself),),
        killed_by=(matched.quality_is_of_each_network_alone,),
    ),
    Mutant(
        name="losses of different tokens are compared",
        patches=((TokenSource, "windows", of_the_text),),
        killed_by=(matched.quality_is_of_each_network_alone,),
    ),
    Mutant(
        name="the other network runs the full cache",
        patches=((Job, "on_its_network", property(without_parts)),),
        killed_by=(matched.a_strategy_runs_on_the_other_network,),
    ),
    Mutant(
        name="one network is forgotten",
        patches=((bench, "check_memory", of_one),),
        killed_by=(matched.both_networks_have_to_fit,),
    ),
)
