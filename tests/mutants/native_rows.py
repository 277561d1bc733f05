"""The native kernel with one line of its source changed."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from functools import partial
from pathlib import Path

from kvbench.kernels.packed import native
from tests.mutants.core_mutant import Mutant
from tests.support.codecs import products_equal_dense_ones, quantiser

FLOAT = quantiser(8, symmetric=True, levels="e4m3")


def _changed(before: str, after: str) -> Path:
    """Return a file with the source, one thing in it changed."""
    text = native.SOURCE.read_text(encoding="utf-8")
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
        patches=((native, "SOURCE", _changed(before, after)), (native, "_library", fresh)),
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
)
