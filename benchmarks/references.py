"""What the full cache of the embedded models scores: the references that later runs are held against.

    python -m benchmarks.references --runs runs/references

Every embedded model is asked what it was trained to answer, in runs like any other: one that is there already is not
made again. The scores go to src/kvbench/quality/references_embedded.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import kvbench
from kvbench.configuration import check, compose
from kvbench.quality import references
from kvbench.workloads.ruler.marks import MARKED

MODELS = ("tiny", "tiny-mha", "tiny-gqa", "tiny-mqa", "tiny-cla", "tiny-yoco")
NEEDLES = ["workload=ruler", "workload.wording=marks", f"workload.tasks=[{','.join(MARKED)}]", "workload.batch_size=8"]
ASKED = (
    ["workload=recall", "workload.prompt_tokens=512", "workload.samples=128"],
    ["workload=recall", "workload.samples=128"],
    ["workload=recall", "workload.samples=128", "workload.task=passkey"],
    [*NEEDLES, "workload.prompt_tokens=1024", "workload.samples=64"],
    ["workload=niah", "workload.samples=16"],
    ["workload=multi_turn", "workload.samples=64"],
)
ALONE = ["strategy=baseline", "compare=none", "quality=none", "measure.cell_seconds=0.1", "measure.min_rounds=2"]
OPEN = ("samples", "batch_size", "question_in_cache", "reference", "tasks")  # settings that leave the score as it is


def reference(model: str, asked: list[str], runs: Path) -> dict[str, Any]:
    """Return what a model scores of each task, and the settings with which it was asked."""
    overrides = [f"model={model}", *asked, *ALONE]
    workload = check(compose(overrides)).workload
    done = kvbench.run([*overrides, f"runs={runs}"])
    (row,) = done.rows.to_dict("records")
    if row["status"] != "ok":
        raise SystemExit(f"{model}, {' '.join(asked)}: {row['status']}: {row['reason']}. Remove {done.folder}.")
    answers = kvbench.load(done.folder, samples=True)
    turns = answers.groupby(["task", "number"], sort=False)["score"].mean()
    scores, counts = turns.groupby("task", sort=False).mean(), turns.groupby("task", sort=False).size()
    return {
        "source": "python -m benchmarks.references",
        "weights": model,
        "workload": type(workload).__name__,
        "settings": {key: value for key, value in asdict(workload).items() if key not in OPEN},
        "samples": int(counts.min()),
        "scores": {task: round(float(score), 4) for task, score in scores.items()},
    }


def main() -> None:
    """Ask every model, and write what it scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/references"))
    parser.add_argument("--models", nargs="*", default=MODELS)
    arguments = parser.parse_args()
    found = [reference(model, list(asked), arguments.runs) for model in arguments.models for asked in ASKED]
    lines = ",\n".join(f" {json.dumps(known)}" for known in found)
    Path(references.__file__).with_name(references.EMBEDDED).write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    for known in found:
        print(known["weights"], known["workload"], known["settings"]["prompt_tokens"], known["scores"])


if __name__ == "__main__":
    main()
