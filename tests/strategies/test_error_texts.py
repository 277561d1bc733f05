"""Every error of the cache, the kernels, the strategies and our loop has a message that is looked at here."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import kvbench
from kvbench.cache.doors import attention
from kvbench.cache.kv_cache import KVCache
from kvbench.engines.eager import Eager
from kvbench.models.view import view_of
from kvbench.strategies.budget.base import Uniform
from kvbench.strategies.position.policies import Rank
from kvbench.strategies.selection.attention import WindowAttention
from kvbench.strategies.selection.selector import Protected
from kvbench.strategies.trigger import PrefillEnd
from kvbench.types import PREFILL, RunShape
from tests.mutants.strategies import ScoresTooMuch
from tests.support import black_boxes, part_errors, scorer_errors, searching
from tests.support.checks import PROMPT, uniform
from tests.support.drive import drive
from tests.support.generation import generate
from tests.support.models import ids, model
from tests.support.strategies import strategy

SOURCES = ("calibrated.py", "cache", "kernels", "planning", "strategies", "models/view.py", "engines/eager.py")


def built(name: str, *, tokens: int, lengths: tuple[int, ...] = (PROMPT,), **parts: Any) -> KVCache:
    """Return a cache of a method with other parts."""
    made = replace(strategy(name, tokens=tokens), **parts)
    return made.build(view_of(model("llama_gqa")), RunShape(prompt_lengths=lengths, new_tokens=4))


def attended(**keywords: Any) -> None:
    """Call the attention function as a model does."""
    cache, query = built("baseline", tokens=0), torch.zeros(1, 4, PROMPT, 8, dtype=torch.float64)
    handle, _ = cache.update(query[:, :2], query[:, :2], 0)
    given: dict[str, Any] = {"key": handle, "value": handle, "attention_mask": None} | keywords
    attention(nn.Module(), query, given.pop("key"), given.pop("value"), given.pop("attention_mask"), **given)


def decoded_too_far() -> None:
    """Decode more tokens than the cache has room for."""
    drive(model("llama_gqa"), strategy("baseline"), ids(0, 1, PROMPT + 3), uniform(new=2))


def scored_with_a_dimension_too_many() -> None:
    """Read a prompt with a scorer that does not say one number for each entry."""
    made = replace(strategy("h2o", tokens=12), scorer=ScoresTooMuch())
    drive(model("llama_gqa"), made, ids(0, 1, PROMPT + 1), uniform(new=1))


def prompt_of(tokens: int, rows: int, built_for: RunShape) -> None:
    """Feed a prompt of another shape than the cache was built for."""
    cache = strategy("baseline").build(view_of(model("llama_gqa")), built_for)
    cache.begin(PREFILL)
    states = torch.zeros(rows, 4, tokens, 8, dtype=torch.float64)
    cache.layers[0].attend(states, states[:, :2], states[:, :2], 1.0, PREFILL)


def padded_without_lengths() -> None:
    """Generate from a left-padded batch with a cache that knows nothing of it."""
    prompt = ids(0, 2, PROMPT)
    prompt[1, :5] = 0
    cache = strategy("h2o", tokens=12).build(view_of(model("llama_gqa")), uniform(rows=2))
    generate("llama_gqa", "kvbench", prompt, cache, attention_mask=(prompt > 0).long())


uniform_budget = partial(Uniform, unit="tokens", skip_layers=())
window_attention = partial(WindowAttention, window=4, kernel=3, pooling="mean")
protected = partial(Protected, num_sink=0, num_recent=0, recent_share=0.0)

CASES: dict[str, tuple[Callable[[], object], str]] = {
    "ratio 0": (partial(uniform_budget, amount=0.0, unit="ratio"), r"above 0 and at most 1; got 0\.0\. .*unit=tokens"),
    "ratio above 1": (partial(uniform_budget, amount=1.5, unit="ratio"), r"unit=ratio is the fraction kept.*got 1\.5"),
    "negative ratio": (partial(uniform_budget, amount=-0.5, unit="ratio"), r"above 0 and at most 1; got -0\.5"),
    "no ratio": (partial(uniform_budget, amount=float("nan"), unit="ratio"), r"above 0 and at most 1; got nan"),
    "negative budget": (
        partial(uniform_budget, amount=-3),
        r"unit=tokens must be a whole number of at least 1; got -3",
    ),
    "half a token": (partial(uniform_budget, amount=2.5), r"whole number of at least 1; got 2\.5\. .*unit=ratio"),
    "half a byte": (partial(uniform_budget, amount=0.5, unit="bytes"), r"unit=bytes must be a whole number"),
    "unknown unit": (
        partial(uniform_budget, amount=3, unit="pages"),
        r"unit must be ratio, tokens or bytes; got 'pages'",
    ),
    "layer that is not there": (
        partial(built, "h2o", tokens=12, budget=uniform_budget(amount=12, skip_layers=(0, 2))),
        r"skip_layers=\[2\]: the model has layers 0 to 1\.",
    ),
    "negative sinks": (partial(protected, num_sink=-1), r"num_sink >= 0.*got num_sink=-1, num_recent=0"),
    "negative recent": (partial(protected, num_recent=-2), r"num_recent >= 0.*num_recent=-2"),
    "share above 1": (partial(protected, recent_share=1.1), r"recent_share between 0 and 1.*recent_share=1\.1"),
    "no window": (partial(window_attention, window=0), r"scorer\.window must be at least 1; got 0"),
    "even kernel": (partial(window_attention, kernel=4), r"scorer\.kernel must be odd and at least 1; got 4"),
    "kernel below 1": (partial(window_attention, kernel=-1), r"scorer\.kernel must be odd and at least 1; got -1"),
    "unknown pooling": (partial(window_attention, pooling="sum"), r"pooling must be mean or max; got 'sum'"),
    "chunk below 0": (
        partial(Eager, prefill_chunk=-1),
        r"prefill_chunk must be 0 \(the whole prompt\) or more; got -1",
    ),
    "rank by score": (partial(built, "h2o", tokens=12, position=Rank()), r"position=rank needs kept entries to be the"),
    "rank that stands still": (
        partial(built, "attention_sink", tokens=12, trigger=PrefillEnd()),
        r"position=rank needs the recent run to move on.*trigger=every_step",
    ),
    "budget below the protected": (
        partial(built, "random_eviction", tokens=4),
        r"a budget of 4 entries for a prompt of 24 tokens is below the 5 protected ones; raise strategy\.budget\.",
    ),
    "bytes for nothing": (
        partial(built, "knorm", tokens=1, budget=uniform_budget(amount=10, unit="bytes")),
        r"a budget of 0 entries for a prompt of 24 tokens is below the 1 protected",
    ),
    "prompt below the sinks": (
        partial(built, "attention_sink", tokens=12, lengths=(PROMPT, 3)),
        r"needs prompts of at least strategy\.selector\.num_sink=4 tokens; the shortest has 3",
    ),
    "too many tokens": (decoded_too_far, r"built for 24 prompt tokens and 2 new ones; token 27 does not fit"),
    "scores of another shape": (
        scored_with_a_dimension_too_many,
        r"ScoresTooMuch\.prompt must return a score for each entry \[1, 2, 24\]; got \[1, 2, 24, 1\]",
    ),
    "other prompt": (partial(prompt_of, 9, 2, uniform(12, rows=2)), r"prompts of 2 x 12 tokens; got 2 x 9"),
    "other batch": (partial(prompt_of, 12, 3, uniform(12, rows=2)), r"prompts of 2 x 12 tokens; got 3 x 12"),
    "crop": (lambda: built("h2o", tokens=12).crop(1), r"no beam search, no assisted decoding, no reuse"),
    "beams": (lambda: built("h2o", tokens=12).reorder_cache(torch.tensor([0])), r"no beam search"),
    "reset": (lambda: built("h2o", tokens=12).reset(), r"no reuse\. Build a new cache"),
    "repeated rows": (lambda: built("h2o", tokens=12).batch_repeat_interleave(2), r"serves one batch"),
    "chosen rows": (lambda: built("h2o", tokens=12).batch_select_indices(torch.tensor([0])), r"serves one batch"),
    "beam search": (
        lambda: generate("llama_gqa", "kvbench", ids(0, 1, PROMPT), built("h2o", tokens=12), num_beams=2),
        r"no beam search|prompts of 1 x 24 tokens; got 2 x 24",
    ),
    "no cache": (partial(attended, key=torch.zeros(1)), r"'kvbench' needs a cache made by a kvbench strategy"),
    "soft cap": (partial(attended, softcap=30.0), r"attention keywords \['softcap'\] are not implemented"),
    "another window": (partial(attended, sliding_window=16), r"layer 0 says window 16, planned 0"),
    "mask without lengths": (
        partial(attended, attention_mask=torch.ones(1, PROMPT)),
        r"padded prompts need their lengths: .*RunShape\.prompt_lengths",
    ),
    "padded generate": (padded_without_lengths, r"padded prompts need their lengths"),
}
CASES |= scorer_errors.ERRORS
CASES |= part_errors.ERRORS
CASES |= black_boxes.ERRORS
CASES |= searching.ERRORS


@functools.cache
def said(case: str) -> str:
    """Return the message of a case."""
    wrong, _ = CASES[case]
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the tests look at the message
        wrong()
    return str(caught.value)


def test_no_two_cases_have_one_name() -> None:
    others = (scorer_errors.ERRORS, part_errors.ERRORS, black_boxes.ERRORS, searching.ERRORS)
    assert len(set().union(*others)) == sum(map(len, others))
    assert {"ratio 0", "padded generate"} <= CASES.keys() - set().union(*others)


@pytest.mark.parametrize("case", CASES)
def test_the_error_says_what_to_change(case: str) -> None:
    _, message = CASES[case]
    assert re.search(message, said(case))


def test_every_raise_has_a_case() -> None:
    messages = [said(case) for case in CASES]
    untested = [text for text in raised() if not any(re.search(text, message, re.DOTALL) for message in messages)]
    assert not untested


def test_the_search_for_raises_finds_them() -> None:
    assert len(list(raised())) >= 20


def raised() -> Iterator[str]:
    """Yield a pattern for every message that is raised, or returned as a reason."""
    root = Path(kvbench.__file__).parent
    for source in SOURCES:
        path = root / source
        for file in [path] if path.is_file() else path.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                    yield from _patterns(node.exc.args)
                if isinstance(node, ast.FunctionDef) and node.name in ("unsupported", "refusal", "misfit"):
                    returns = [inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return)]
                    yield from _patterns([value for value in returns if value is not None])


def _patterns(values: list[ast.expr]) -> Iterator[str]:
    for value in values:
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield re.escape(value.value)
        if isinstance(value, ast.JoinedStr):
            yield "".join(
                re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".*" for part in value.values
            )
