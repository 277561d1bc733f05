"""Packed rows on a GPU: the Triton kernel as it is compiled; skipped where there is none."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.test_packed import CASES, FORMS
from tests.support.codecs import packed_rows, products_equal_dense_ones, quantiser
from tests.support.packed_rows import IN_BLOCKS, Case, moved, rows_are_what_they_stand_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize(("how", "dim", "share"), [*FORMS, (quantiser(4), 128, 4)], ids=str)
def test_the_compiled_kernel_equals_dense_products(how: object, dim: int, share: int) -> None:
    products_equal_dense_ones(how, dim, share, "triton", "cuda")  # type: ignore[arg-type]


@pytest.mark.parametrize("case", [*CASES, *IN_BLOCKS], ids=str)
def test_rows_with_tables_outliers_and_rotation_are_what_they_stand_for(case: Case) -> None:
    rows_are_what_they_stand_for(case, "triton", "cuda")


def test_it_neither_waits_for_the_host_nor_changes_its_mind() -> None:
    packed = moved(packed_rows(quantiser(4), 128, 4000, "triton"), "cuda")
    rows, weights = torch.randn(2, 3, 4, 128, device="cuda"), torch.rand(2, 3, 4, 4000, device="cuda")
    out = torch.empty_like(weights)
    packed.logits(rows, out)
    first = out.clone(), packed.weighted(weights)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        packed.logits(rows, out)
        summed = packed.weighted(weights)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(out, first[0])
    assert torch.equal(summed, first[1])
