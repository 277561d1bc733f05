"""The pages of the documentation that are made of the configuration: methods one by one, and what goes together.

python -m kvbench.cli.ledger methods
python -m kvbench.cli.ledger compositions
python -m kvbench.cli.ledger ceilings
python -m kvbench.cli.ledger columns
"""

from __future__ import annotations

import re
import sys
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from importlib.resources import files

from kvbench.cli.catalogue import CONF, aliases, catalogue
from kvbench.columns import weights_read
from kvbench.compositions import PARTS, options, refused_alone, refused_pairs
from kvbench.configuration import build_group, compose, compose_all, resolved
from kvbench.models.load import skeleton
from kvbench.models.view import view_of
from kvbench.results import schema
from kvbench.strategies.base import CacheStrategy
from kvbench.types import ModelView, RunShape

Option = tuple[str, str]  # of a part

LONG = 32768  # tokens

_FILES = {
    "Runs, two rows each: the strategy's and its full cache's": schema.RUN,
    "Timed steps (`steps=True`)": schema.STEPS,
    "Requests that were served (`requests=True`)": schema.REQUESTS,
    "Answers (`samples=True`)": schema.SAMPLES,
}
_HEADS = ("Category", "Deviates", "Proof", "Parity", "Survey")
_PAPER = re.compile(r"\((arXiv:[^)]+|[\w-]+/[\w.-]+)\)")


