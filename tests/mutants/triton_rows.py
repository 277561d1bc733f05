"""The Triton kernel with one line of its source changed."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from functools import partial
from pathlib import Path

from kvbench.kernels.packed import on_gpu, triton_rows
from tests.mutants.core_mutant import Mutant
from tests.support.codecs import products_equal_dense_ones, quantiser
from tests.support.packed_rows import ALL, IN_BLOCKS, PAGED, RAGGED, Case, rows_are_what_they_stand_for

KEYS = Case(codebook=True, outliers=3, rotary=10, tokens=ALL, expanded=True, share=4, dim=24)
FLOAT = quantiser(8, symmetric=True, levels="e4m3")
SOURCE = Path(triton_rows.__file__)


def changed(before: str, after: str) -> str:
    """Return the kernel's source with one thing in it changed."""
    text = SOURCE.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{before!r} is not there once"
    return text.replace(before, after)


def kernel_of(text: str) -> object:
    """Return the kernel of a source; Triton reads it where it lies."""
    name = f"kvbench_mutant_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    file = Path(tempfile.gettempdir()) / f"{name}.py"
    draft = file.with_suffix(f".{os.getpid()}")  # another test process may be reading the file
    draft.write_text(text, encoding="utf-8")
    draft.replace(file)
    found = importlib.util.spec_from_file_location(name, file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.read


def _mutant(name: str, before: str, after: str, *killed_by: partial[None]) -> Mutant:
    return Mutant(name=name, patches=((triton_rows, "read", kernel_of(changed(before, after))),), killed_by=killed_by)


ONLY_INTERPRETED = changed("total = tl.zeros([QUERIES, LANES], tl.float32)", "total = 0.0")  # grows in a loop
FEW_PROGRAMS = 8  # so that a part has more than one block of rows
MUTANTS = (
    _mutant(
        "the halves of a byte change places",
        "(byte >> (channel // width * PLANE)[None, :])",
        "(byte >> (8 - PLANE - channel // width * PLANE)[None, :])",
        partial(products_equal_dense_ones, quantiser(4), 16, 1, "triton"),
    ),
    _mutant(
        "subnormal numbers are as large as normal ones",
        "tl.where(size < 8,",
        "tl.where(size < 0,",
        partial(products_equal_dense_ones, FLOAT, 16, 1, "triton"),
    ),
    _mutant(
        "all rows share the first scales",
        "group = row // TOKENS\n",
        "group = row // TOKENS * 0\n",
        partial(products_equal_dense_ones, quantiser(2, "tokens", 4), 16, 1, "triton"),
    ),
    _mutant(
        "all blocks of rows share the first scales",
        "group = first // TOKENS + tl.arange(0, 1)",
        "group = first // TOKENS * 0 + tl.arange(0, 1)",
        partial(rows_are_what_they_stand_for, IN_BLOCKS[0], "triton"),
    ),
    _mutant(
        "all queries of a head are the first",
        "mine = given + (index * SHARE + query) * given_step",
        "mine = given + index * SHARE * given_step",
        partial(products_equal_dense_ones, quantiser(4, group=5), 12, 4, "triton"),
    ),
    _mutant(
        "the last bit of three is lost",
        "1, DIM, WIDTH) << 2",
        "1, DIM, WIDTH) * 0",
        partial(products_equal_dense_ones, quantiser(3), 16, 1, "triton"),
    ),
    _mutant(
        "what lies past the last row is a row too",
        "tl.load(mine + line, mask=line < end, other=0.0)",
        "tl.load(mine + tl.minimum(line, end - 1))",
        partial(products_equal_dense_ones, quantiser(4), 16, 1, "triton"),
    ),
    _mutant(
        "outliers go to the first head",
        "- head.to(tl.int32) * DIM",
        "",
        partial(rows_are_what_they_stand_for, KEYS, "triton"),
    ),
    _mutant(
        "rows are turned back",
        "low * cos - high * sin, high * cos + low * sin",
        "low * cos + high * sin, high * cos - low * sin",
        partial(rows_are_what_they_stand_for, KEYS, "triton"),
    ),
    _mutant(
        "angles are not rounded as the model's",
        "(position[:, None] * frequency[None, :]).to(tl.float32)",
        "position[:, None] * frequency[None, :]",
        partial(rows_are_what_they_stand_for, KEYS, "triton"),
    ),
    _mutant(
        "channels that are not rotated are forgotten",
        "logit += tl.sum(number *",
        "logit += 0 * tl.sum(number *",
        partial(rows_are_what_they_stand_for, KEYS, "triton"),
    ),
    _mutant(
        "heads of the second batch row are those of the first",
        "scales += batch * scales_batch + head",
        "scales += head",
        partial(rows_are_what_they_stand_for, Case(tokens=4, codebook=True, dim=20), "triton"),
    ),
    Mutant(
        name="parts lie a block apart, whatever they hold",
        patches=(
            (on_gpu, "PROGRAMS", FEW_PROGRAMS),
            (triton_rows, "read", kernel_of(changed("begin, end = part * part_rows,", "begin, end = part * ROWS,"))),
        ),
        killed_by=(partial(rows_are_what_they_stand_for, Case(), "triton"),),
    ),
    _mutant(
        "all heads have the rows of the first",
        "span = tl.load(starts + index)",
        "span = tl.load(starts)",
        partial(rows_are_what_they_stand_for, RAGGED[3], "triton"),
    ),
    _mutant(
        "a head has a row too few",
        "end = tl.minimum(end, length)",
        "end = tl.minimum(end, length - 1)",
        partial(rows_are_what_they_stand_for, RAGGED[0], "triton"),
    ),
    _mutant(
        "what a head does not have is a product of 0",
        'float("-inf")',
        "0.0",
        partial(rows_are_what_they_stand_for, RAGGED[1], "triton"),
    ),
    _mutant(
        "all batch rows have the pages of the first",
        "tl.load(table + batch * table_step + row // PAGE)",
        "tl.load(table + row // PAGE)",
        partial(rows_are_what_they_stand_for, PAGED[0], "triton"),
    ),
    _mutant(
        "a page that does not exist is the first",
        "            is_there = page >= 0",
        "            is_there = page >= -1",
        partial(rows_are_what_they_stand_for, PAGED[2], "triton"),
    ),
)
