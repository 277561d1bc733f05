"""Entries matter by the attention they would receive from noisy logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.cache.plan import score_dtype
from kvbench.cache.views import Observation, PromptView
from kvbench.strategies.selection.attention import AttentionMass
from kvbench.strategies.selection.lots import exponential, pair_lots


@dataclass(frozen=True, kw_only=True)
class NoisyMass(AttentionMass):
    """The sum over queries of a softmax over logits with Gumbel noise, flatter and flatter while decoding.

    Source: Adnan et al. (Keyformer), arXiv:2403.09054, sec. 3.
    Deviates: with grouped queries the mean over a group's query heads is summed; the noise is a hash of seed, layer,
        query head and the two positions instead of a generator's state, so that no way of cutting a prompt up changes
        it; the temperature rises over a set number of steps and stays, where the authors take the length of the
        text to be generated.

    A softmax over (logits + noise) / tau is that over (log weight + noise) / tau, so the weights are enough: each is
    divided by an exponential variate, whose log is minus a Gumbel variate.

    Args:
        seed: another seed is another draw.
        noise: factor of the noise; 0 for none.
        tau_init: temperature of the prompt.
        tau_end: temperature after `tau_steps` and from then on.
        tau_steps: decode steps in between.
    """

    seed: int
    noise: float
    tau_init: float
    tau_end: float
    tau_steps: int

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.noise < 0:
            raise ValueError(f"strategy.scorer.noise must be 0 or more; got {self.noise}.")
        if self.tau_init <= 0 or self.tau_end <= 0:
            raise ValueError(
                f"strategy.scorer.tau_init and strategy.scorer.tau_end must be above 0; got {self.tau_init} and "
                f"{self.tau_end}."
            )
        if self.tau_steps < 1:
            raise ValueError(f"strategy.scorer.tau_steps must be at least 1; got {self.tau_steps}.")

    def prompt(self, view: PromptView) -> Tensor:
        """Return what the queries of this pass would have paid with noise [B, G, n]."""
        if self._is_plain(self.tau_init):
            return super().prompt(view)
        batch, groups, entries, _ = view.keys.shape
        share = view.query.shape[1] // groups
        heads = torch.arange(view.query.shape[1], device=view.keys.device).view(groups, share, 1, 1)
        key = view.position[:, 0, None, None]
        received = torch.zeros(batch, groups, entries, dtype=score_dtype(view.keys.dtype), device=view.keys.device)
        for weights, at in view.attention():
            seen = slice(0, weights.shape[-1])
            for group in range(groups):  # one at a time: a lot takes more bytes than a weight
                query = at[:, None, :, None]
                noisy = self._noisy(weights[:, group], view.layer, heads[group], query, key[..., seen], 0)
                received[:, group, seen] += noisy.sum(dim=2).mean(dim=1)
        return received

    def observe(self, seen: Observation) -> None:
        """Add the group's mean of the newest query's noisy softmax."""
        step = seen.step + 1  # the prompt was step 0
        step = step.to(seen.weights.dtype) if isinstance(step, Tensor) else step
        if self._is_plain(self._tau(step)):
            super().observe(seen)
            return
        _, groups, share, _ = seen.weights.shape
        heads = torch.arange(groups * share, device=seen.weights.device).view(groups, share, 1)
        key = seen.position[:, :, None]
        newest = key.amax(dim=-1, keepdim=True)
        noisy = self._noisy(seen.weights, seen.layer, heads, newest, key, step)
        seen.score.add_(noisy.mean(dim=2))

    def _noisy(
        self, weights: Tensor, layer: int, heads: Tensor, query: Tensor, key: Tensor, step: Tensor | int
    ) -> Tensor:
        """Return weights as noisy logits would have made them, 0 where they are all 0; shapes broadcast."""
        odds = weights
        if self.noise > 0:
            lot = pair_lots(self.seed, layer, heads, query, key)
            odds = exponential(lot, weights.dtype).pow_(-self.noise).mul_(odds)
        tau = self._tau(step)
        odds = odds if not isinstance(tau, Tensor) and tau == 1 else odds.pow(1 / tau)
        return odds.div_(odds.sum(dim=-1, keepdim=True).clamp_(min=torch.finfo(odds.dtype).tiny))

    def _tau(self, step: Tensor | int) -> Tensor | float:
        steps = step.clamp(max=self.tau_steps) if isinstance(step, Tensor) else min(step, self.tau_steps)
        return self.tau_init + steps / self.tau_steps * (self.tau_end - self.tau_init)

    def _is_plain(self, tau: Tensor | float) -> bool:
        """Whether noise and temperature change nothing, so that not even rounding may."""
        return self.noise == 0 and not isinstance(tau, Tensor) and tau == 1
