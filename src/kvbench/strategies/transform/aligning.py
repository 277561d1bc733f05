"""Heads turned towards each other in ways that the model does not notice."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 10  # of turning all heads of a group towards their mean

Heads = tuple[Tensor, Tensor, Tensor]


def aligned(heads: Heads, output: Tensor, num_groups: int, rotary: Tensor | None) -> tuple[Heads, Tensor]:
    """Return queries, keys, values and the output projection of a layer that says what it said.

    A rotation of a head's values is undone by the output projection, one of its keys by the same one of its queries.
    Channels that rotary positions turn can only be turned in the same planes.

    Args:
        heads: weights of queries [H, D, n], keys and values [G, D, n].
        output: projection [hidden, H, D].
        num_groups: of neighbouring KV heads, within which keys and values come to resemble each other.
        rotary: inverse frequencies [rotary_dim / 2] of rotate-half RoPE, or None.
    """
    query, key, value = heads
    turned = 0 if rotary is None else 2 * len(rotary)
    free = rotations(key[:, turned:], num_groups)
    planes = angles(key[:, :turned], num_groups)

    def turn(made: Tensor) -> Tensor:
        share = len(made) // len(key)
        parts = [rotated(made[:, :turned], planes.repeat_interleave(share, 0))]
        parts.append(free.repeat_interleave(share, 0) @ made[:, turned:])
        return torch.cat(parts, dim=1)

    of_values = rotations(value, num_groups)
    of_queries = of_values.repeat_interleave(output.shape[1] // len(value), 0)
    return (turn(query), turn(key), of_values @ value), torch.einsum("ohd,hed->ohe", output, of_queries)


def rotations(heads: Tensor, num_groups: int) -> Tensor:
    """Return for each head [G, D, n] the orthogonal matrix [G, D, D] that turns it towards the mean of its group."""
    grouped = heads.unflatten(0, (num_groups, -1))
    mean, turns = grouped[:, :1], torch.eye(heads.shape[1], dtype=heads.dtype, device=heads.device)
    for _ in range(ROUNDS):
        left, _, right = torch.linalg.svd(mean @ grouped.mT)
        turns = left @ right
        mean = (turns @ grouped).mean(dim=1, keepdim=True)
    return turns.flatten(0, 1)


def angles(heads: Tensor, num_groups: int) -> Tensor:
    """Return for each head [G, D, n] the angles [G, D / 2] that turn its planes towards those of its group's mean."""
    grouped = in_planes(heads).unflatten(0, (num_groups, -1))
    mean, found = grouped[:, :1], heads.new_zeros(0)
    for _ in range(ROUNDS):
        found = (mean * grouped.conj()).sum(dim=-1).angle()
        mean = (torch.polar(torch.ones_like(found), found)[..., None] * grouped).mean(dim=1, keepdim=True)
    return found.flatten(0, 1)


def in_planes(heads: Tensor) -> Tensor:
    """Return channels [..., D, n] as points of the planes that rotate-half positions turn [..., D / 2, n], complex."""
    first, second = heads.chunk(2, dim=-2)
    return torch.complex(first, second)


def rotated(heads: Tensor, found: Tensor) -> Tensor:
    """Return channels [heads, D, n] turned by angles [heads, D / 2] in their planes."""
    turned = torch.polar(torch.ones_like(found), found)[..., None] * in_planes(heads)
    return torch.cat([turned.real, turned.imag], dim=-2)
