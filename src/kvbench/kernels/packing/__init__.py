"""Small whole numbers packed into bytes along the last dimension.

A byte holds numbers that lie a part of the dimension apart, not neighbours: with 4 bits the first half of the numbers
are the low halves of the bytes, the second half the high ones. Unpacking then moves whole runs of numbers. Three bits
are a plane of two and a plane of one.
"""

from __future__ import annotations

import torch
from torch import Tensor

PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 8: (8,), 16: (8, 8)}  # bits of each plane, by bits of a number


def packed_width(dim: int, bits: int) -> int:
    """Return the bytes of so many numbers; a plane's last byte may be used in part."""
    return sum(_plane_width(dim, plane) for plane in PLANES[bits])


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack numbers from 0 to 2^bits - 1.

    Args:
        codes: uint8 [..., D].
        bits: of a number.

    Returns:
        Bytes [..., packed_width(D, bits)].
    """
    dim, done, planes = codes.shape[-1], 0, []
    for plane in PLANES[bits]:
        width, parts = _plane_width(dim, plane), 8 // plane
        mine = torch.nn.functional.pad((codes >> done) & (2**plane - 1), (0, width * parts - dim))
        byte = torch.zeros((*codes.shape[:-1], width), dtype=torch.uint8, device=codes.device)
        for part, numbers in enumerate(mine.split(width, dim=-1)):
            byte |= numbers << (part * plane)
        planes.append(byte)
        done += plane
    return planes[0] if len(planes) == 1 else torch.cat(planes, dim=-1)


def unpack(packed: Tensor, bits: int, dim: int) -> Tensor:
    """Return the numbers uint8 [..., dim] of bytes [..., packed_width(dim, bits)]."""
    codes, done, first = None, 0, 0
    for plane in PLANES[bits]:
        width, parts = _plane_width(dim, plane), 8 // plane
        byte = packed[..., first : first + width]
        mine = torch.cat([(byte >> (part * plane)) & (2**plane - 1) for part in range(parts)], dim=-1)[..., :dim]
        codes = mine if codes is None else codes | (mine << done)
        done, first = done + plane, first + width
    assert codes is not None
    return codes


def _plane_width(dim: int, plane: int) -> int:
    return -(-dim * plane // 8)
