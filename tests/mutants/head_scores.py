"""Measures of heads and their files, with one thing wrong each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench import calibrated
from kvbench.calibrated import Calibrated
from kvbench.calibration import measures, samples, watching
from kvbench.calibration.samples import Marked
from kvbench.strategies.budget import scores
from kvbench.strategies.budget.scores import HeadScores
from kvbench.types import ModelView
from tests.mutants.core_mutant import Mutant
from tests.support import calibrating

paid = measures.paid
where = samples._where


def any_file(found: Calibrated, kind: str, weights: str, view: ModelView, file: Any) -> Calibrated:
    """Take whatever there is."""
    return found


def shapes_only(view: ModelView) -> str:
    """Tell models apart by their shapes."""
    return f"{[(layer.kv_heads, layer.query_heads) for layer in view.layers]}".encode().hex()[:12]


def exact_bits(view: ModelView) -> str:
    """Tell models apart by the bits of their weights."""
    return str(hash(tuple(float(layer.output.double().sum()) for layer in view.layers if layer.output is not None)))


def nowhere(kind: str, view: ModelView) -> str:
    """Say nothing useful."""
    return "run kvbench"


def all_ones(kind: str, view: ModelView) -> HeadScores:
    """Pretend that all heads score alike."""
    table = tuple((1.0,) * layer.kv_heads for layer in view.layers)
    return HeadScores(
        kind=kind,
        model="",
        revision="",
        weights="",
        seed=0,
        samples=0,
        tokens=0,
        scores=dict.fromkeys(("gate", "retrieval", "echo", "induction"), table),
    )


def own_occurrence(period: int) -> samples.Marks:
    """Count the token itself as its echo, and mistake what came before it for what followed."""

    def marks(query: Tensor, entry: Tensor) -> Mapping[str, Tensor]:
        back = query - entry
        return {"echo": (back >= 0) & (back % period == 0), "induction": (back > 0) & (back % period == 1)}

    return marks


def one_off(ids: Sequence[int], wanted: Sequence[int]) -> int:
    """Be one token off."""
    return where(ids, wanted) + 1


def all_queries(sample: Marked, query: Tensor, key: Tensor, scale: float, window: int) -> Mapping[str, Tensor]:
    """Let every query count."""
    return paid(replace(sample, start=0), query, key, scale, window)


def unturned(entries: Tensor, shift: Any, frequency: Tensor) -> Tensor:
    """Leave keys as they are."""
    return entries


def unscaled(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attend without a scale."""
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=1.0, enable_gqa=True
    )


eager = partial(calibrating.measured_scores_equal_eager_attention, "llama_gqa")
stock = partial(calibrating.a_watched_model_says_what_the_stock_model_says, "llama_gqa")
bare = partial(calibrating.a_model_without_weights_is_counted, "duoattention")

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="any file will do",
        patches=((calibrated, "_checked", any_file),),
        killed_by=(calibrating.scores_of_another_model_are_refused,),
    ),
    Mutant(
        name="shapes tell models apart",
        patches=((calibrating, "fingerprint", shapes_only),),
        killed_by=(calibrating.weights_tell_models_apart,),
    ),
    Mutant(
        name="rounding tells models apart",
        patches=((calibrating, "fingerprint", exact_bits),),
        killed_by=(calibrating.weights_tell_models_apart,),
    ),
    Mutant(name="bare models have equal heads", patches=((scores, "_any", all_ones),), killed_by=(bare,)),
    Mutant(
        name="a token is its own echo",
        patches=((samples, "_echo_and_induction", own_occurrence),),
        killed_by=(calibrating.repetitions_are_marked, calibrating.perfect_heads_score_one),
    ),
    Mutant(
        name="the needle is one token off",
        patches=((samples, "_where", one_off),),
        killed_by=(calibrating.needles_are_where_the_answer_stands,),
    ),
    Mutant(
        name="every query counts",
        patches=((measures, "paid", all_queries), (calibrating, "paid", all_queries)),
        killed_by=(calibrating.paid_equals_dense_attention, eager),
    ),
    Mutant(
        name="keys are left rotated",
        patches=((measures, "turn", unturned),),
        killed_by=(calibrating.area_equals_a_plain_loop,),
    ),
    Mutant(
        name="watching changes the model", patches=((watching, "attend_causal", unscaled),), killed_by=(stock, eager)
    ),
)
