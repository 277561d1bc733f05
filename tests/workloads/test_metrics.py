"""Answers get the scores worked out by hand, and each check of that fails on scores that are wrong."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from kvbench.workloads import longbench_scores
from kvbench.workloads.metrics import METRICS
from tests.mutants import longbench_scores as mutants
from tests.mutants.core_mutant import Check, Mutant, each_of, oracles_in, seen_to_fail
from tests.support import longbench_scores as support

ORACLES = sorted(oracles_in(support), key=lambda oracle: oracle.__name__)


@pytest.mark.parametrize("oracle", ORACLES, ids=lambda oracle: oracle.__name__)
def test_scores_are_those_worked_out_by_hand(oracle: Check) -> None:
    oracle()


@each_of(mutants.MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert set(ORACLES) - seen_to_fail(mutants.MUTANTS) == set()


@pytest.mark.parametrize("name", METRICS)
def test_scores_are_from_0_to_1_whatever_is_answered(name: str) -> None:
    answers = ("", " ", "\n", ".", "a. b", "7", "\u6bb5\u843d7", "\u0000\ud83d\ude00" * 50, "# x\n" * 9)
    for answer in answers:
        for reference in ("7", "a b", "\u6bb5\u843d7", "a."):
            assert 0 <= METRICS[name](answer, (reference,), ("7", "a b")) <= 1


def test_how_words_are_cut_is_kept_where_kvbench_keeps_things_and_not_talked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "kept"))
    logging.getLogger("jieba").setLevel(logging.DEBUG)
    longbench_scores._jieba.cache_clear()
    METRICS["qa_f1_zh"]("\u5317\u4eac", ("\u5317\u4eac",), ())
    assert logging.getLogger("jieba").level == logging.WARNING
    assert (tmp_path / "kept" / "jieba.cache").is_file()