def notes(name: str) -> dict[str, str]:
    """Return what a strategy's yaml says of itself: its first line, and what follows Category:, Deviates:, ..."""
    found, head = {"": ""}, ""
    for line in (files(CONF) / "strategy" / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("# ").strip()
        for title in _HEADS:
            if text.startswith(f"{title}: "):
                head, text = title, text.removeprefix(f"{title}: ")
        found[head] = f"{found.get(head, '')} {text}".strip()
    return found


def methods() -> Iterator[str]:
    """Yield the page of methods, line by line."""
    names = sorted(e.name.removesuffix(".yaml") for e in (files(CONF) / "strategy").iterdir() if e.name[-5:] == ".yaml")
    same = aliases()
    yield "# Methods"
    yield ""
    yield "Written by `make docs` from `conf/strategy/*.yaml`. A saving is physical where storage is freed; a budget"
    yield "holds either from the prompt's end on while decoding, or only at the prompt's end."
    for name in names:
        node = resolved(compose([f"strategy={name}"]))["strategy"]
        made = build_group(node, "strategy")
        assert isinstance(made, CacheStrategy)
        said = notes(name)
        paper = _PAPER.search(said[""])
        yield f"\n## {name}\n\n{said['']}\n"
        rows = {
            "the same as": same.get(name, ""),
            "category": said.get("Category", ""),
            "paper": paper.group(1) if paper else "",
            "parts": ", ".join(f"{part}={option}" for part, option in chosen(name).items()),
            "saving": f"{made.saving}; {'while decoding too' if made.keeps_budget else 'decoding appends'}",
            "bytes": "depend on the data" if made.data_dependent else "known before the run",
            "deviates": said.get("Deviates", "no"),
            "proof": said.get("Proof", "the generic oracles"),
            "parity": said.get("Parity", ""),
            "the survey's parameters": said.get("Survey", ""),
        }
        yield from (f"- {title}: {text}" for title, text in rows.items() if text)


def chosen(name: str) -> dict[str, str]:
    """Return the option of each part that differs from the full cache's."""
    base, mine = (compose_all([f"strategy={n}"])["hydra"].runtime.choices for n in ("baseline", name))
    return {
        part: mine[f"strategy/{part}"]
        for part in PARTS
        if f"strategy/{part}" in mine and mine[f"strategy/{part}"] != base[f"strategy/{part}"]
    }


def compositions() -> Iterator[str]:
    """Yield the page of what goes together, line by line."""
    yield "# What goes together"
    yield ""
    yield "Written by `make docs`. Parts are chosen with `strategy/<part>=<option>` on top of any strategy; every pair"
    yield "that is not listed as refused is legal. A model or a length may still be refused, with its reason, when it"
    yield "is known."
    yield "\n## Options\n"
    yield from (f"- {part}: {', '.join(options(part))}" for part in PARTS)
    yield "\n## What needs other parts to change as well\n\n| option | why |\n| --- | --- |"
    yield from (f"| `{part}={option}` | {reason} |" for part, option, reason in refused_alone())
    yield "\n## Refused, with a limited budget\n\n| any of | with any of | why |\n| --- | --- | --- |"
    yield from (f"| {ones} | {others} | {reason} |" for ones, others, reason in together(refused_pairs()))


def together(pairs: Iterable[tuple[Option, Option, str]]) -> Iterator[tuple[str, str, str]]:
    """Yield options of two parts that refuse each other for the same reason, each with all of the others."""
    others: dict[tuple[Option, str, str], list[str]] = {}
    for one, (part, other), reason in pairs:
        others.setdefault((one, part, reason), []).append(f"`{part}={other}`")
    ones: dict[tuple[str, str, str], list[str]] = {}
    for ((own, mine), _, why), found in others.items():
        ones.setdefault((own, ", ".join(found), why), []).append(f"`{own}={mine}`")
    for (_, with_these, why), these in ones.items():
        yield ", ".join(these), with_these, why


def ceilings() -> Iterator[str]:
    """Yield the page of what fewer bytes can gain at most on each model, line by line."""
    yield "# Ceilings"
    yield ""
    yield "Written by `make docs` from `conf/model/*.yaml`. Decoding reads the weights once a step for all rows of a"
    yield "batch, and each row's keys and values. Where that is what takes time, a strategy gains at most the bytes it"
    yield "does not read: below the context at which keys and values are a tenth of the weights, none can gain a tenth."
    yield f"The last columns say what a cache of a quarter can gain at {LONG:,} tokens. A dash is beyond the model's"
    yield "positions."
    yield ""
    yield "| model | weights read | KV, a token | KV = weights / 10 at | KV = weights at | batch 1 | batch 16 |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name in sorted(name for name in dict(catalogue())["model"] if not name.startswith("tiny")):
        spec = build_group(resolved(compose([f"model={name}"]))["model"], "model")
        network = skeleton(spec)
        view = view_of(network)
        if not view.is_recurrent:
            yield f"| {name} | {' | '.join(_ceilings(weights_read(network), view))} |"


def _ceilings(weights: int, view: ModelView) -> Iterator[str]:
    full = build_group(resolved(compose(["strategy=baseline"]))["strategy"], "strategy")

    def kv(tokens: int) -> int:
        bytes_: int = full.used_bytes(view, RunShape(prompt_lengths=(tokens,), new_tokens=1), tokens)
        return bytes_

    def reaching(wanted: float) -> str:
        found = bisect_left(range(view.max_positions), wanted, key=lambda tokens: kv(tokens + 1)) + 1
        return f"{found:,}" if found <= view.max_positions else "-"

    yield f"{weights / 2**30:.2f} GiB"
    yield f"{(kv(2) - kv(1)) / 2**10:.1f} KiB"
    yield reaching(weights / 10)
    yield reaching(weights)
    for rows in (1, 16):
        held = rows * kv(LONG)
        yield f"{(weights + held) / (weights + held / 4):.2f}x" if view.max_positions >= LONG else "-"


def columns() -> Iterator[str]:
    """Yield the page of what the columns of results are, line by line."""
    yield "# Columns"
    yield ""
    yield "Written by `make docs` from the schema. What `kvbench.load` returns and `kvbench export` writes has these"
    yield "columns; the parquet files say the same of themselves. What may be empty says nothing where it is."
    for title, file in _FILES.items():
        yield f"\n## {title}\n\n| column | unit | what it is | may be empty |\n| --- | --- | --- | --- |"
        for field in file:
            said = {key.decode(): text.decode() for key, text in field.metadata.items()}
            words = (schema.STEP_WORDS if file is schema.STEPS else schema.RUN_WORDS).get(field.name, ())
            what = f"{said['doc']}: {', '.join(words)}" if words and words[0] not in said["doc"] else said["doc"]
            yield f"| `{field.name}` | {said['unit']} | {what} | {'yes' if field.nullable else ''} |"


def main() -> None:
    """Print the page that is asked for."""
    pages = {"methods": methods, "compositions": compositions, "ceilings": ceilings, "columns": columns}
    print("\n".join(pages[sys.argv[1]]()))


if __name__ == "__main__":
    main()
