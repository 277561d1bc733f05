"""Tasks for the harness over files of this machine, and what the harness finds when it runs a model itself.

python -m tests.support.harness_tasks <folder of tasks> <file to write>
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from kvbench.models.spec import TINY
from kvbench.workloads.source import read_text
from tests.workloads.test_conversations import source, workload

COMMON = """
dataset_path: json
test_split: test
target_delimiter: ""
"""
RECALL = """
task: hidden
doc_to_text: "{{text}}"
doc_to_target: "{{answer}}"
output_type: generate_until
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 6
filter_list:
  - name: word
    filter:
      - function: regex
        regex_pattern: "([a-z]+)"
      - function: take_first
  - name: whole
    filter:
      - function: take_first
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
ON = """
task: going_on
training_split: train
fewshot_split: train
num_fewshot: 2
doc_to_text: "{{text}}"
doc_to_target: "{{answer}}"
output_type: generate_until
process_results: !function scoring.likeness
generation_kwargs:
  until: ["\\n\\n", "def "]
  max_gen_toks: 24
  do_sample: false
metric_list:
  - metric: likeness
    aggregation: mean
    higher_is_better: true
"""
OTHERS: dict[str, dict[str, Any]] = {  # each refused
    "chosen": {"output_type": "multiple_choice", "doc_to_choice": ["a", "b"]},
    "warm": {"generation_kwargs": {"until": ["x"], "do_sample": True, "temperature": 0.7}},
    "corpus": {"metric_list": [{"metric": "bleu", "aggregation": "bleu", "higher_is_better": True}]},
    "coded": {"unsafe_code": True},
    "far": {"dataset_path": "nobody/nothing_of_this_name", "dataset_kwargs": {}},
}
SCORING = """
from difflib import SequenceMatcher


def likeness(doc, results):
    return {"likeness": SequenceMatcher(None, results[0], doc["answer"]).ratio()}
"""


def write(folder: Path) -> Path:
    """Write tasks and their documents, and return their folder: values to recall, and text to go on with."""
    folder.mkdir()
    asked, drawn = source(), random.Random(0)
    assert asked.tasks is not None
    read, hidden = asked.tokenizer.decode, []
    for _ in range(24):
        one = asked.tasks.key_value(drawn, context_tokens=180, pairs=8, questions=1)
        *prompt, answer = (list(one.ids[span.start : span.stop]) for span in one.spans)
        text = read([token for piece in prompt for token in piece], skip_special_tokens=True)
        hidden.append({"text": text, "answer": read(answer).strip()})
    lines = [line for line in read_text(str(TINY / "held_out.txt")).splitlines() if 30 < len(line) < 90]
    on = [
        {"text": "\n".join(lines[at : at + 4]) + "\n" + lines[at + 4][:15], "answer": lines[at + 4][15:]}
        for at in drawn.sample(range(len(lines) - 5), 20)
    ]
    _task(folder, "hidden", RECALL, {"test": hidden})
    _task(folder, "going_on", ON, {"test": on[:12], "train": on[12:]})
    (folder / "scoring.py").write_text(SCORING)
    for name, changed in OTHERS.items():
        config = {"task": name, "doc_to_text": "{{text}}", "doc_to_target": "{{answer}}", **changed}
        text = "\n".join(f"{key}: {json.dumps(value)}" for key, value in config.items())
        _task(folder, name, text, {"test": on})
    return folder


def _task(folder: Path, name: str, text: str, splits: dict[str, list[dict[str, str]]]) -> None:
    files = {}
    for split, rows in splits.items():
        files[split] = str(folder / f"{name}-{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    own = [line for line in COMMON.splitlines() if line.partition(":")[0] not in text]
    kwargs = "" if "dataset_kwargs" in text else f"dataset_kwargs: {json.dumps({'data_files': files})}\n"
    (folder / f"{name}.yaml").write_text("\n".join(own) + f"\n{kwargs}{text}\n", encoding="utf-8")


def alone(folder: str, names: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Return what the harness finds with the embedded model, by transformers alone."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=str(TINY), dtype="float32", device="cpu", batch_size=1)
    manager = TaskManager(include_path=folder, include_defaults=False)
    found = simple_evaluate(model, tasks=names, task_manager=manager, log_samples=True, bootstrap_iters=0)
    samples: dict[str, list[dict[str, Any]]] = found["samples"]
    return {
        name: [
            {
                "filter": one["filter"],
                "answer": one["resps"][0][0],
                "score": one[one["metrics"][0]],
                "id": one["doc_id"],
            }
            for one in sorted(mine, key=lambda one: one["doc_id"])
        ]
        for name, mine in samples.items()
    }


def refused(folder: str, names: list[str]) -> dict[str, str]:
    """Return what each of the tasks is refused with."""
    found = {}
    for name in names:
        try:
            workload("lm_eval", f"workload.path={folder}", f"workload.tasks=[{name}]").conversations(source())
        except ValueError as error:
            found[name] = str(error)
    return found


if __name__ == "__main__":
    tasks, file = sys.argv[1:]
    said = {"alone": alone(tasks, ["hidden", "going_on"]), "refused": refused(tasks, [*OTHERS, "hiden"])}
    Path(file).write_text(json.dumps(said), encoding="utf-8")
