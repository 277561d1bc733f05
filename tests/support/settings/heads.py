"""Methods that treat heads differently, with scores of the tests' random models."""

from __future__ import annotations

from tests.support.head_scores import folder
from tests.support.settings import Setting

SCORES = f"budget.scores='{folder()}'"

SETTINGS: dict[str, Setting] = {
    "headkv": Setting(overrides=("scorer.window=4", "scorer.kernel=3", "budget.beta=1.5", SCORES)),
    "duoattention": Setting(overrides=("selector.num_sink=2", "budget.recent=6", SCORES), has_budget=False),
    "razorattention": Setting(
        overrides=("selector.num_sink=2", "budget.recent=6", "budget.induction_share=0.3", SCORES),
        has_budget=False,
        merges=True,
    ),
    "fastgen": Setting(
        overrides=("budget.num_special=2", "budget.threshold=0.7"), has_budget=False, data_dependent=True
    ),
}
