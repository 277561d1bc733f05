"""What kvpress keeps and how long it takes: runs in its own environment, which pins another transformers.

    <kvpress environment>/bin/python benchmarks/kvpress_side.py <job.json> <answer.json>

The job names a model folder, token ids and presses with their settings; nothing of kvbench is imported here.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import kvpress  # type: ignore[import-not-found, unused-ignore]
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging

torch.set_grad_enabled(False)
logging.disable_progress_bar()


def kept(model: Any, press: Any, ids: Tensor) -> list[list[list[int]]]:
    """Return the positions each layer and head keeps, found by looking the kept keys up among all of them."""
    full, pruned = DynamicCache(config=model.config), DynamicCache(config=model.config)
    model(ids, past_key_values=full, use_cache=True)
    with press(model):
        model(ids, past_key_values=pruned, use_cache=True)
    found = []
    layers: Any = zip(full.layers, pruned.layers, strict=True)
    for all_of, some in layers:
        same = (some.keys[0, :, :, None] == all_of.keys[0, :, None]).all(dim=-1)  # [G, k, n]
        assert bool((same.sum(dim=-1) == 1).all()), "a kept key is not one of the prompt's"
        found.append([sorted(row) for row in same.int().argmax(dim=-1).tolist()])
    return found


def times(model: Any, press: Any, ids: Tensor, steps: int) -> dict[str, float]:
    """Return the time of the prompt and the median time of a decode step [ms]."""
    cache = DynamicCache(config=model.config)
    started = time.perf_counter()
    with press(model):
        model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    prefill = time.perf_counter() - started
    token, at, taken = ids[:, -1:], ids.shape[1], []
    for step in range(steps):
        where = torch.tensor([[at + step]])
        started = time.perf_counter()
        model(token, past_key_values=cache, use_cache=True, position_ids=where, cache_position=where[0])
        taken.append(time.perf_counter() - started)
    return {"prefill_ms": 1e3 * prefill, "decode_ms": 1e3 * median(taken[2:])}


def main() -> None:
    """Answer one job."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"])).eval()
    ids = torch.tensor([job["ids"]])
    rows: dict[str, Any] = {}
    for name, (press, settings) in job["presses"].items():
        made = getattr(kvpress, press)(**settings)
        if job["kind"] == "kept":
            rows[name] = kept(model, made, ids)
        else:
            rows[name] = times(model, made, ids, job["steps"])
    Path(sys.argv[2]).write_text(json.dumps({"kvpress": version("kvpress"), "rows": rows}))


if __name__ == "__main__":
    main()
