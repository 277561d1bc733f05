"""Entries matter by the attention that queries still to come are expected to pay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.cache.plan import score_dtype
from kvbench.cache.rotary import turn_by, turns
from kvbench.cache.views import PromptView
from kvbench.strategies.selection.scorer import ScorerDefaults

_NUMBERS = 1 << 20  # of queries or keys that are made anew at once


@dataclass(frozen=True, kw_only=True)
class ExpectedAttention(ScorerDefaults):
    """The expected attention of normally distributed queries at the next positions, times the size of the value.

    The mean and covariance of a head's queries before rotation, over the prompt without its first tokens, are turned
    by the mean rotation of the positions that follow; the mean of the exponential of their product with a key is
    known in closed form. A softmax over entries and the mean over the group follow.

    Source: Devoto et al. (Expected Attention), arXiv:2510.00636; defaults as ExpectedAttentionPress in
        NVIDIA/kvpress.
    Deviates: queries are turned back from where they were read instead of made anew from hidden states, so that
        models which normalise queries are served too; learned positions (GPT-2) have nothing to turn.

    Args:
        num_future: positions after the prompt whose mean rotation counts.
        num_sink: first tokens, whose queries and attention do not count; they get the best score.
        epsilon: added to the expected attention.
        with_covariance: whether the spread of queries counts and not only their mean.
        with_value_norm: whether the L2 norm of the value counts.
    """

    num_future: int
    num_sink: int
    epsilon: float
    with_covariance: bool
    with_value_norm: bool

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.num_future < 1 or self.num_sink < 0 or not self.epsilon >= 0:
            raise ValueError(
                f"strategy.scorer needs num_future >= 1, num_sink >= 0 and epsilon >= 0; got num_future="
                f"{self.num_future}, num_sink={self.num_sink}, epsilon={self.epsilon}."
            )

    def voters(self, tokens: int) -> int:
        """Return all queries of the prompt; in chunks they wait for its end."""
        return tokens

    def prompt(self, view: PromptView) -> Tensor:
        """Return the expected attention times the values' norms [B, G, n], a few KV heads at a time."""
        batch, heads, entries, width = view.keys.shape
        share = view.query.shape[1] // heads
        most = max(1, _NUMBERS // (batch * share * entries * width))
        rotation = mean_rotation(view, self.num_future)[:, None, None]
        blocks = [slice(first, first + most) for first in range(0, heads, most)]
        logits = torch.cat([self._logits(view, block, rotation) for block in blocks], dim=1)
        counts = view.position >= self.num_sink
        logits = logits.masked_fill_(~counts[:, :, None], -torch.inf)
        expected = logits.softmax(dim=-1).nan_to_num_(0.0).mean(dim=2)
        if self.with_value_norm:
            expected = (expected + self.epsilon) * torch.linalg.vector_norm(view.values.to(expected.dtype), dim=-1)
        best = expected.masked_fill(~counts, 0.0).amax(dim=-1, keepdim=True)
        return torch.where(counts, expected, best)

    def _logits(self, view: PromptView, heads: slice, rotation: Tensor) -> Tensor:
        """Return the log of the expected exponentials of KV heads' keys for each query head [B, g, H / G, n].

        Args:
            view: of the whole prompt.
            heads: KV heads.
            rotation: mean one of the positions to come [B, 1, 1, D, D].
        """
        mean, covariance = query_statistics(view, heads, self.num_sink)
        mean = view.scale * (rotation @ mean[..., None]).transpose(-1, -2)  # [B, g, H / G, 1, D]
        keys = view.keys[:, heads].to(mean.dtype)
        if not self.with_covariance:
            return (mean @ keys[:, :, None].transpose(-1, -2)).squeeze(3)
        covariance = view.scale**2 / 2 * (rotation @ covariance @ rotation.transpose(-1, -2))
        flat = keys.flatten(0, 1)
        members = zip(mean.flatten(0, 1).unbind(dim=1), covariance.flatten(0, 1).unbind(dim=1), strict=True)
        found = [torch.baddbmm(m, flat, c).mul_(flat).sum(dim=-1) for m, c in members]
        logits: Tensor = torch.stack(found, dim=1).unflatten(0, keys.shape[:2])
        return logits


def query_statistics(view: PromptView, heads: slice, num_sink: int) -> tuple[Tensor, Tensor]:
    """Return the mean [B, g, H / G, D] and covariance [B, g, H / G, D, D] of KV heads' queries before rotation.

    Args:
        view: of the whole prompt.
        heads: KV heads.
        num_sink: first tokens whose queries do not count.
    """
    query = view.query.unflatten(1, (view.keys.shape[1], -1))[:, heads]
    query = query.to(score_dtype(query.dtype)).flatten(1, 2)
    if view.shape.rotary is not None:
        query = turn_by(query, *view.once(_turns_back))
    counts = (view.query_position >= num_sink).to(query.dtype)[:, None, :, None]
    number = counts.sum(dim=2).clamp(min=1)
    mean = (counts.transpose(-1, -2) @ query).squeeze(2) / number
    apart = (query - mean[:, :, None]).mul_(counts)
    groups = (-1, view.query.shape[1] // view.keys.shape[1])
    return mean.unflatten(1, groups), (apart.transpose(-1, -2) @ apart / number[..., None]).unflatten(1, groups)


def _turns_back(view: PromptView) -> tuple[Tensor, Tensor]:
    """Return cosines and sines that turn the queries of every head back [B, 1, T, rotary_dim / 2]."""
    assert view.shape.rotary is not None
    return turns(-view.query_position[:, None, :, None], view.shape.rotary, view.query.dtype)


def mean_rotation(view: PromptView, num_future: int) -> Tensor:
    """Return the mean rotation matrix of the positions after the prompt [B, D, D]."""
    dtype, device, width = score_dtype(view.keys.dtype), view.keys.device, view.keys.shape[3]
    rotation = torch.eye(width, dtype=dtype, device=device).repeat(len(view.keys), 1, 1)
    if view.shape.rotary is None:
        return rotation
    first = view.query_position.amax(dim=-1)[:, None] + 1
    ahead = (first + torch.arange(num_future, device=device)).to(dtype)
    angle = ahead[..., None] * view.shape.rotary.to(device=device, dtype=dtype)
    cos, sin = angle.cos().mean(dim=1), angle.sin().mean(dim=1)
    one = torch.arange(cos.shape[1], device=device)
    other = one + len(one)
    rotation[:, one, one] = rotation[:, other, other] = cos
    rotation[:, one, other], rotation[:, other, one] = -sin, sin
    return rotation
