"""Questions to a run's arms, untimed and with all cores: likelihood, recall, text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from kvbench.bench import Bench
from kvbench.engines.arm import generate
from kvbench.measure.host import LocalHost
from kvbench.quality.evaluate import bits_per_byte, likelihood, recall
from kvbench.types import Sample
from kvbench.workloads.recall import Recall, draw

RANDOM_WINDOW = 16  # tokens through both caches where weights are random: exactness only


@contextmanager
def all_cores(bench: Bench) -> Iterator[None]:
    """Use every core for as long as nothing is timed."""
    torch.set_num_threads(LocalHost().num_cpus)
    try:
        yield
    finally:
        torch.set_num_threads(bench.job.settings.threads)


def ask_likelihood(bench: Bench) -> None:
    """Compare both arms on held-out text; on random weights only the logits are compared."""
    quality, is_random = bench.job.quality, bench.loaded.weights == "random"
    if "baseline" not in bench.arms or quality.text_windows == 0:
        return
    context = bench.job.workload.runs()[-1].prompt_tokens if is_random else quality.context_tokens
    scored = RANDOM_WINDOW if is_random else quality.scored_tokens
    windows = bench.source.windows(1 if is_random else quality.text_windows, context + 1 + scored)
    found = likelihood(
        bench.arms["strategy"],
        bench.arms["baseline"],
        torch.tensor(windows, device=bench.loaded.view.device),
        context=context,
        batch_size=quality.batch_size,
        progress=lambda share: bench.report("text", share),
    )
    row = bench.measured.rows["strategy"]
    row["max_logit_difference"] = found.difference
    if is_random:
        return
    scored_text = [window[context + 2 :] for window in windows]
    assert bench.loaded.tokenizer is not None
    num_bytes = sum(len(bench.loaded.tokenizer.decode(ids).encode()) for ids in scored_text)
    for name, nll in zip(("strategy", "baseline"), found.nll, strict=True):
        bench.measured.rows[name] |= {
            "nll_nats": nll / found.tokens,
            "bits_per_byte": bits_per_byte(nll, num_bytes),
            "quality_tokens": found.tokens,
        }
    row["nll_delta_nats"] = (found.nll[0] - found.nll[1]) / found.tokens
    row["kl_nats"] = found.kl / found.tokens
    row |= found.packing_errors
    row["top1_agreement"] = found.agree / found.tokens


def ask_recall(bench: Bench) -> None:
    """Ask every arm for what was hidden in its context."""
    quality, workload = bench.job.quality, bench.job.workload
    samples = _samples(bench)
    aware = isinstance(workload, Recall) and workload.question_in_cache
    for name, arm in bench.arms.items():
        for task, mine in samples.items():
            bench.measured.rows[name][f"recall_{task}"] = recall(
                arm,
                mine,
                question_in_cache=aware,
                batch_size=workload.batch_size if isinstance(workload, Recall) else quality.batch_size,
                progress=partial(bench.report, f"recall {task}"),
            )
            bench.measured.rows[name]["recall_samples"] = len(mine)


def write_text(bench: Bench) -> None:
    """Let every arm continue the prompt on its own."""
    run = bench.job.workload.runs()[-1]
    if bench.loaded.tokenizer is None or not run.new_tokens or run.new_tokens < 2:
        return
    prompt = bench.ids(run)[:, : run.prompt_tokens]
    bench.measured.texts["prompt"] = bench.loaded.tokenizer.batch_decode(prompt)
    for name, arm in bench.arms.items():
        bench.report("generate", 0.0)
        bench.measured.texts[name] = bench.loaded.tokenizer.batch_decode(generate(arm, run, prompt))


def _samples(bench: Bench) -> dict[str, list[Sample]]:
    """Return the samples of each recall task: the workload's own, or those that go with every run."""
    tasks, quality, workload = bench.source.tasks, bench.job.quality, bench.job.workload
    if tasks is None:
        return {}
    if isinstance(workload, Recall):
        return {workload.task: workload.draw(tasks, workload.samples, bench.source)}
    if quality.recall_samples == 0:
        return {}
    lengths = (quality.recall_samples, quality.recall_tokens, quality.pairs)
    return {
        task: draw(tasks, task, *lengths, seed=bench.job.seed, question_in_cache=False)
        for task in ("key_value", "passkey")
    }
