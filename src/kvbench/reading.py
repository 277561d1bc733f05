"""What the continuation of a text costs each arm, window by window."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from kvbench.bench import Bench
from kvbench.columns import interval_columns
from kvbench.job import Measured, Row
from kvbench.quality.evaluate import Likelihood, bits_per_byte, likelihood
from kvbench.quality.scores import score_delta
from kvbench.results.journal import Journal
from kvbench.workloads.perplexity import Perplexity

TASK = "text"


def read(bench: Bench, names: Sequence[str], found: Journal) -> Measured:
    """Score every window that a journal does not know, in lockstep where both arms read the same tokens.

    Args:
        bench: what arms there are.
        names: of those that can say something, the strategy's first.
        found: what is known; what is new goes there.
    """
    workload: Perplexity = bench.job.workload
    windows = {name: workload.scored(bench.sources[name]) for name in names}
    are_alike = bench.job.matched is None and len({str(ids) for ids in windows.values()}) == 1
    for group in [list(names)] if are_alike else [[name] for name in names]:
        for number, window in enumerate(windows[group[0]]):
            if all(row["number"] != number for row in found.of(group[0])):
                arms = [bench.arms[name] for name in group]
                ids = torch.tensor([window], device=arms[0].view.device)
                told = likelihood(arms, ids, context=workload.prompt_tokens, batch_size=1, progress=lambda share: None)
                found.add([[_row(name, index, number, workload, told) for index, name in enumerate(group)]])
            bench.report(f"text {' and '.join(group)}", (number + 1) / workload.windows)
    samples = {name: sorted(found.of(name), key=lambda row: row["number"]) for name in names}
    measured = Measured(rows={name: _columns(bench, name, windows[name], samples[name]) for name in names})
    measured.samples = [row for rows in samples.values() for row in rows]
    if len(names) == 2 and are_alike:
        measured.rows["strategy"] |= _compare(samples["strategy"], samples["baseline"])
    return measured


def _row(name: str, index: int, number: int, workload: Perplexity, told: Likelihood) -> Row:
    row: Row = {
        "arm": name,
        "task": TASK,
        "number": number,
        "turn": 0,
        "context_tokens": workload.prompt_tokens,
        "question_tokens": 1,
        "answer_tokens": told.tokens,
        "nll_nats": told.nll[index] / told.tokens,
        "true_rank": told.rank[index] / told.tokens,
    }
    if name == "strategy":
        row |= {"kl_nats": told.kl / told.tokens, "top1_agreement": told.agree / told.tokens}
    return row


def _columns(bench: Bench, name: str, windows: Sequence[Sequence[int]], rows: Sequence[Row]) -> Row:
    tokenizer, tokens = bench.on[name].tokenizer, sum(row["answer_tokens"] for row in rows)
    assert tokenizer is not None
    nll = _mean(rows, "nll_nats")
    num_bytes = sum(
        len(tokenizer.decode(ids[-row["answer_tokens"] :]).encode()) for ids, row in zip(windows, rows, strict=True)
    )
    return {
        "nll_nats": nll,
        "guess_nats": bench.guess_nats(name),
        "perplexity": math.exp(nll),
        "true_rank": _mean(rows, "true_rank"),
        "bits_per_byte": bits_per_byte(nll * tokens, num_bytes),
        "quality_tokens": tokens,
    }


def _compare(mine: Sequence[Row], full: Sequence[Row]) -> Row:
    """Return how far an arm's loss lies above the baseline's, window by window."""
    losses = [{(TASK, row["number"]): row["nll_nats"] for row in rows} for rows in (mine, full)]
    delta = interval_columns("nll_delta", score_delta(*losses))
    return {
        "nll_delta_nats": delta.pop("nll_delta"),
        **delta,
        "kl_nats": _mean(mine, "kl_nats"),
        "top1_agreement": _mean(mine, "top1_agreement"),
    }


def _mean(rows: Sequence[Row], column: str) -> float:
    return float(np.mean([row[column] for row in rows]))
