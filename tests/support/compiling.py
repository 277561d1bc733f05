"""Compile the Triton kernel for a GPU that is not there, and see that what only the interpreter takes is refused.

python -m tests.support.compiling
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.errors import CompilationError

from kvbench.kernels.packed import Packed, on_gpu, triton_rows
from tests.mutants.triton_rows import ONLY_INTERPRETED, kernel_of
from tests.support.codecs import packed_rows, quantiser
from tests.support.packed_rows import ALL, PAGED, RAGGED, Case, rows_of

TYPES = {torch.uint8: "*u8", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
TYPES |= {torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64"}
KEYS = Case(bits=3, dim=40, codebook=True, outliers=3, rotary=16, tokens=ALL, expanded=True, share=3)
CAPABILITY = 90  # of an H100


def cubin(read: Any, packed: Packed, *, is_sum: bool) -> bytes:
    """Return the machine code for some rows and three queries of each KV head."""
    numbers = torch.empty(0)
    given = {"given": numbers, "given_step": 1, "out": numbers, "out_step": 1, "part_rows": 1}
    given |= on_gpu.arguments(packed, 3, packed.length, is_sum=is_sum)
    signature, constants = {}, {}
    for parameter in read.params:
        value = given[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        else:
            signature[parameter.name] = TYPES[value.dtype] if isinstance(value, Tensor) else "i32"
    made = triton.compile(ASTSource(read, signature, constants), target=GPUTarget("cuda", CAPABILITY, 32))
    code: bytes = made.asm["cubin"]
    return code


def main() -> None:
    """Compile what reads keys, and what sums values up."""
    keys, values = rows_of(KEYS, "triton")[0], packed_rows(quantiser(2, "tokens", 32), 24, 128, "triton")
    ragged, paged = (rows_of(cases[2], "triton")[0] for cases in (RAGGED, PAGED))
    given = (
        (keys, False),
        (values, True),
        *((packed, is_sum) for packed in (ragged, paged) for is_sum in (False, True)),
    )
    for packed, is_sum in given:
        assert len(cubin(triton_rows.read, packed, is_sum=is_sum)) > 1000
    try:
        cubin(kernel_of(ONLY_INTERPRETED), values, is_sum=True)
    except CompilationError:
        print("compiled, and refused")  # noqa: T201  what the test looks for


if __name__ == "__main__":
    main()
