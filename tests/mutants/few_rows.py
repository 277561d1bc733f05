"""A few rows against a matrix with one line of the source changed."""

from __future__ import annotations

from functools import partial

import torch

from kvbench.cache.codecs import dense
from kvbench.cache.plan import GROW_LEAST
from kvbench.engines import compiled
from kvbench.kernels import few_rows
from tests.mutants.core_mutant import Mutant
from tests.mutants.native_rows import recompiled
from tests.support import few_rows as support

ODD = partial(support.products_are_torch_s, (2, 3), 5, 70, 48, torch.float32)
HALVES = partial(support.products_are_torch_s, (1, 2), 2, 9, 64, torch.bfloat16)
DECODED = partial(support.compiled_is_eager, "baseline", "llama")
LEARNED = partial(support.compiled_is_eager, "baseline", "gpt2")
_mutant = partial(recompiled, few_rows, "SOURCE", "_library")


MUTANTS = (
    _mutant("what is no whole block is left out", "k < width; k += LANES", "k < even; k += LANES", ODD),
    _mutant("rows behind the first four are those again", "x + r * g.width, bias", "x, bias", ODD),
    _mutant(
        "threads leave the ends of the matrix to nobody",
        "g.entries * (part + 1) / g.parts",
        "g.entries / g.parts * (part + 1)",
        partial(support.in_threads, partial(support.products_are_torch_s, (1,), 1, 33, 16, torch.float32), 2),
    ),
    _mutant(
        "squares of the first lanes alone",
        "at < width; at += LANES) squares",
        "at < LANES; at += LANES) squares",
        partial(support.norms_are_torch_s, 2, 48),
    ),
    _mutant("halves are integers", "<< 16", "<< 15", HALVES),
    _mutant("no bias", "(bias == nullptr ? 0.0f : bias[n])", "0.0f", partial(support.bias_is_added, 70), LEARNED),
    Mutant(
        name="weights of GPT-2 as they lie",
        patches=((compiled._Conv1D, "forward", lambda self, x: self.bias.expand(*x.shape[:-1], -1)),),
        killed_by=(LEARNED,),
    ),
    Mutant(
        name="entries where they were before they moved",
        patches=((dense._CompiledPayload, "grow", dense.DensePayload.grow),),
        killed_by=(partial(support.compiled_is_eager, "baseline", "llama", grows_by=GROW_LEAST + 4),),
    ),
    Mutant(
        name="attention to the keys alone",
        patches=(
            (few_rows.Entries, "weighted", lambda self, weights: self.matrix.data[:, :, :1].expand(-1, -1, 2, -1)),
        ),
        killed_by=(DECODED,),
    ),
)
