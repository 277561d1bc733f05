"""Windows of text and the messages of workloads that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvbench.workloads.decode import Decode
from kvbench.workloads.prefill import Prefill
from kvbench.workloads.recall import Recall
from kvbench.workloads.source import TokenSource, read_text
from kvbench.workloads.text import Text

RECALL: dict[str, Any] = {
    "prompt_tokens": 9,
    "pairs": 1,
    "samples": 1,
    "batch_size": 1,
    "question_in_cache": False,
    "reference": "none",
}


def source(text: tuple[int, ...] = tuple(range(100)), prefix: tuple[int, ...] = (7,)) -> TokenSource:
    """Return a source of counting ids."""
    return TokenSource(prefix=prefix, text=text, vocabulary=50, seed=0, name="a file", tasks=None)


def test_windows_are_exact_start_with_the_prefix_and_reach_both_ends() -> None:
    windows = source().windows(3, 11)
    assert [len(window) for window in windows] == [11, 11, 11]
    assert [window[0] for window in windows] == [7, 7, 7]
    assert windows[0][1:] == list(range(10))
    assert windows[-1][1:] == list(range(90, 100))


def test_windows_of_random_ids_depend_on_the_seed_alone() -> None:
    assert source(text=()).windows(2, 20) == source(text=()).windows(2, 20)
    assert {token for window in source(text=()).windows(4, 200) for token in window} == set(range(50))


def test_text_that_is_too_short_says_how_much_is_missing() -> None:
    with pytest.raises(ValueError, match=r"a file has 100 tokens, 199 are needed.*workload\.prompt_tokens"):
        source().windows(1, 200)


def test_decode_workload_gives_prompt_and_continuation() -> None:
    workload = Decode(prompt_tokens=20, new_tokens=5, batch_size=3)
    (run,) = workload.runs()
    assert run.prompt_lengths == (20, 20, 20)
    assert [len(row) for row in workload.ids(source(), run)] == [25, 25, 25]


def test_prefill_workload_has_a_run_per_length() -> None:
    assert [run.prompt_tokens for run in Prefill(prompt_tokens=(8, 16), batch_size=2).runs()] == [8, 16]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Decode(prompt_tokens=0, new_tokens=1, batch_size=1),
            r"workload\.prompt_tokens must be at least 1; got 0",
        ),
        (
            lambda: Decode(prompt_tokens=1, new_tokens=1, batch_size=-2),
            r"workload\.batch_size must be at least 1; got -2",
        ),
        (lambda: Prefill(prompt_tokens=(16, 8), batch_size=1), r"workload\.prompt_tokens must be rising"),
        (
            lambda: Text(path="/no/such/file", prompt_tokens=1, new_tokens=1, batch_size=1),
            r"workload\.path=/no/such/file is no file",
        ),
        (
            lambda: Recall(task="riddle", **RECALL),  # type: ignore[arg-type]
            r"workload\.task must be key_value or passkey",
        ),
        (lambda: Recall(task="passkey", **RECALL | {"pairs": 0}), r"workload\.pairs must be at least 1; got 0"),
    ],
)
def test_workloads_that_cannot_be_name_the_key(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_empty_and_binary_files_are_refused(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text("  \n")
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is empty"):
        read_text(str(empty))
    with pytest.raises(ValueError, match="not UTF-8"):
        read_text(str(binary))


def test_text_and_recall_need_a_tokenizer() -> None:
    text = Text(path="", prompt_tokens=4, new_tokens=1, batch_size=1)
    recall = Recall(task="passkey", **RECALL)
    with pytest.raises(ValueError, match="workload=text needs a tokenizer"):
        text.ids(source(text=()), text.runs()[0])
    with pytest.raises(ValueError, match="workload=recall needs a tokenizer"):
        recall.ids(source(text=()), recall.runs()[0])
