"""What the scorers' settings, a missing output projection and keys that cannot be turned are refused with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from kvbench.models.view import view_of
from kvbench.strategies.budget.base import Uniform
from kvbench.strategies.selection.chunks import ChunkMean
from kvbench.strategies.selection.critical import CriticalOutput
from kvbench.strategies.selection.expected_attention import ExpectedAttention
from kvbench.strategies.selection.lag import LagRank
from kvbench.strategies.selection.question import QuestionAttention
from kvbench.strategies.selection.recency import Recency
from kvbench.strategies.selection.redundancy import Redundancy
from tests.support.checks import BUDGET, uniform
from tests.support.models import model
from tests.support.strategies import strategy
from tests.support.wrappers import output_is_unknown

expected = partial(ExpectedAttention, num_future=1, num_sink=0, epsilon=0.0, with_covariance=True, with_value_norm=True)
critical = partial(CriticalOutput, base=Recency(), first_share=0.5, epsilon=0.0, num_sink=0, num_recent=0)
redundancy = partial(Redundancy, window=8, kernel=7, importance_share=0.1, threshold=0.5)


def rerotated(model_name: str, *overrides: str) -> None:
    """Build a cache whose kept keys close ranks."""
    strategy("finch", *overrides, tokens=BUDGET).build(view_of(model(model_name)), uniform())


def rerotated_apart() -> None:
    """The same with layers that keep different numbers of entries."""
    made = replace(strategy("finch"), budget=Uniform(amount=BUDGET, unit="tokens", skip_layers=(0,)))
    made.build(view_of(model("llama_gqa")), uniform())


ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "partitions of nothing": (partial(LagRank, lag=0, num_sink=0), r"lag >= 1 and num_sink >= 0; got lag=0"),
    "no future": (partial(expected, num_future=0), r"num_future >= 1.*got num_future=0, num_sink=0, epsilon=0\.0"),
    "negative epsilon": (partial(expected, epsilon=-0.1), r"epsilon >= 0; .*epsilon=-0\.1"),
    "first share above 1": (partial(critical, first_share=1.5), r"first_share must be between 0 and 1; got 1\.5"),
    "critical epsilon": (partial(critical, epsilon=-1.0), r"strategy\.scorer\.epsilon must be 0 or more; got -1\.0"),
    "unknown output": (output_is_unknown, r"scorer=critical needs the output projection of every attention layer"),
    "chunks of nothing": (partial(ChunkMean, base=Recency(), length=0), r"scorer\.length must be at least 1; got 0"),
    "question of nothing": (partial(QuestionAttention, window=0), r"window must be at least 1 token; got 0"),
    "even kernel of votes": (partial(redundancy, kernel=4), r"kernel odd and >= 1; got window=8, kernel=4"),
    "share of importance": (partial(redundancy, importance_share=2.0), r"between 0 and 1 .*got importance_share=2\.0"),
    "cosine above 1": (partial(redundancy, threshold=1.5), r"threshold between -1 and 1; .*threshold=1\.5"),
    "turned more than once": (
        partial(rerotated, "llama_gqa", "strategy/trigger=every_step"),
        r"position=rerotated turns keys once.*trigger=prefill_end",
    ),
    "turned learned positions": (partial(rerotated, "gpt2"), r"this model's positions are learned and not rotations"),
    "turned beside windows": (partial(rerotated, "gemma3"), r"layers with a sliding window would see at a wrong"),
    "turned apart": (rerotated_apart, r"needs the same number of entries in every layer and head"),
}
