"""An interpolated Kneser-Ney 3-gram over token ids: the likelihood a model has to beat to be called one."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence


class KneserNey:
    """Trigram model with absolute discounting and continuation counts.

    Source: Kneser & Ney 1995, in the interpolated form of Chen & Goodman 1999, one discount per order.

    Args:
        ids: training tokens.
        vocabulary: number of token ids.
    """

    def __init__(self, ids: Sequence[int], vocabulary: int) -> None:
        trigrams: Counter[tuple[int, ...]] = Counter(zip(ids, ids[1:], ids[2:], strict=False))
        # in how many contexts a shorter gram was seen
        bigrams: Counter[tuple[int, ...]] = Counter(gram[1:] for gram in trigrams)
        unigrams: Counter[tuple[int, ...]] = Counter(gram[1:] for gram in bigrams)
        self.vocabulary = vocabulary
        self._orders = [_Order(trigrams), _Order(bigrams), _Order(unigrams)]

    def nll_nats(self, ids: Sequence[int]) -> float:
        """Return the mean negative log-likelihood of the tokens after the first two [nats per token]."""
        total = sum(-math.log(self._probability(context)) for context in zip(ids, ids[1:], ids[2:], strict=False))
        return total / (len(ids) - 2)

    def _probability(self, trigram: tuple[int, ...]) -> float:
        probability = 1 / self.vocabulary
        for order, length in zip(reversed(self._orders), (1, 2, 3), strict=True):
            probability = order.interpolate(trigram[-length:], probability)
        return probability


class _Order:
    """Counts of one length, discounted."""

    def __init__(self, counts: Counter[tuple[int, ...]]) -> None:
        once, twice = (sum(1 for n in counts.values() if n == times) for times in (1, 2))
        self.discount = once / (once + 2 * twice) if once else 0.5
        self.counts = counts
        self.totals: defaultdict[tuple[int, ...], int] = defaultdict(int)
        self.kinds: defaultdict[tuple[int, ...], int] = defaultdict(int)
        for gram, count in counts.items():
            self.totals[gram[:-1]] += count
            self.kinds[gram[:-1]] += 1

    def interpolate(self, gram: tuple[int, ...], lower: float) -> float:
        """Return the probability of the gram's last token, given that of the next lower order."""
        total = self.totals.get(gram[:-1], 0)
        if total == 0:
            return lower
        discounted = max(0.0, self.counts.get(gram, 0) - self.discount)
        return (discounted + self.discount * self.kinds[gram[:-1]] * lower) / total
