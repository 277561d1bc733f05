"""What fewer bytes can gain at most, from the sizes that models are published with."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from kvbench.cli.ledger import LONG, ceilings

PAGE = Path(__file__).parents[2] / "docs" / "ceilings.md"
SIZES = {  # weights that a step reads, bytes of each number, layers, KV heads x width
    "llama-3.2-1b": (1_235_814_400, 2, 16, 8 * 64),  # the output's weights are the embedding's
    "llama-3.1-8b": (8_030_261_248 - 128_256 * 4096, 2, 32, 8 * 128),  # they are not: of the embedding, a row is read
}


@pytest.fixture(scope="module")
def page() -> list[str]:
    return list(ceilings())


@pytest.fixture
def rows(page: list[str]) -> dict[str, list[str]]:
    found = [line.strip("| ").split(" | ") for line in page if line.startswith("| ")]
    return {name: numbers for name, *numbers in found}


@pytest.mark.parametrize("name", SIZES)
def test_a_context_and_a_ceiling_are_what_the_bytes_say(name: str, rows: dict[str, list[str]]) -> None:
    numbers, size, layers, width = SIZES[name]
    weights, entry = numbers * size, layers * (2 * width * size + 4)  # a position beside each entry
    assert rows[name][2:4] == [f"{math.ceil(weights / share / entry):,}" for share in (10, 1)]
    for batch, said in zip((1, 16), rows[name][4:], strict=True):
        held = batch * LONG * entry
        assert said == f"{(weights + held) / (weights + held / 4):.2f}x"


def test_what_lies_beyond_a_model_s_positions_is_no_number(rows: dict[str, list[str]]) -> None:
    assert rows["gpt2"][3:] == ["-", "-", "-"]
    assert not any(name.startswith(("mamba", "rwkv", "tiny")) for name in rows)


def test_the_page_is_what_the_command_makes(page: list[str]) -> None:
    assert PAGE.read_text(encoding="utf-8") == "\n".join(page) + "\n"
