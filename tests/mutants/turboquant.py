"""Random rotations and levels for normal numbers with one thing wrong each."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.codecs import normal, turboquant
from kvbench.cache.codecs.latent import LatentPayload
from kvbench.cache.codecs.packed import PackedFormat
from kvbench.cache.codecs.turboquant import TurboQuant
from kvbench.kernels.packed import Rows
from tests.mutants.core_mutant import Mutant
from tests.support import turboquant as support

levels, rotation, encode = normal.levels, turboquant.random_rotation, normal.encode
packed_bytes = PackedFormat.packed_bytes
write, logits = LatentPayload.write, Rows.logits


def evenly(bits: int) -> Tensor:
    """Put levels at the same distance of each other."""
    most = float(levels(bits)[-1])
    return torch.linspace(-most, most, 2**bits, dtype=torch.float64)


def half_of_the_cells(bits: int) -> Tensor:
    """Take the middle of equally likely cells."""
    made: Tensor = torch.special.ndtri((torch.arange(2**bits, dtype=torch.float64) + 0.5) / 2**bits)
    return made


def unturned(self: TurboQuant, dim: int) -> Tensor:
    """Leave channels as they are."""
    return torch.eye(dim, dtype=torch.float64)


def without_signs(size: int, seed: int) -> Tensor:
    """Take the rotation as QR leaves it."""
    drawn = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found: Tensor = torch.linalg.qr(drawn)[0]
    return found


def no_rotation(size: int, seed: int) -> Tensor:
    """Draw a matrix that is not orthonormal."""
    drawn = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    made: Tensor = drawn / size**0.5
    return made


def by_the_largest(numbers: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Let the largest level be the largest number."""
    codes, _ = encode(numbers, bits)
    return codes, (numbers.abs().amax(dim=-1, keepdim=True) / levels(bits)[-1].float()).half()


def one_for_nothing(numbers: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Take 1 for the norm of nothing, as integers do."""
    codes, scale = encode(numbers, bits)
    return codes, torch.where(scale == 0, 1.0, scale)


def free_norms(self: PackedFormat, dim: int, entries: int) -> int:
    """Count codes alone."""
    return packed_bytes(self, dim, entries) - 2 * entries


def written_again(self: LatentPayload, start: int, entries: Tensor, position: Any = None) -> None:
    """Round the earlier entries again with each new one."""
    write(self, start, entries, position)
    if start > 0:
        at = torch.arange(start, dtype=torch.int32)[None, None]
        write(self, 0, self.read(start, at) * 1.01, position)


def whole_copy(self: Rows, rows: Tensor) -> Tensor:
    """Unpack all rows at once."""
    return rows @ self.numbers(0, sum(self.lengths), rows.dtype).mT


_LOSE = support.errors_are_those_of_normal_numbers

MUTANTS = (
    Mutant(
        name="levels at equal distances",
        patches=((support, "levels", evenly),),
        killed_by=(partial(support.levels_are_those_published, 3),),
    ),
    Mutant(
        name="the middle of what is equally likely",
        patches=((normal, "table", lambda bits, device: half_of_the_cells(bits).float()),),
        killed_by=(partial(_LOSE, 2), partial(_LOSE, 4)),
    ),
    Mutant(
        name="nothing is rotated",
        patches=((TurboQuant, "matrix", unturned),),
        killed_by=(partial(_LOSE, 3),),
    ),
    Mutant(
        name="signs as they come",
        patches=((support, "random_rotation", without_signs),),
        killed_by=(partial(support.a_rotation_may_be_any, 4),),
    ),
    Mutant(
        name="no rotation at all",
        patches=((turboquant, "random_rotation", no_rotation),),
        killed_by=(partial(_LOSE, 4),),
    ),
    Mutant(
        name="levels reach the largest number",
        patches=((normal, "encode", by_the_largest),),
        killed_by=(partial(_LOSE, 4),),
    ),
    Mutant(
        name="nothing has a norm",
        patches=((normal, "encode", one_for_nothing),),
        killed_by=(support.nothing_stays_nothing,),
    ),
    Mutant(
        name="norms cost nothing",
        patches=((PackedFormat, "packed_bytes", free_norms),),
        killed_by=(partial(support.bytes_are_those_of_codes_norms_and_one_matrix, 3),),
    ),
    Mutant(
        name="earlier tokens are rounded again",
        patches=((LatentPayload, "write", written_again),),
        killed_by=(partial(support.a_token_is_written_once, 4),),
    ),
    Mutant(
        name="a dense copy is read",
        patches=((Rows, "logits", whole_copy),),
        killed_by=(support.a_step_needs_little_room,),
    ),
)
