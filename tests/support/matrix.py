"""Every way to put parts together: what is legal runs and keeps its word, what is not says why."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, replace
from itertools import combinations, product
from typing import Any

import torch
from rich.progress import track

from kvbench.cache.codecs.kvquant import KVQuant
from kvbench.cache.codecs.packed import PackedCodec
from kvbench.cache.codecs.packed_keys import PackedKeys
from kvbench.cache.codecs.qjl import QJL
from kvbench.cache.codecs.streaming import Streaming
from kvbench.cache.kv_cache import KVCache
from kvbench.compositions import composed, options, refusal
from kvbench.models.view import view_of
from kvbench.strategies.base import CacheStrategy
from kvbench.types import RunShape
from tests.support import generic
from tests.support.checks import assert_close
from tests.support.drive import drive
from tests.support.head_scores import folder
from tests.support.measured import folder as measured
from tests.support.models import LAYERS, ids, model
from tests.support.storage import storages_are_exact_and_reported

PARTS = ("trigger", "scorer", "budget", "evicted", "position", "codec")
CODECS = ("dense", "int8", "kivi2", "gear", "kvquant3", "lorc", "quarot", "streaming")  # one of each kind
READERS = {"tiers": "pages", "shadow": "landmarks"}
TRIES = 20
PROMPT, NEW, BUDGET, PERIOD = 60, 6, 44, 4  # room for the default numbers of every part
RUN = RunShape(prompt_lengths=(PROMPT, PROMPT), new_tokens=NEW)

Choice = Mapping[str, str]


def choices(part: str) -> list[str]:
    """Return the options of a part that are tried."""
    return list(CODECS) if part == "codec" else options(part)


def everything() -> list[Choice]:
    """Return every combination of options."""
    return [dict(zip(PARTS, chosen, strict=True)) for chosen in product(*map(choices, PARTS))]


def pairwise() -> list[Choice]:
    """Return few combinations in which every pair of options of two parts occurs, a legal one wherever there is one."""
    rng, names = random.Random(0), {part: choices(part) for part in PARTS}
    missing = {
        frozenset([(one, first), (other, second)])
        for one, other in combinations(PARTS, 2)
        for first, second in product(names[one], names[other])
    }
    found: list[Choice] = []
    while missing:
        start = dict(min(missing, key=sorted))
        tries = [{part: start.get(part) or rng.choice(names[part]) for part in PARTS} for _ in range(TRIES)]
        legal = [choice for choice in tries if refusal(whole(choice)) is None]
        best = max(legal or tries, key=lambda choice: len(missing & pairs(choice)))
        missing -= pairs(best) if legal else {frozenset(start.items())}
        found.append(best)
    return found


def pairs(choice: Choice) -> set[frozenset[tuple[str, str]]]:
    """Return every pair of options in a combination."""
    return {frozenset(pair) for pair in combinations(choice.items(), 2)}


def whole(choice: Choice) -> Choice:
    """Return the combination with the selector that its budget needs, and the reader of what is handed on."""
    more = {"selector": "policy_order"} if choice["budget"] == "cheapest_policy" else {}
    if choice["evicted"] in READERS:
        more["reader"] = READERS[choice["evicted"]]
    return {**choice, **more}


def small(made: CacheStrategy) -> CacheStrategy:
    """Return the strategy with so many entries, and a period that fits the continuation."""
    changes: dict[str, Any] = {}
    settings = {field.name for field in fields(made.budget)}  # type: ignore[arg-type]
    wanted = {"amount": BUDGET, "unit": "tokens", "scores": str(folder())}
    smaller = {name: value for name, value in wanted.items() if name in settings}
    changes["budget"] = replace(made.budget, **smaller)  # type: ignore[type-var]
    if made.trigger.period > 1:
        changes["trigger"] = replace(made.trigger, period=PERIOD)  # type: ignore[type-var]
    if not made.reader.reads_all:
        changes["reader"] = replace(made.reader, size=4, amount=8, unit="tokens", least_pages=1, skip_layers=())  # type: ignore[type-var]
    codec = made.codec
    if isinstance(codec, PackedCodec) and codec.residual > 0:
        keys = replace(codec.key_quantiser, group=4)
        changes["codec"] = replace(codec, key_quantiser=keys, residual=8)
    elif isinstance(codec, PackedKeys):
        changes["codec"] = replace(codec, group=4, residual=8)
        if isinstance(codec, QJL):
            changes["codec"] = replace(codec, group=4, residual=8, num_large=2)
    elif isinstance(codec, KVQuant):
        changes["codec"] = replace(codec, codebooks=str(measured("codebooks")))
    elif isinstance(codec, Streaming):
        changes["codec"] = replace(codec, chunk=8, num_sink=3, outlier_above=2.0)
    return replace(made, **changes)


def unsupported(choice: Choice) -> str | None:
    """Return why a legal combination cannot serve the model, or None."""
    return small(composed(whole(choice))).unsupported(view_of(model("llama_gqa")), RUN)


def keeps_its_word(choice: Choice) -> str:
    """Run a legal combination: bytes as said, the logits of what is held, and no step behind; return what came of it.

    Returns:
        "refused", "unsupported" or "ran".
    """
    reason = refusal(whole(choice))
    if reason is not None:
        assert "strategy" in reason, f"the refusal names no key: {reason}"
        return "refused"
    made = small(composed(whole(choice)))
    view, tokens, run = view_of(model("llama_gqa")), ids(90, 2, PROMPT + NEW), RUN
    reason = unsupported(choice)
    if reason is not None:
        assert len(reason) > 20
        return "unsupported"

    def watch(cache: KVCache, seen: int) -> None:
        storages_are_exact_and_reported(cache)
        most = made.allocated_bytes(view, run)
        assert cache.allocated_bytes() <= most if made.data_dependent else cache.allocated_bytes() == most

    driven = drive(model("llama_gqa"), made, tokens, run, watch=watch)
    assert driven.logits.isfinite().all()
    if made.reader.reads_all and not made.evicted.merges and choice["position"] == "original" and made.codec.is_exact:
        visible = [generic.visible_to(driven.held, layer, PROMPT) for layer in range(LAYERS)]
        assert_close(driven.logits, generic.dense(model("llama_gqa"), tokens, visible))
    return "ran"


def main() -> int:
    """Try every combination, show how far it is, and print what failed and what came of the rest."""
    torch.set_num_threads(1)
    came: Counter[str] = Counter()
    for choice in track(everything(), description="combinations"):
        try:
            came[keeps_its_word(choice)] += 1
        except Exception as error:  # noqa: BLE001  all of them are to be seen
            came["failed"] += 1
            print(" ".join(f"strategy/{part}={option}" for part, option in choice.items()), f"-> {error!r}"[:200])  # noqa: T201
    print(dict(came))  # noqa: T201
    return 1 if came["failed"] or not came["ran"] else 0


if __name__ == "__main__":
    sys.exit(main())
