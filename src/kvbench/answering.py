"""What a measuring process does where something is asked: every arm answers, and answers are scored."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from kvbench.asking import all_cores
from kvbench.bench import Bench
from kvbench.columns import interval_columns
from kvbench.job import Job, Measured, Row
from kvbench.quality.conversing import Answer, batches, converse
from kvbench.quality.references import reference_of
from kvbench.quality.scores import judge_scores, length_ratio, mean_score, of_samples
from kvbench.reading import read
from kvbench.results.journal import Journal
from kvbench.types import RunShape
from kvbench.workloads.asked import Asked, Conversation
from kvbench.workloads.perplexity import Perplexity

Report = Callable[[str, float], None]


def answer(job: Job, journal: str, report: Report) -> Measured:
    """Ask every arm, untimed and with all cores; what a journal knows already is not asked again.

    Args:
        job: the run.
        journal: file that answers are written to as they come.
        report: told how far it is.
    """
    bench = Bench(job, report)
    names = [name for name in bench.arms if not bench.is_mute(name)]
    with all_cores(bench), Journal(Path(journal)) as found:
        return (read if isinstance(job.workload, Perplexity) else ask)(bench, names, found)


def ask(bench: Bench, names: Sequence[str], found: Journal) -> Measured:
    """Ask every question that a journal does not know, and score all answers.

    Args:
        bench: what arms there are.
        names: of those that can say something.
        found: what is known; what is new goes there.
    """
    asked = {name: bench.job.workload.conversations(bench.sources[name]) for name in names}
    measured = Measured(rows={name: {} for name in asked})
    for name, conversations in asked.items():
        _check_lengths(bench, name, conversations)
        refused = _refused(bench, name, conversations)
        if refused is not None:
            measured.rows[name] = {"status": "unsupported", "reason": refused}
            continue
        _ask(bench, name, conversations, found)
        mine = sorted(found.of(name), key=lambda row: (row["number"], row["turn"]))
        measured.samples += mine
        measured.rows[name] |= _columns(mine)
    if len(asked) == 2 and all("status" not in row for row in measured.rows.values()):
        measured.rows["strategy"] |= _compare(bench.job.workload, bench.job.spec.known_as, asked, measured.samples)
    return measured


def _ask(bench: Bench, name: str, conversations: Sequence[Conversation], found: Journal) -> None:
    arm, workload, tokenizer = bench.arms[name], bench.job.workload, bench.on[name].tokenizer
    assert tokenizer is not None
    done = {row["number"] for row in found.of(name)}
    groups = batches(conversations, workload.batch_size)
    for index, numbers in enumerate(groups):
        missing = [number for number in numbers if number not in done]
        if missing:  # rows of a batch are asked together again, so that every run asks the same batches
            mine = [conversations[number] for number in numbers]
            said = converse(arm, mine, question_in_cache=workload.question_in_cache, decoder=tokenizer)
            rows = {n: _rows(name, n, one, answers) for n, one, answers in zip(numbers, mine, said, strict=True)}
            found.add([rows[number] for number in missing])
        bench.report(f"answers {name}", (index + 1) / len(groups))


def _rows(arm: str, number: int, one: Conversation, answers: Sequence[Answer]) -> list[Row]:
    return [
        {
            "arm": arm,
            "task": one.task,
            "number": number,
            "turn": index,
            "context_tokens": len(one.context),
            "question_tokens": len(turn.question),
            "answer_tokens": len(said.tokens),
            "is_chat": one.is_chat,
            "is_ended": said.is_ended,
            "score": one.score_of(said.text, turn),
            "chance": one.chance,
            "depth": one.depth,
            "answer": said.text,
            "references_json": json.dumps(turn.references, ensure_ascii=False),
        }
        for index, (turn, said) in enumerate(zip(one.turns, answers, strict=True))
    ]


def _columns(rows: Sequence[Row]) -> Row:
    scores = of_samples(rows, "score")
    row: Row = {
        "asked_samples": len({row["number"] for row in rows}),
        "answer_length": float(np.mean([row["answer_tokens"] for row in rows])),
        "ended_share": float(np.mean([row["is_ended"] for row in rows])),
    }
    return {**row, **interval_columns("score", mean_score(scores))} if scores else row


def _compare(workload: Asked, weights: str, asked: dict[str, list[Conversation]], samples: Sequence[Row]) -> Row:
    if asked["strategy"] != asked["baseline"]:
        return {"score_verdict": "none", "score_reason": "the two networks do not read the same tokens"}
    mine, full = ([row for row in samples if row["arm"] == name] for name in ("strategy", "baseline"))
    same = [one["answer"] == other["answer"] for one, other in zip(mine, full, strict=True)]
    row: Row = {"same_share": float(np.mean(same))}
    if any(other["answer_tokens"] for other in full):
        lengths = (of_samples(rows, "answer_tokens") for rows in (mine, full))
        row |= interval_columns("length_ratio", length_ratio(*lengths))
    scores = [of_samples(rows, "score") for rows in (mine, full)]
    if not scores[0]:
        return row
    chance = mean_score(of_samples([each for each in full if each["score"] is not None], "chance")).value
    reference = reference_of(weights, workload, {task for task, _ in scores[1]})
    scored = judge_scores(*scores, chance=chance, reference=reference)
    row |= {"score_verdict": scored.verdict, "score_reason": scored.reason}
    if reference is not None:
        row["score_reference"] = reference.score
    return row if scored.delta is None else {**row, **interval_columns("score_delta", scored.delta)}


def _check_lengths(bench: Bench, name: str, conversations: Sequence[Conversation]) -> None:
    most, longest = bench.on[name].view.max_positions, max(one.longest for one in conversations)
    extra = max(len(one.turns[0].question) for one in conversations) if bench.job.workload.question_in_cache else 0
    if longest + extra > most:
        raise ValueError(
            f"a context with its questions and answers has up to {longest + extra} tokens, but the model reads at most "
            f"{most} positions; lower workload.prompt_tokens, or choose another model."
        )


def _refused(bench: Bench, name: str, conversations: Sequence[Conversation]) -> str | None:
    """Return why an arm cannot read one of the contexts, or None."""
    arm, made = bench.arms[name], bench.job.on_its_network if name == "strategy" else bench.job.baseline
    assert made is not None
    for tokens in sorted({len(one.context) for one in conversations}):
        run = RunShape(prompt_lengths=(tokens,) * bench.job.workload.batch_size, new_tokens=1)
        reason = made.unsupported(arm.view, run)
        if reason is not None:
            return reason
    return None
