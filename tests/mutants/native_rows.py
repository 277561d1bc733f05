"""The native kernel with one line of its source changed."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import tempfile
from functools import partial
from pathlib import Path
from types import ModuleType

from torch import Tensor

from kvbench.kernels.packed import native
from tests.mutants.core_mutant import Check, Mutant
from tests.support.codecs import both_kernels_keep_the_same, products_equal_dense_ones, quantiser
from tests.support.packed_rows import ALL, PAGED, RAGGED, Case, rows_are_what_they_stand_for

KEYS = Case(codebook=True, outliers=7, rotary=32, tokens=ALL, expanded=True, share=4)
FLOAT = quantiser(8, symmetric=True, levels="e4m3")


def changed(source: Path, before: str, after: str) -> Path:
    """Return a source with one thing in it, or in what it includes, changed."""
    texts = {file.name: file.read_text(encoding="utf-8") for file in (source, *source.parent.glob("*.h"))}
    assert sum(text.count(before) for text in texts.values()) == 1, f"{before!r} is not there once"
    name = hashlib.sha256((before + after).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"kvbench-mutant-{name}"
    folder.mkdir(exist_ok=True)
    for file, text in texts.items():
        (folder / file).write_text(text.replace(before, after), encoding="utf-8")
    return folder / source.name


def recompiled(
    kernel: ModuleType, source: str, library: str, name: str, before: str, after: str, *killed_by: Check
) -> Mutant:
    """Return a mutant with one line of a source changed; what was compiled of the true one stays.

    Args:
        kernel: the module.
        source: the name in it of the source.
        library: the name in it of what keeps the compiled library.
        name: of the mutant.
        before: what is there once.
        after: what takes its place.
        killed_by: what fails.
    """
    fresh = functools.lru_cache(maxsize=None)(getattr(kernel, library).__wrapped__)
    patches = ((kernel, source, changed(getattr(kernel, source), before, after)), (kernel, library, fresh))
    return Mutant(name=name, patches=patches, killed_by=killed_by)


_mutant = partial(recompiled, native, "SOURCE", "_reader")
_encoder = partial(recompiled, native, "ENCODER", "_encoder")


asked = native.Given.asked


def one_row_short(self: native.Given, given: Tensor, out: Tensor, row_step: int, entries: int) -> ctypes.Structure:
    """Leave the last row out."""
    return asked(self, given, out, row_step, entries - 1)


MUTANTS = (
    Mutant(
        name="the last row is not read",
        patches=((native.Given, "asked", one_row_short),),
        killed_by=(partial(products_equal_dense_ones, quantiser(4), 64, 1, "native"),),
    ),
    _mutant(
        "the halves of a byte change places",
        "codes[part * each + at] |=",
        "codes[(parts - 1 - part) * each + at] |=",
        partial(products_equal_dense_ones, quantiser(4), 64, 1, "native"),
    ),
    _mutant(
        "subnormal numbers are lost",
        "((code & 0x7f) << 20)",
        "((code & 0x78) ? (code & 0x7f) << 20 : (code & 0))",
        partial(products_equal_dense_ones, FLOAT, 64, 1, "native"),
    ),
    _mutant(
        "scales of channels are read once",
        "shared.read(scales + group * SCALES, lows + group * SCALES)",
        "shared.read(scales, lows)",
        partial(products_equal_dense_ones, quantiser(2, "tokens", 4), 64, 1, "native"),
    ),
    _mutant(
        "all queries of a head are the first",
        "padded(from + q * DIM, query[q])",
        "padded(from, query[q])",
        partial(products_equal_dense_ones, quantiser(4, group=32), 64, 4, "native"),
    ),
    _mutant(
        "least numbers of a group are those of the first",
        "least(scale, lows, group) * given.sums[q][group]",
        "least(scale, lows, 0) * given.sums[q][group]",
        partial(products_equal_dense_ones, quantiser(4, group=32), 64, 4, "native"),
    ),
    _mutant(
        "all of a query counts for each group",
        "at = begin_of(group); at < end_of(group); at++) sum += query",
        "at = 0; at < N; at++) sum += query",
        partial(products_equal_dense_ones, quantiser(4, group=32), 64, 4, "native"),
    ),
    _mutant(
        "the last products wait for ever",
        "for (int at = 0; at < count; at++) *to[at]",
        "for (int at = 1; at < count; at++) *to[at]",
        partial(rows_are_what_they_stand_for, Case(tokens=4, codebook=True), "native"),
    ),
    _mutant(
        "products of four rows change places",
        "*this->to[at] = four[at]",
        "*this->to[at] = four[3 - at]",
        partial(products_equal_dense_ones, quantiser(8), 64, 1, "native"),
    ),
    _encoder(
        "codes are made with a scale that is not what is kept",
        "const float scale = (float)kept;",
        "const float scale = reach == 0 ? 1 : reach;",
        partial(both_kernels_keep_the_same, quantiser(4, group=5), 12),
    ),
    _encoder(
        "the last group is as long as the others",
        "first + CHANNELS > DIM ? DIM - first : CHANNELS",
        "first + CHANNELS > DIM ? DIM - first - 1 : CHANNELS",
        partial(both_kernels_keep_the_same, quantiser(4, group=5), 12),
    ),
    _encoder(
        "a group of zeros has no scale",
        "if ((float)kept == 0) kept = in_few_bits<Scale>(1);",
        "",
        partial(both_kernels_keep_the_same, quantiser(2, group=32), 64),
    ),
    _encoder(
        "small floating point numbers are rounded as large ones",
        "size < 0x3c800000 ? small : normal",
        "normal",
        partial(both_kernels_keep_the_same, FLOAT, 64),
    ),
    _encoder(
        "scales that e4m3 does not reach are no numbers",
        "to_e4m3(clamped(number, -LARGEST_E4M3, LARGEST_E4M3))};",
        "to_e4m3(number)};",
        partial(both_kernels_keep_the_same, quantiser(2, group=32, scales="e4m3"), 64),
    ),
    _encoder(
        "the second batch row is written over the first",
        "batch * to->codes_step[0] + head",
        "head",
        partial(both_kernels_keep_the_same, quantiser(4, group=5), 12),
    ),
    _encoder(
        "tokens are read one behind the other, however they lie",
        "head * head_step + token * token_step",
        "head * head_step + token * DIM",
        partial(both_kernels_keep_the_same, quantiser(4, group=5), 12),
    ),
    _encoder(
        "all heads take the slots of the first",
        "(batch * to->heads + head) * tokens + token",
        "batch * to->heads * tokens + token",
        partial(both_kernels_keep_the_same, quantiser(4, group=5), 12),
    ),
    _mutant(
        "the upper half of a table is its lower half",
        "LEVELS * sizeof(float));",
        "LEVELS / 2 * sizeof(float));",
        partial(rows_are_what_they_stand_for, KEYS, "native"),
    ),
    _mutant(
        "outliers go to the head before",
        "at = head == 0 ? 0 : ends[head - 1]; at < ends[head]",
        "at = 0; at < ends[head]",
        partial(rows_are_what_they_stand_for, KEYS, "native"),
    ),
    _mutant(
        "angles are not rounded as the model's",
        "__builtin_fmaf(-at, frequency[pair], rounded)",
        "0 * rounded",
        partial(rows_are_what_they_stand_for, KEYS, "native"),
    ),
    _mutant(
        "heads of the second batch row are those of the first",
        "rows.scales + batch * rows.scales_step[0]",
        "rows.scales",
        partial(rows_are_what_they_stand_for, Case(tokens=4, codebook=True), "native"),
    ),
    _mutant(
        "all batch rows have the pages of the first",
        "rows.table[batch * rows.table_step + first / PAGE]",
        "rows.table[first / PAGE]",
        partial(rows_are_what_they_stand_for, PAGED[0], "native"),
    ),
    _mutant(
        "a page that does not exist is the first",
        "if (page >= 0) each_row<IS_RAW>(page *",
        "each_row<IS_RAW>((page < 0 ? 0 : page) *",
        partial(rows_are_what_they_stand_for, PAGED[2], "native"),
    ),
    _mutant(
        "rows behind a page are those of the next one in the pool",
        "last = (first / step + 1) * step",
        "last = first + step + 1",
        partial(rows_are_what_they_stand_for, PAGED[0], "native"),
    ),
    _mutant(
        "a page's sum is forgotten with the next page",
        "if (block.first > rows.start(block.part, block.index()))",
        "if (OUTLIERS && block.first > rows.start(block.part, block.index()))",
        partial(rows_are_what_they_stand_for, PAGED[3], "native"),
    ),
    _mutant(
        "all heads have the rows of the first",
        "each_row<IS_RAW>(SPANS ? rows.starts[index()] : 0, use)",
        "each_row<IS_RAW>(SPANS ? rows.starts[0] : 0, use)",
        partial(rows_are_what_they_stand_for, RAGGED[3], "native"),
    ),
    _mutant(
        "a head has as many rows as the one that has most",
        "return SPANS ? stops[index] - starts[index] : entries;",
        "return entries;",
        partial(rows_are_what_they_stand_for, RAGGED[0], "native"),
    ),
    _mutant(
        "what a head does not have is a product of 0",
        "mine + q * row_step + rows.entries, -INFINITY)",
        "mine + q * row_step + rows.entries, 0)",
        partial(rows_are_what_they_stand_for, RAGGED[1], "native"),
    ),
    _mutant(
        "scales are those of another page",
        "(PER_CHANNEL ? 0 : entry + further)",
        "(PER_CHANNEL ? 0 : entry)",
        partial(rows_are_what_they_stand_for, PAGED[0], "native"),
    ),
    _mutant(
        "the lower half of a number is its upper one",
        "(uint32_t)numbers[lane] << 16",
        "(uint32_t)numbers[lane]",
        partial(rows_are_what_they_stand_for, PAGED[2], "native"),
    ),
)
