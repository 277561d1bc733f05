"""Requests are what their settings say, and each check of that fails on requests that are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.mutants import requests as mutants
from tests.mutants.core_mutant import Check, Mutant, each_of, oracles_in, seen_to_fail
from tests.support import requests as support
from tests.support.requests import made, source, traced

ORACLES = sorted(oracles_in(support), key=lambda oracle: oracle.__name__)
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.mark.parametrize("oracle", ORACLES, ids=lambda oracle: oracle.__name__)
def test_requests_are_what_the_settings_say(oracle: Check) -> None:
    oracle()


@each_of(mutants.MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert set(ORACLES) - seen_to_fail(mutants.MUTANTS) == set()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_requests": 0}, r"workload\.num_requests must be at least 1; got 0"),
        (
            {"num_requests": 7},
            r"workload\.num_requests must be workload\.turns=1 times at least 8 conv.* leaf of workload\.tree; got 7",
        ),
        ({"turns": 5}, r"workload\.num_requests must be workload\.turns=5 times at least 8.*got 32"),
        ({"turns": 8}, r"workload\.num_requests must be workload\.turns=8 times at least 8.*got 32"),
        ({"turns": 0}, r"workload\.turns must be at least 1"),
        ({"tree": ((2,),)}, r"workload\.tree must be levels of \[branches, tokens\], both at least 1; got"),
        ({"tree": ((2, 5), (0, 5))}, r"workload\.tree must be levels"),
        ({"tree": ((2, 0),)}, r"workload\.tree must be levels"),
        ({"own_tokens": -1}, r"workload\.own_tokens must be at least 1, or 0 below a workload\.tree; got -1"),
        ({"own_tokens": 0, "tree": ()}, r"workload\.own_tokens must be at least 1"),
        ({"own_spread": 1.5}, r"workload\.own_spread must be from 0 to 1; got 1\.5"),
        ({"new_spread": -0.1}, r"workload\.new_spread must be from 0 to 1"),
        ({"new_tokens": 0}, r"workload\.new_tokens must be at least 1"),
        ({"turn_tokens": 0}, r"workload\.turn_tokens must be at least 1"),
        ({"burst": 0}, r"workload\.burst must be at least 1"),
        ({"pause_s": -1.0}, r"workload\.pause_s must be at least 0; got -1\.0"),
        ({"rate_per_s": 0.0}, r"workload\.rate_per_s must be more than 0"),
        ({"rate_per_s": float("nan")}, r"workload\.rate_per_s must be more than 0"),
        ({"length_scale": -1.0}, r"workload\.length_scale must be more than 0"),
        ({"time_scale": float("inf")}, r"workload\.time_scale must be more than 0"),
        ({"order": "any"}, r"workload\.order must be one of interleaved, grouped, shuffled; got 'any'"),
        ({"arrival": "late"}, r"workload\.arrival must be one of at_once, poisson, bursts, trace; got 'late'"),
        ({"arrival": "trace"}, r"workload\.trace must be a file with workload\.arrival=trace, else empty; got ''"),
        ({"trace": "file"}, r"workload\.trace must be a file with workload\.arrival=trace, else empty; got 'file'"),
        ({"arrival": "trace", "trace": "file", "turns": 2}, r"workload\.turns must be 1 with workload\.arrival=trace"),
        ({"arrival": "trace", "trace": "/no/such"}, r"workload\.trace=/no/such is no file"),
    ],
)
def test_settings_that_cannot_be_name_the_key(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**changed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"workload\.trace=.* has 0 requests; lower workload\.num_requests=2"),
        (HEADER + "2023-11-16 18:17:03,5,5\n", r"has 1 requests; lower workload\.num_requests=2"),
        ("a,b\n", r"a trace, line 1: must be a JSON object .* or the file has to begin with TIMESTAMP.*got 'a,b'"),
        ("{}\n", r"line 1: must be a JSON object with timestamp, input_length, output_length, hash_ids"),
        ("[]\n", r"line 1: must be a JSON object"),
        ('{"timestamp": 0', r"line 1: must be a JSON object"),
        (
            '{"timestamp": 0, "input_length": 5.0, "output_length": 1, "hash_ids": [0]}',
            r"line 1: must be a JSON object",
        ),
        (
            '{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": ["a"]}',
            r"line 1: must be a JSON object",
        ),
        ('{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": 0}', r"line 1: must be a JSON object"),
        (
            '{"timestamp": NaN, "input_length": 5, "output_length": 1, "hash_ids": [0]}',
            r"line 1: must be a JSON object",
        ),
        (
            '{"timestamp": 0, "input_length": 513, "output_length": 1, "hash_ids": [0]}',
            r"line 1: hash_ids must be 2, one for each 512 of 513 tokens; got 1",
        ),
        (
            '{"timestamp": 0, "input_length": 5, "output_length": 0, "hash_ids": [0]}',
            r"line 1: lengths must be at least 1; got 5 and 0",
        ),
        (HEADER + "\n2023-11-16 18:17:03,5,x\n", r"line 3: must hold TIMESTAMP,.*got '2023-11-16 18:17:03,5,x'"),
        (HEADER + "yesterday,5,5\n", r"line 2: must hold TIMESTAMP"),
        (HEADER + "2023-11-16 18:17:03,5\n", r"line 2: must hold TIMESTAMP"),
        (HEADER + "2023-11-16 18:17:03,0,5\n", r"line 2: lengths must be at least 1; got 0 and 5"),
        (HEADER + "2023-11-16 18:17:03,5,5\n2023-11-16 18:17:02,5,5\n", r"line 3: its time lies before"),
    ],
)
def test_a_trace_that_is_none_names_file_and_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        traced(text, 2)


def test_a_block_keeps_a_token() -> None:
    line = '{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [0]}\n'
    with pytest.raises(ValueError, match=r"workload\.length_scale must leave a token of 512.*got 0\.0001"):
        traced(line, 1, length_scale=0.0001)


def test_a_trace_that_is_no_text_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"workload\.trace=.*binary is not UTF-8 text"):
        made(arrival="trace", trace=str(binary))


@pytest.mark.parametrize(
    ("changed", "given", "message"),
    [
        (
            {},
            {"text": tuple(range(200)), "vocabulary": 200},
            r"has 200 tokens, all of which the first 22 of 32 requests",
        ),
        ({"tree": ()}, {"vocabulary": 31}, r"the vocabulary has 31 tokens.*lower workload\.num_requests"),
        (
            {"tree": ((2, 1),)},
            {"prefix": (1,)},
            r"begins every prompt itself, so that the first 1 tokens.*workload\.tree",
        ),
    ],
)
def test_sources_that_are_too_small_name_the_key(changed: dict[str, Any], given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**changed).requests(source(**given))


def test_a_prompt_no_longer_than_the_prefix_is_its_beginning() -> None:
    assert {one.prompt for one in made(tree=(), own_tokens=1).requests(source(prefix=(5, 6)))} == {(5,)}
