"""How an answer is held against what is right: each returns a score from 0 to 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from kvbench.workloads.longbench_scores import (
    classification,
    code_similarity,
    numbers,
    of_first_line,
    qa_f1,
    qa_f1_zh,
    rouge_l,
    rouge_l_zh,
)

Metric = Callable[[str, Sequence[str], Sequence[str]], float]  # answer, references, all classes there are


def exact(answer: str, references: Sequence[str], classes: Sequence[str]) -> float:
    """Return whether an answer is one of the references, but for white space around it."""
    return float(answer.strip() in {reference.strip() for reference in references})


def contains_all(answer: str, references: Sequence[str], classes: Sequence[str]) -> float:
    """Return the share of the references that are in an answer, in upper or lower case (RULER, string_match_all)."""
    return sum(reference.lower() in answer.lower() for reference in references) / len(references)


def contains_any(answer: str, references: Sequence[str], classes: Sequence[str]) -> float:
    """Return whether one of the references is in an answer, in upper or lower case (RULER, string_match_part)."""
    return float(any(reference.lower() in answer.lower() for reference in references))


METRICS: Final[Mapping[str, Metric]] = {
    "exact": exact,
    "contains_all": contains_all,
    "contains_any": contains_any,
    "qa_f1": qa_f1,
    "qa_f1_zh": qa_f1_zh,
    "qa_f1_first_line": of_first_line(qa_f1),
    "rouge_l": rouge_l,
    "rouge_l_zh": rouge_l_zh,
    "rouge_l_first_line": of_first_line(rouge_l),
    "classification_first_line": of_first_line(classification),
    "numbers": numbers,
    "code_similarity": code_similarity,
}
