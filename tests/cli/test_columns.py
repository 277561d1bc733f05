"""The page of columns."""

from __future__ import annotations

from pathlib import Path

from kvbench.cli.ledger import columns
from kvbench.results import schema

PAGE = Path(__file__).parents[2] / "docs" / "columns.md"


def test_every_column_is_there_with_its_unit_and_its_words() -> None:
    lines = list(columns())
    said = [line.strip("| ").split(" | ")[0] for line in lines if line.startswith("| `")]
    files = (schema.RUN, schema.STEPS, schema.REQUESTS, schema.SAMPLES)
    assert said == [f"`{name}`" for file in files for name in file.names]
    assert "| `kv_used_bytes` | bytes |" in "\n".join(lines)
    assert "| `saving` |  | kind of saving the method makes: physical, packed, offloaded, none | yes |" in lines


def test_the_page_is_what_the_command_makes() -> None:
    assert PAGE.read_text(encoding="utf-8") == "\n".join(columns()) + "\n"
