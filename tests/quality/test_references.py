"""What is known of a model is found for the same questions only, and is what the paper or a run says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kvbench.configuration import check, compose
from kvbench.quality import references
from kvbench.quality.references import reference_of
from kvbench.workloads.asked import Asked
from kvbench.workloads.longbench_data import TASKS as LONGBENCH
from kvbench.workloads.ruler.workload import TASKS as RULER

CHAT = "meta-llama/Llama-2-7b-chat-hf"


def workload(*overrides: str) -> Asked:
    """Return a composed workload."""
    found = check(compose([*overrides])).workload
    assert isinstance(found, Asked)
    return found


@pytest.fixture(scope="module")
def ruler() -> Asked:
    """RULER at 4,096 tokens."""
    return workload("workload=ruler", "workload.prompt_tokens=4096", "model=qwen3-8b")


def test_a_published_mean_is_that_of_all_its_tasks_at_its_length(ruler: Asked) -> None:
    found = reference_of("Qwen/Qwen3-8B", ruler, RULER)
    assert found is not None
    assert (found.score, found.samples) == (0.963, 13 * 500)
    assert "NVIDIA/RULER" in found.source
    assert reference_of("Qwen/Qwen3-8B", ruler, RULER[1:]) is None
    assert reference_of("Qwen/Qwen3-8B", ruler, [*RULER, "another"]) is None
    assert reference_of("Qwen/Qwen3-8B", replace(ruler, prompt_tokens=4000), RULER) is None
    assert reference_of("Qwen/Qwen3-14B", ruler, RULER) is None
    assert reference_of("", ruler, RULER) is None
    assert reference_of("Qwen/Qwen3-8B", ruler, []) is None


def test_scores_of_single_tasks_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvbench.workloads.longbench.LongBench.__post_init__", lambda self: None)
    asked = workload("workload=longbench", "model=llama-2-7b", f"workload.tasks=[{','.join(LONGBENCH)}]")
    found = reference_of(CHAT, asked, ["trec", "lcc"])
    assert found is not None
    assert found.score == pytest.approx((0.615 + 0.524) / 2)
    assert found.samples == 400


@pytest.mark.parametrize(
    ("given", "known"), [("none", None), (0.0, (0.0, 0, "workload.reference")), (0.7, (0.7, 0, "workload.reference"))]
)
def test_what_is_said_of_a_model_beats_what_is_stored(
    given: Any, known: tuple[float, int, str] | None, ruler: Asked
) -> None:
    found = reference_of("Qwen/Qwen3-8B", replace(ruler, reference=given), RULER)
    assert (found and (found.score, found.samples, found.source)) == known


def test_every_stored_score_is_one_of_a_workload_that_there_is() -> None:
    seen = set()
    for known in references._stored():
        kind = {"LongBench": "longbench", "Ruler": "ruler", "Niah": "niah", "MultiTurn": "multi_turn"}
        fields = compose([f"workload={kind.get(known['workload'], 'recall')}"])["workload"]
        assert set(known["settings"]) <= set(fields)
        assert known["samples"] > 0
        assert known["scores"]
        assert all(0 <= score <= 1 for score in known["scores"].values())
        case = (known["weights"], known["workload"], str(known["settings"]))
        assert case not in seen, "stored twice"
        seen.add(case)
    assert {"tiny", CHAT} <= {weights for weights, _, _ in seen}
