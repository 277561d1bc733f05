"""One layer that evicts and merges, in plain loops over queries, heads and entries."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests.support.slow_merging import Entry, Head, Merge


@dataclass(frozen=True, kw_only=True)
class MergeRules:
    """A merging method in the words of its paper.

    Args:
        merge: what becomes of entries that leave.
        reserved: entries of the budget that stand for many tokens.
        budget: entries, those included.
        period: entries that gather before as many leave while decoding; 0 if none ever do.
        sinks: first tokens that never leave.
        recent: newest tokens that do not leave at the end of the prompt, of so many entries.
        keeps_newest: whether the newest does not leave while decoding.
        accumulate: what a decoded token does to scores: "sum" adds its attention, "none" replaces, "ema" averages.
        decay: of the average.
        last_only: whether the prompt's last query alone counts, all heads of the layer together.
    """

    merge: Merge
    budget: int
    reserved: int = 0
    period: int = 1
    sinks: int = 0
    recent: Callable[[int], int] = lambda budget: budget // 2
    keeps_newest: bool = False
    accumulate: str = "sum"
    decay: float = 0.0
    last_only: bool = False


@dataclass
class SlowLayer:
    """Reads a prompt, then one token at a time; all of it for one row.

    Args:
        rules: of the method.
        scale: factor of the logits.
        layer: its index.
        share: query heads per KV head.
    """

    rules: MergeRules
    scale: float
    layer: int
    share: int
    heads: list[Head] = field(default_factory=list)

    def prompt(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Read a prompt: queries [H, n, D], keys and values [G, n, D]."""
        tokens = key.shape[1]
        for index in range(key.shape[0]):
            head = Head(index=index, layer=self.layer)
            for at in range(tokens):
                head.entries.append(Entry(position=at, key=key[index, at], value=value[index, at]))
            for at in range(tokens - 1 if self.rules.last_only else 0, tokens):
                _, weights = self._attend(query[self._queries(index), at], head.entries[: at + 1])
                for entry, weight in zip(head.entries, weights, strict=False):
                    entry.score += weight
            self.heads.append(head)
        self._agree()
        real = self.rules.budget - self.rules.reserved
        recent = self.rules.recent(real)
        for head in self.heads:
            safe = {at for at in range(tokens) if at < self.rules.sinks or at >= tokens - recent}
            ranked = sorted(head.entries, key=lambda e: (e.position in safe, e.score, e.position), reverse=True)
            self._leave(head, sorted(ranked[real:], key=lambda e: e.position))

    def step(self, query: Tensor, key: Tensor, value: Tensor, position: int) -> Tensor:
        """Read one token: query [H, D], key and value [G, D]; return the output [H, D]."""
        outs = []
        for head in self.heads:
            head.entries.append(Entry(position=position, key=key[head.index], value=value[head.index]))
            out, weights = self._attend(query[self._queries(head.index)], head.all)
            outs.append(out)
            for entry, weight in zip(head.all, weights, strict=True):
                if self.rules.accumulate == "sum":
                    entry.score += weight
                elif self.rules.accumulate == "none":
                    entry.score = weight
                else:
                    entry.score = self.rules.decay * entry.score + (1 - self.rules.decay) * weight
        self._agree()
        real, period = self.rules.budget - self.rules.reserved, self.rules.period
        recent = max(self.rules.recent(real), int(self.rules.keeps_newest))
        for head in self.heads:
            if period > 0 and len(head.entries) == real + period:
                free = [e for e in head.entries if self.rules.sinks <= e.position <= position - recent]
                self._leave(head, sorted(free, key=lambda e: e.score)[:period])
        return torch.cat(outs)

    def held(self) -> list[list[int]]:
        """Return the positions held per KV head."""
        return [[entry.position for entry in head.entries] for head in self.heads]

    def _queries(self, head: int) -> slice:
        return slice(head * self.share, (head + 1) * self.share)

    def _attend(self, queries: Tensor, entries: list[Entry]) -> tuple[Tensor, list[float]]:
        """Return the outputs of a group's queries [h, D] and the mean weight of each entry."""
        outs, means = [], [0.0] * len(entries)
        for query in queries:
            raw = [math.exp(float(query @ e.key) * self.scale) * e.number for e in entries]
            total = sum(raw)
            out = torch.zeros_like(entries[0].value)
            for at, (weight, entry) in enumerate(zip(raw, entries, strict=True)):
                out = out + entry.value * (weight / total)
                means[at] += weight / total / len(queries)
            outs.append(out)
        return torch.stack(outs), means

    def _agree(self) -> None:
        """Give all heads the mean score where a layer keeps one set."""
        if not self.rules.last_only:
            return
        for together in zip(*(head.entries for head in self.heads), strict=True):
            mean = sum(entry.score for entry in together) / len(together)
            for entry in together:
                entry.score = mean

    def _leave(self, head: Head, leaving: list[Entry]) -> None:
        positions = {entry.position for entry in leaving}
        head.entries = [entry for entry in head.entries if entry.position not in positions]
        self.rules.merge(head, leaving)
