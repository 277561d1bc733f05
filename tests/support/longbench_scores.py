"""Scores of LongBench that were worked out by hand."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest

from kvbench.workloads import metrics

Case = tuple[str, Sequence[str], float]  # answer, references, score


def _check(name: str, cases: Sequence[Case], classes: Sequence[str] = ()) -> None:
    for answer, references, want in cases:
        got = metrics.METRICS[name](answer, references, classes)
        assert got == pytest.approx(want, abs=1e-6), f"{name} of {answer!r} against {references}"


def words_are_counted_without_case_punctuation_and_articles() -> None:
    _check(
        "qa_f1",
        [
            ("The cat sat.", ["A cat sat on the mat"], 2 / 3),  # cat sat | cat sat on mat: 2 * 2 / (2 + 4)
            ("no no no", ["no"], 1 / 2),  # one of three is right: 2 * 1 / (3 + 1)
            ("no", ["no no no"], 1 / 2),
            ("Paris", ["London", "Paris, France"], 2 / 3),  # the better of 0 and 2 * 1 / (1 + 2)
            ("It is in Paris and nowhere else", ["Paris"], 1 / 4),  # 7 words: 2 * 1 / (7 + 1)
            ("don't  \n do", ["Dont do!"], 1.0),
            ("well-known", ["well known"], 0.0),  # what stands around punctuation becomes one word
            ("theatre", ["atre"], 0.0),  # an article is a word of its own
            ("Caf\u00c9", ["caf\u00e9"], 1.0),
            ("\u201cyes\u201d", ["yes"], 0.0),  # quotation marks that are not ASCII stay
            ("", ["yes"], 0.0),
            ("yes", [""], 0.0),
            ("the", ["a"], 0.0),  # nothing on either side
        ],
    )


def chinese_words_are_those_of_jieba() -> None:
    _check(
        "qa_f1_zh",
        [
            # I | come to | Beijing | Tsinghua University, and I | at | Tsinghua University: 2 * 2 / (4 + 3)
            (
                "\u6211\u6765\u5230\u5317\u4eac\u6e05\u534e\u5927\u5b66\u3002",
                ["\u6211\u5728\u6e05\u534e\u5927\u5b66"],
                4 / 7,
            ),
            ("\u5317\u4eac\uff01\uff08\u5317\u4eac\uff09", ["\u5317\u4eac", "\u4e0a\u6d77"], 2 / 3),  # 2 * 1 / (2 + 1)
            ("KV 12", ["kv12\u3002"], 0.0),  # kv | 12, and one word
            ("KV 12", ["12, kv"], 1.0),
            ("\u300a\u5317\u4eac\u300b", ["\u5317\u4eac"], 2 / 3),  # U+300A is no punctuation, U+300B is
            ("\u3002\uff01", ["\u5317\u4eac"], 0.0),
            ("", ["\u5317\u4eac"], 0.0),
        ],
    )


def rouge_is_of_distinct_words_in_order_over_sentences() -> None:
    _check(
        "rouge_l",
        [
            ("the cat sat on the mat", ["the cat lay on the mat"], 4 / 5),  # the cat on mat of 5 and of 5 words
            ("b a", ["a b"], 1 / 2),  # one of two in order
            # of a b c d e the first sentence has a b, the second a c e: 4 of 5 words, by 4 of 8
            ("a b f g h. a c h i e", ["a b c d e"], 2 * 0.8 * 0.5 / 1.3),
            ("a b", ["a b a b"], 1.0),  # nothing is counted twice
            ("A b", ["a b"], 1 / 2),  # case counts
            ("x", ["a b", "x y"], 2 / 3),  # 1 of 1 by 1 of 2
            ("na\u00efve \u2603", ["na\u00efve \u2603"], 1.0),
            ("a longer answer", ["answer"], 1 / 2),  # 1 of 3 by 1 of 1
            ("", ["a"], 0.0),
            ("...", ["a"], 0.0),
            ("  ", ["a"], 0.0),
            ("a", ["."], 0.0),
        ],
    )


def chinese_rouge_is_of_the_words_of_jieba() -> None:
    _check(
        "rouge_l_zh",
        [
            # I | come to | Beijing and Beijing | I | come to: 2 of 3
            ("\u6211\u6765\u5230\u5317\u4eac", ["\u5317\u4eac\u6211\u6765\u5230"], 2 / 3),
            ("\u6211\u6765\u5230\u5317\u4eac", ["\u6211\u6765\u5230\u5317\u4eac"], 1.0),
            ("", ["\u6211"], 0.0),
        ],
    )


def rouge_scores_sentences_of_any_length() -> None:
    limit = sys.getrecursionlimit()
    words = " ".join(map(str, range(limit)))
    _check("rouge_l", [(words, [words], 1.0)])
    assert sys.getrecursionlimit() == limit


def classes_that_are_named_share_the_score() -> None:
    _check(
        "classification_first_line",
        [
            ("City", ["City"], 1.0),
            ("It is a City, or a State", ["City"], 1 / 2),
            ("State", ["City"], 0.0),
            ("city", ["City"], 0.0),
            ("Other number", ["Other number"], 1.0),  # number is part of it
            ("Other number", ["number"], 1 / 2),  # not the other way round
            ("State", ["City", "State"], 1.0),
            ("", ["City"], 0.0),
            ("\n\nCity\nState", ["City"], 1.0),
            ("State\nCity", ["City"], 0.0),
        ],
        classes=("City", "State", "number", "Other number"),
    )


def the_first_line_is_the_first_that_says_something() -> None:
    _check("qa_f1_first_line", [("\n\nParis\nLondon", ["Paris"], 1.0), ("\n", ["Paris"], 0.0), ("a b\nc", ["b"], 1.0)])
    _check("rouge_l_first_line", [("\na b\nb a", ["a b"], 1.0), ("\n\n", ["a b"], 0.0), ("b\na", ["a"], 0.0)])


def numbers_that_are_named_share_the_score() -> None:
    _check(
        "numbers",
        [
            ("Paragraph 12", ["Paragraph 12"], 1.0),
            ("12 or 3", ["Paragraph 12"], 1 / 2),
            ("Paragraph 1", ["Paragraph 12"], 0.0),
            ("\u6bb5\u843d2", ["\u6bb5\u843d2"], 1.0),
            ("5, 5 and 4", ["5"], 2 / 3),
            ("05", ["5"], 0.0),
            ("30", ["Paragraph 3 of 30"], 0.0),  # a reference has one
            ("5", ["4", "5"], 1.0),
            ("five", ["5"], 0.0),
            ("", ["5"], 0.0),
        ],
    )


def code_is_compared_line_by_line_with_difflib() -> None:
    _check(
        "code_similarity",
        [
            ("x = 2", ["x = 1"], 4 / 5),  # four characters of five are alike: 2 * 4 / (5 + 5)
            ("\n\n# first\nx = 1\ny = 2", ["x = 1"], 1.0),
            ("```python\nx = 1\n```", ["x = 1"], 1.0),
            ("x // 2\nx = 1", ["x = 1"], 1.0),
            ("tide", ["diet"], 0.25),  # t is found first, and nothing follows it: 2 * 1 / 8; an edit distance has 0.5
            ("diet", ["tide"], 0.5),  # i, then e; as Python's documentation has both
            ("abcdefgh", ["a1234567"], 0.12),  # 12.5 hundredths are 12 whole ones
            ("x = 1", ["y", "x = 1"], 1.0),
            ("return \u00e9", ["return \u00e9"], 1.0),
            ("  \nx = 1", ["x = 1"], 0.57),  # a line of blanks is a line, and has both of the other: 2 * 2 / 7
            ("", ["x = 1"], 0.0),
            ("# nothing else", ["x = 1"], 0.0),
        ],
    )
