"""The native kernel with one line of its source changed."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from functools import partial
from pathlib import Path

from kvbench.kernels.packed import native
from tests.mutants.core_mutant import Mutant
from tests.support.codecs import kernels_find_the_same_codes, products_equal_dense_ones, quantiser

FLOAT = quantiser(8, symmetric=True, levels="e4m3")


def _changed(source: Path, before: str, after: str) -> Path:
    """Return a file with a source, one thing in it changed."""
    text = source.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{before!r} is not there once"
    changed = text.replace(before, after)
    name = hashlib.sha256(changed.encode()).hexdigest()[:16]
    file = Path(tempfile.gettempdir()) / f"kvbench-mutant-{name}.cpp"
    file.write_text(changed, encoding="utf-8")
    return file


def _mutant(name: str, before: str, after: str, *killed_by: partial[None]) -> Mutant:
    fresh = functools.lru_cache(maxsize=None)(native._library.__wrapped__)  # what was compiled of the true source stays
    return Mutant(
        name=name,
        patches=((native, "SOURCE", _changed(native.SOURCE, before, after)), (native, "_library", fresh)),
        killed_by=killed_by,
    )


def _encoder(name: str, before: str, after: str, *killed_by: partial[None]) -> Mutant:
    fresh = functools.lru_cache(maxsize=None)(native._encoder.__wrapped__)
    return Mutant(
        name=name,
        patches=((native, "ENCODER", _changed(native.ENCODER, before, after)), (native, "_encoder", fresh)),
        killed_by=killed_by,
    )


MUTANTS = (
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
        "entry % tokens == 0) shared.read",
        "entry == 0) shared.read",
        partial(products_equal_dense_ones, quantiser(2, "tokens", 4), 64, 1, "native"),
    ),
    _mutant(
        "all queries of a head are the first",
        "queries + head * SHARE * DIM, query)",
        "queries + head * DIM, query)",
        partial(products_equal_dense_ones, quantiser(4, group=32), 64, 4, "native"),
    ),
    _encoder(
        "codes are made with a scale that is not what is kept",
        "const float scale = (float)kept;",
        "const float scale = reach == 0 ? 1 : reach;",
        partial(kernels_find_the_same_codes, quantiser(4, group=5), 12),
    ),
    _encoder(
        "the last group is as long as the others",
        "first + CHANNELS > DIM ? DIM - first : CHANNELS",
        "first + CHANNELS > DIM ? DIM - first - 1 : CHANNELS",
        partial(kernels_find_the_same_codes, quantiser(4, group=5), 12),
    ),
    _encoder(
        "a group of zeros has no scale",
        "if (kept == 0) kept = 1;",
        "",
        partial(kernels_find_the_same_codes, quantiser(2, group=32), 64),
    ),
    _encoder(
        "small floating point numbers are rounded as large ones",
        "size < 0x3c800000 ? small : normal",
        "normal",
        partial(kernels_find_the_same_codes, FLOAT, 64),
    ),
)
