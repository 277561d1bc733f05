"""How LongBench holds an answer against one that is right.

Source: Bai et al., arXiv:2308.14508; LongBench/metrics.py and eval.py at github.com/THUDM/LongBench, commit 2e00731.
Scores are those of these files, but for what `rouge_l` and `classification` say.
"""

from __future__ import annotations

import logging
import re
import string
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import SequenceMatcher
from functools import cache
from typing import TYPE_CHECKING

from kvbench.folders import cache_folder

if TYPE_CHECKING:
    from kvbench.workloads.metrics import Metric

_CHINESE_PUNCTUATION = (  # first and last code points; the published list lacks some of each block, U+300A for one
    (0x2013, 0x2014), (0x2018, 0x2019), (0x201B, 0x201F), (0x2026, 0x2027), (0x3001, 0x3003), (0x300B, 0x3011),
    (0x3014, 0x301F), (0x3030, 0x3030), (0x303E, 0x303F), (0xFE4F, 0xFE4F), (0xFF01, 0xFF0D), (0xFF0F, 0xFF0F),
    (0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF64),
)  # fmt: skip
_NO_PUNCTUATION = dict.fromkeys(map(ord, string.punctuation))
_NO_PUNCTUATION_ZH = _NO_PUNCTUATION | dict.fromkeys(
    code for first, last in _CHINESE_PUNCTUATION for code in range(first, last + 1)
)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_COMMENT = re.compile(r"[`#]|//")


def best(judge: Callable[[str, str, Sequence[str]], float]) -> Metric:
    """Return what scores an answer against the reference that fits it best."""

    def score(answer: str, references: Sequence[str], classes: Sequence[str]) -> float:
        return max(judge(answer, reference, classes) for reference in references)

    return score


def of_first_line(judge: Metric) -> Metric:
    """Return what scores the first line of an answer that says anything."""

    def score(answer: str, references: Sequence[str], classes: Sequence[str]) -> float:
        return judge(answer.lstrip("\n").partition("\n")[0], references, classes)

    return score


@best
def qa_f1(answer: str, reference: str, classes: Sequence[str]) -> float:
    """Return the F1 of an answer's words, without case, punctuation and articles."""
    return _f1(_english(answer), _english(reference))


@best
def qa_f1_zh(answer: str, reference: str, classes: Sequence[str]) -> float:
    """Return the F1 of an answer's words, as jieba finds them, without case and punctuation."""
    return _f1(_chinese(answer), _chinese(reference))


@best
def rouge_l(answer: str, reference: str, classes: Sequence[str]) -> float:
    """Return the F of ROUGE-L of the package `rouge`: of distinct words, over sentences that end with a full stop.

    Deviates: sentences of about a thousand words exceed Python's recursion limit in that package, for which the
        published script counts 0; here they are scored.
    """
    return _rouge_l(answer, reference)


@best
def rouge_l_zh(answer: str, reference: str, classes: Sequence[str]) -> float:
    """Return `rouge_l` of the words that jieba finds."""
    return _rouge_l(" ".join(_cut(answer)), " ".join(_cut(reference)))


@best
def classification(answer: str, reference: str, classes: Sequence[str]) -> float:
    """Return one over the classes that an answer names, if the right one is among them.

    Names that are part of the right one do not count.
    Deviates: the published loop passes over one of two such names that follow each other; published classes have none.
    """
    named = [name for name in classes if name in answer and (name == reference or name not in reference)]
    return 1 / len(named) if reference in named else 0.0


@best
def numbers(answer: str, reference: str, classes: Sequence[str]) -> float:
    """Return the share of an answer's numbers that are the reference's: a count, or that of a paragraph."""
    found, right = re.findall(r"\d+", answer), re.findall(r"\d+", reference)[:1]
    return sum(number in right for number in found) / max(1, len(found))


@best
def code_similarity(answer: str, reference: str, classes: Sequence[str]) -> float:
    """Return how alike an answer's first line that is no comment and a reference are, in whole hundredths.

    It is the ratio of fuzzywuzzy where python-Levenshtein is not installed, which the published requirements do not
    name: that of difflib. With it, scores are those of an edit distance, and may be others.
    """
    lines = answer.lstrip("\n").split("\n")
    line = next((line for line in lines if not _COMMENT.search(line)), "")
    if line == reference:
        return 1.0
    return round(100 * SequenceMatcher(None, line, reference).ratio()) / 100


def _f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    """Return the harmonic mean of precision and recall of words, each as often as it stands there."""
    common = sum((Counter(answer) & Counter(reference)).values())
    return 2 * common / (len(answer) + len(reference)) if common else 0.0


def _english(text: str) -> list[str]:
    return _ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def _chinese(text: str) -> list[str]:
    words = ("".join(word.lower().translate(_NO_PUNCTUATION_ZH).split()) for word in _cut(text))
    return [word for word in words if word]


def _rouge_l(answer: str, reference: str) -> float:
    from rouge import Rouge

    if not answer.strip(".") or not reference.strip("."):  # nothing but ends of sentences, which the package refuses
        return 0.0
    with _recursion(len(answer.split()) + len(reference.split())):
        (scores,) = Rouge(metrics=["rouge-l"]).get_scores([answer], [reference])
    return float(scores["rouge-l"]["f"])


@contextmanager
def _recursion(depth: int) -> Iterator[None]:
    """Let functions call themselves so many times more."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + depth)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def _cut(text: str) -> list[str]:
    return [str(word) for word in _jieba()(text)]


@cache
def _jieba() -> Callable[[str], list[str]]:
    """Return what cuts Chinese text into words; it takes a second to be made, and says so unless it is silenced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own escapes, and of how it finds its dictionary
        import jieba
    jieba.setLogLevel(logging.WARNING)
    found = jieba.Tokenizer()
    found.tmp_dir = str(cache_folder())  # not a file that all users of a machine share
    cache_folder().mkdir(parents=True, exist_ok=True)
    cut: Callable[[str], list[str]] = found.lcut
    return cut
