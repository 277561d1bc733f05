"""Scores of LongBench that get one thing wrong."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from kvbench.workloads import longbench_scores, metrics
from tests.mutants.core_mutant import Mutant
from tests.support import longbench_scores as scores

WORDS, CHINESE = scores.words_are_counted_without_case_punctuation_and_articles, scores.chinese_words_are_those_of_jieba
ROUGE, CHINESE_ROUGE = (
    scores.rouge_is_of_distinct_words_in_order_over_sentences,
    scores.chinese_rouge_is_of_the_words_of_jieba,
)
LONG, CLASSES = scores.rouge_scores_sentences_of_any_length, scores.classes_that_are_named_share_the_score
LINE, NUMBERS = scores.the_first_line_is_the_first_that_says_something, scores.numbers_that_are_named_share_the_score
CODE = scores.code_is_compared_line_by_line_with_difflib


def instead(**broken: metrics.Metric) -> tuple[tuple[object, str, object], ...]:
    """Return what puts other metrics in place of some."""
    return ((metrics, "METRICS", dict(metrics.METRICS) | broken),)


def of_sets(answer: Sequence[str], reference: Sequence[str]) -> float:
    """Count each word once."""
    common = len(set(answer) & set(reference))
    return 2 * common / (len(set(answer)) + len(set(reference))) if common else 0.0


def recall_alone(answer: Sequence[str], reference: Sequence[str]) -> float:
    """Forgive whatever else is said."""
    return sum(word in answer for word in reference) / max(1, len(reference))


def as_it_stands(text: str) -> list[str]:
    """Normalise nothing."""
    return text.split()


def of_the_first_reference(answer: str, references: Sequence[str], classes: Sequence[str]) -> float:
    """Know one reference."""
    return longbench_scores.qa_f1(answer, references[:1], classes)


def of_words_in_any_order(answer: str, reference: str) -> float:
    """Forget the order."""
    one, other = set(answer.replace(".", " ").split()), set(reference.replace(".", " ").split())
    return 2 * len(one & other) / max(1, len(one) + len(other))


def any_class(answer: str, references: Sequence[str], classes: Sequence[str]) -> float:
    """Count an answer that names the right class among others."""
    return float(any(reference in answer for reference in references))


def parts_count(answer: str, references: Sequence[str], classes: Sequence[str]) -> float:
    """Count names that are part of the right one."""
    named = [name for name in classes if name in answer]
    return max(1 / len(named) if reference in named else 0.0 for reference in references)


def any_number(answer: str, references: Sequence[str], classes: Sequence[str]) -> float:
    """Count an answer that has the number among others."""
    return float(any(number in answer for one in references for number in re.findall(r"\d+", one)))


def by_an_edit_distance(answer: str, references: Sequence[str], classes: Sequence[str]) -> float:
    """Compare by the longest common subsequence."""
    line = next((line for line in answer.lstrip("\n").split("\n") if not longbench_scores._COMMENT.search(line)), "")
    return max(round(200 * _common(line, one) / max(1, len(line) + len(one))) / 100 for one in references)


def _common(one: str, other: str) -> int:
    row = [0] * (len(other) + 1)
    for left in one:
        row_before = row
        row = [0]
        for at, right in enumerate(other):
            row.append(row_before[at] + 1 if left == right else max(row[-1], row_before[at + 1]))
    return row[-1]


def of_all_lines(answer: str, references: Sequence[str], classes: Sequence[str]) -> float:
    """Compare whatever was written."""
    return max(round(100 * SequenceMatcher(None, answer, one).ratio()) / 100 for one in references)


MUTANTS: tuple[Mutant, ...] = (
    Mutant(name="words are sets", patches=((longbench_scores, "_f1", of_sets),), killed_by=(WORDS, CHINESE)),
    Mutant(name="precision is nothing", patches=((longbench_scores, "_f1", recall_alone),), killed_by=(WORDS, CHINESE)),
    Mutant(name="nothing is normalised", patches=((longbench_scores, "_english", as_it_stands),), killed_by=(WORDS,)),
    Mutant(
        name="articles are found in words",
        patches=((longbench_scores, "_ARTICLE", re.compile("a|an|the")),),
        killed_by=(WORDS,),
    ),
    Mutant(
        name="the first reference is the only one",
        patches=instead(qa_f1=of_the_first_reference),
        killed_by=(WORDS,),
    ),
    Mutant(
        name="Chinese is cut at blanks",
        patches=((longbench_scores, "_cut", str.split),),
        killed_by=(CHINESE, CHINESE_ROUGE),
    ),
    Mutant(
        name="Chinese is cut into characters",
        patches=((longbench_scores, "_cut", list),),
        killed_by=(CHINESE, CHINESE_ROUGE),
    ),
    Mutant(
        name="Chinese punctuation stays",
        patches=((longbench_scores, "_NO_PUNCTUATION_ZH", longbench_scores._NO_PUNCTUATION),),
        killed_by=(CHINESE,),
    ),
    Mutant(
        name="words have no order",
        patches=((longbench_scores, "_rouge_l", of_words_in_any_order),),
        killed_by=(ROUGE, CHINESE_ROUGE),
    ),
    Mutant(
        name="functions call themselves as often as ever",
        patches=((longbench_scores, "_recursion", contextlib.nullcontext),),
        killed_by=(LONG,),
        error=RecursionError,
    ),
    Mutant(
        name="one class among others is enough",
        patches=instead(classification_first_line=any_class),
        killed_by=(CLASSES,),
    ),
    Mutant(name="parts of a class count", patches=instead(classification_first_line=parts_count), killed_by=(CLASSES,)),
    Mutant(
        name="every line counts",
        patches=instead(qa_f1_first_line=longbench_scores.qa_f1, rouge_l_first_line=longbench_scores.rouge_l),
        killed_by=(LINE,),
    ),
    Mutant(name="one number among others is enough", patches=instead(numbers=any_number), killed_by=(NUMBERS,)),
    Mutant(name="an edit distance", patches=instead(code_similarity=by_an_edit_distance), killed_by=(CODE,)),
    Mutant(name="all lines are compared", patches=instead(code_similarity=of_all_lines), killed_by=(CODE,)),
)
