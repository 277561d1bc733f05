"""Questions to a run's arms, untimed and with all cores: likelihood, recall, text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from kvbench.bench import Bench
from kvbench.engines.arm import generate
from kvbench.job import Row
from kvbench.measure.host import LocalHost
from kvbench.quality import ATTENTION_STEPS, ATTENTION_WINDOWS
from kvbench.quality.evaluate import bits_per_byte, likelihood, recall
from kvbench.tracing import attention_lost, held_by
from kvbench.types import RunShape, Sample
from kvbench.workloads.asked import Asked
from kvbench.workloads.perplexity import Perplexity
from kvbench.workloads.recall import draw

RANDOM_WINDOW = 16  # tokens through both caches where text means nothing: exactness only


@contextmanager
def all_cores(bench: Bench) -> Iterator[None]:
    """Use every core for as long as nothing is timed."""
    torch.set_num_threads(LocalHost().num_cpus)
    try:
        yield
    finally:
        torch.set_num_threads(bench.job.settings.threads)


def ask_likelihood(bench: Bench) -> None:
    """Compare both arms on held-out text; where there is nothing to say only the logits are compared."""
    quality = bench.job.quality
    if "baseline" not in bench.arms or quality.text_windows == 0 or isinstance(bench.job.workload, Perplexity):
        return
    if bench.job.matched is not None or bench.arms["strategy"].view.is_untrained:
        _ask_alone(bench)
        return
    is_mute = bench.is_mute("baseline")
    context = bench.job.workload.runs()[-1].prompt_tokens if is_mute else quality.context_tokens
    scored = RANDOM_WINDOW if is_mute else quality.scored_tokens
    windows = bench.sources["baseline"].windows(1 if is_mute else quality.text_windows, context + 1 + scored)
    found = likelihood(
        (bench.arms["strategy"], bench.arms["baseline"]),
        torch.tensor(windows, device=bench.loaded.view.device),
        context=context,
        batch_size=quality.batch_size,
        progress=lambda share: bench.report("text", share),
    )
    row = bench.measured.rows["strategy"]
    row["max_logit_difference"] = found.difference
    if is_mute:
        return
    scored_text = [window[context + 1 :] for window in windows]
    for name, nll in zip(("strategy", "baseline"), found.nll, strict=True):
        bench.measured.rows[name] |= _likelihood_columns(bench, name, nll, scored_text)
    row["nll_delta_nats"] = (found.nll[0] - found.nll[1]) / found.tokens
    row["kl_nats"] = found.kl / found.tokens
    row |= found.packing_errors
    row["top1_agreement"] = found.agree / found.tokens


def _ask_alone(bench: Bench) -> None:
    """Ask two networks each for its own tokens of held-out text; what was never trained has nothing to say.

    Losses are compared where the tokens are the same.
    """
    quality, rows = bench.job.quality, bench.measured.rows
    length = quality.context_tokens + 1 + quality.scored_tokens
    asked = {
        name: bench.sources[name].windows(quality.text_windows, length)
        for name in bench.arms
        if not bench.is_mute(name)
    }
    for name, windows in asked.items():
        arm = bench.arms[name]
        found = likelihood(
            (arm,),
            torch.tensor(windows, device=arm.view.device),
            context=quality.context_tokens,
            batch_size=quality.batch_size,
            progress=partial(bench.report, f"text {name}"),
        )
        scored_text = [window[quality.context_tokens + 1 :] for window in windows]
        rows[name] |= _likelihood_columns(bench, name, found.nll[0], scored_text)
    if len(asked) == 2 and asked["strategy"] == asked["baseline"]:
        rows["strategy"]["nll_delta_nats"] = rows["strategy"]["nll_nats"] - rows["baseline"]["nll_nats"]


def _likelihood_columns(bench: Bench, name: str, nll: float, scored_text: Sequence[Sequence[int]]) -> Row:
    tokenizer, tokens = bench.on[name].tokenizer, sum(map(len, scored_text))
    assert tokenizer is not None
    num_bytes = sum(len(tokenizer.decode(ids).encode()) for ids in scored_text)
    return {
        "nll_nats": nll / tokens,
        "guess_nats": bench.guess_nats(name),
        "bits_per_byte": bits_per_byte(nll, num_bytes),
        "quality_tokens": tokens,
    }


def ask_recall(bench: Bench) -> None:
    """Ask every arm for what was hidden in its context, where the workload itself asks nothing."""
    quality = bench.job.quality
    if isinstance(bench.job.workload, Asked):
        return
    for name, arm in bench.arms.items():
        for task, mine in {} if arm.view.is_untrained else _samples(bench, name).items():
            bench.measured.rows[name][f"recall_{task}"] = recall(
                arm,
                mine,
                question_in_cache=False,
                batch_size=quality.batch_size,
                progress=partial(bench.report, f"recall {task}"),
            )
            bench.measured.rows[name]["recall_samples"] = len(mine)


def ask_attention(bench: Bench) -> None:
    """Ask how much of the full cache's attention, on short texts, goes to what the strategy has let go for good."""
    arm, full, tokens = bench.arms["strategy"], bench.job.baseline, bench.job.quality.attention_tokens
    if full is None or tokens == 0 or not arm.strategy.forgets or bench.is_mute("strategy"):
        return
    prompt = tokens - ATTENTION_STEPS
    run = RunShape(prompt_lengths=(prompt,) * ATTENTION_WINDOWS, new_tokens=ATTENTION_STEPS)
    if arm.strategy.unsupported(arm.view, run) is not None:  # such as a budget that is too small for short texts
        return
    bench.report("attention", 0.0)
    windows = bench.sources["strategy"].windows(ATTENTION_WINDOWS, tokens)
    ids = torch.tensor(windows, device=arm.view.device)
    lost = attention_lost(replace(arm, strategy=full), ids, held_by(arm, ids, prompt))
    bench.measured.rows["strategy"]["attention_lost"] = lost.mean().item()


def write_text(bench: Bench) -> None:
    """Let every arm continue the prompt on its own."""
    run = bench.job.workload.runs()[-1]
    if not run.new_tokens or run.new_tokens < 2:
        return
    for name, arm in bench.arms.items():
        tokenizer = bench.on[name].tokenizer
        if tokenizer is None or arm.view.is_untrained:
            continue
        bench.report("generate", 0.0)
        prompt = bench.ids(run, name)[:, : run.prompt_tokens]
        bench.measured.texts["prompt"] = tokenizer.batch_decode(prompt)
        bench.measured.texts[name] = tokenizer.batch_decode(generate(arm, run, prompt))


def _samples(bench: Bench, name: str) -> dict[str, list[Sample]]:
    """Return an arm's samples of each recall task that goes with every run."""
    tasks, quality = bench.sources[name].tasks, bench.job.quality
    if tasks is None or quality.recall_samples == 0:
        return {}
    lengths = (quality.recall_samples, quality.recall_tokens, quality.pairs)
    return {
        task: draw(tasks, task, *lengths, seed=bench.job.seed, question_in_cache=False)
        for task in ("key_value", "passkey")
    }
