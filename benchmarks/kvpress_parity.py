"""The same methods in kvpress and here: which positions they keep, and how long they take.

    python3 -m venv /tmp/kvpress && /tmp/kvpress/bin/pip install torch==2.13.0 kvpress==0.5.5 transformers==5.2.0
    python -m benchmarks.kvpress_parity --kvpress /tmp/kvpress/bin/python --out benchmarks/results/kvpress

kvpress pins another transformers, so each side is a process of its own; times alternate between the sides and their
ratio is the median over rounds, unpaired. Same weights, same ids, half of the prompt kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from kvbench.cache.doors import ATTENTION
from kvbench.configuration import build_group, compose, resolved
from kvbench.engines.arm import DecodeArm
from kvbench.engines.eager import Eager
from kvbench.models.spec import TINY
from kvbench.models.view import view_of
from kvbench.strategies.base import CacheStrategy
from kvbench.tracing import trace
from kvbench.types import RunShape

METHODS: Mapping[str, tuple[str, Mapping[str, Any], tuple[str, ...]]] = {  # kvpress' press, its settings, ours
    "snapkv": ("SnapKVPress", {"window_size": 32, "kernel_size": 5}, ()),
    "knorm": ("KnormPress", {}, ("budget.skip_layers=[]",)),
    "tova": ("TOVAPress", {}, ("selector.num_recent=1",)),
    "keydiff": ("KeyDiffPress", {}, ()),
    "lagkv": ("LagKVPress", {"n_sink": 4, "lag_size": 128}, ()),
    "expected_attention": ("ExpectedAttentionPress", {"n_future_positions": 512, "n_sink": 4}, ()),
}
RATIO = 0.5


def strategy(name: str) -> CacheStrategy:
    """Return our method at half of the prompt, compressing once."""
    overrides = (
        "strategy/trigger=prefill_end",
        f"strategy.budget.amount={RATIO}",
        *(f"strategy.{text}" for text in METHODS[name][2]),
    )
    made: CacheStrategy = build_group(resolved(compose([f"strategy={name}", *overrides]))["strategy"], "strategy")
    return made


def ask_kvpress(python: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """Let kvpress answer a job in its own environment."""
    with tempfile.TemporaryDirectory() as scratch:
        question, answer = Path(scratch) / "job.json", Path(scratch) / "answer.json"
        presses = {
            name: (METHODS[name][0], {**METHODS[name][1], "compression_ratio": 1 - RATIO}) for name in job["names"]
        }
        question.write_text(json.dumps({**job, "presses": presses}))
        side = Path(__file__).with_name("kvpress_side.py")
        subprocess.run([python, str(side), str(question), str(answer)], check=True)
        rows: dict[str, Any] = json.loads(answer.read_text())["rows"]
        return rows


def parity(python: str, tokens: int) -> pd.DataFrame:
    """Return how many of the positions that kvpress keeps are kept here, on the embedded model and held-out text."""
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    text = (TINY / "held_out.txt").read_text(encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(TINY)(text, verbose=False).input_ids[:tokens]
    job = {"kind": "kept", "model": str(TINY), "dtype": "float32", "ids": ids, "threads": 1, "names": list(METHODS)}
    theirs, rows = ask_kvpress(python, job), []
    for name in METHODS:
        held = trace(model, strategy(name), torch.tensor([ids]), len(ids)).held[0]
        for layer, (mine, other) in enumerate(zip(held, theirs[name], strict=True)):
            sets = mine[0].expand(len(other), -1).tolist()
            for head, (ours, wanted) in enumerate(zip(sets, other, strict=True)):
                shared = len(set(ours) & set(wanted))
                row = {"method": name, "layer": layer, "head": head, "kept": len(set(ours) - {-1})}
                rows.append({**row, "kept_by_kvpress": len(wanted), "shared": shared})
    return pd.DataFrame(rows)


def times(python: str, contexts: Sequence[int], rounds: int) -> pd.DataFrame:
    """Return times of both sides [ms], alternating, on random weights of llama8's architecture."""
    from kvbench.configuration import check
    from kvbench.models.load import load
    from kvbench.runner import job_of

    job = job_of(check(compose(["model=llama8", "model.device=cpu", "quality=none"])))
    loaded = load(job.spec, seed=0, attention="sdpa", in_rows=True)  # as the other side will read them
    model, rows = loaded.model, []
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)  # type: ignore[operator]
        model.set_attn_implementation(ATTENTION)  # type: ignore[operator]
        for context in contexts:
            ids = torch.randint(0, 1000, (1, context), generator=torch.Generator().manual_seed(0))
            names = ["snapkv", "knorm"]
            asked = {"kind": "times", "model": folder, "dtype": "float32", "ids": ids[0].tolist(), "threads": 1}
            for number in range(rounds):
                theirs = ask_kvpress(python, {**asked, "names": names, "steps": 34})
                for name in names:
                    side = {"method": name, "context": context, "round": number}
                    rows.append({**side, "side": "kvpress", **theirs[name]})
                    rows.append({**side, "side": "kvbench", **_ours(model, name, ids, 34)})
    return pd.DataFrame(rows)


def _ours(model: Any, name: str, ids: torch.Tensor, steps: int) -> dict[str, float]:
    from kvbench.engines.arm import Arm

    run = RunShape(prompt_lengths=(ids.shape[1],), new_tokens=steps)
    arm = Arm(name=name, model=model, view=view_of(model), strategy=strategy(name), engine=Eager(prefill_chunk=0))
    longer = torch.cat([ids, ids[:, :steps]], dim=1)
    started = time.perf_counter()
    decoding = DecodeArm(arm, run, longer)
    prefill, taken = time.perf_counter() - started, []
    for _ in range(steps):
        started = time.perf_counter()
        decoding.step()
        taken.append(time.perf_counter() - started)
    return {"prefill_ms": 1e3 * prefill, "decode_ms": 1e3 * median(taken[2:])}


def main() -> None:
    """Compare, print and write."""
    logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kvpress", required=True, help="python of an environment that has kvpress")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--contexts", type=int, nargs="*", default=[2048, 8192])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    arguments.out.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    kept = parity(arguments.kvpress, arguments.tokens)
    kept.assign(commit=commit).to_parquet(arguments.out / "kept.parquet")
    sums = kept.groupby("method", sort=False)[["kept", "kept_by_kvpress", "shared"]].sum()
    print(sums.assign(shared_percent=(100 * sums["shared"] / sums["kept_by_kvpress"]).round(2)).to_string())
    if arguments.contexts:
        timed = times(arguments.kvpress, arguments.contexts, arguments.rounds)
        timed.assign(commit=commit).to_parquet(arguments.out / "times.parquet")
        sides = timed.set_index(["method", "context", "round", "side"]).unstack("side")
        for what in ("decode_ms", "prefill_ms"):
            ratio = sides[what]["kvbench"] / sides[what]["kvpress"]
            spread = ratio.groupby(level=["method", "context"], sort=False).agg(["median", "min", "max"]).round(3)
            print(f"\n{what}: kvbench over kvpress\n{spread.to_string()}")


if __name__ == "__main__":
    main()
