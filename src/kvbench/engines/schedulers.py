"""In which order requests that wait are let in, and whether they share what earlier ones have computed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvbench.cache.prefix_tree import Node, PrefixTree


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A request that is not under way.

    Args:
        number: of the request.
        tokens: whose entries it needs before it goes on.
        new_tokens: still to be generated.
        waited_s: since it came.
    """

    number: int
    tokens: list[int]
    new_tokens: int
    waited_s: float


@dataclass(frozen=True, kw_only=True)
class Unscheduled:
    """Nothing waits: the engine reads one batch."""


class Scheduler(ABC):
    """Chooses who is next."""

    @property
    def reuses(self) -> bool:
        """Whether entries stay in a tree of prefixes, for whatever begins with the same tokens."""
        return True

    @abstractmethod
    def order(self, waiting: Sequence[Waiting], tree: PrefixTree | None) -> list[Waiting]:
        """Return who is let in first, and who then.

        Args:
            waiting: in order of arrival.
            tree: of prefixes that have entries; None where none are kept.
        """


@dataclass(frozen=True, kw_only=True)
class FirstCome(Scheduler):
    """First come, first served.

    Args:
        reuse: whether entries stay, for whatever begins with the same tokens.
    """

    reuse: bool

    @property
    def reuses(self) -> bool:
        """Whether entries stay."""
        return self.reuse

    def order(self, waiting: Sequence[Waiting], tree: PrefixTree | None) -> list[Waiting]:
        """Return who waits, in order of arrival."""
        return list(waiting)


@dataclass(frozen=True, kw_only=True)
class Grouped(Scheduler):
    """Who shares a prefix comes one after the other.

    Requests go depth first through the tree of what waits, so that a prefix has served everybody before another one
    needs its pages. Of two branches the one with the earliest request comes first: nobody waits for what came later to
    another branch.
    """

    def order(self, waiting: Sequence[Waiting], tree: PrefixTree | None) -> list[Waiting]:
        """Return who waits, by branches."""
        return self._branches(list(waiting), 0)

    def _branches(self, waiting: list[Waiting], at: int) -> list[Waiting]:
        """Return requests that agree in the tokens before `at`, branch by branch."""
        if len(waiting) < 2:
            return waiting
        at = _agreed(waiting, at)
        branches: dict[int | None, list[Waiting]] = {}
        for one in waiting:
            branches.setdefault(one.tokens[at] if at < len(one.tokens) else None, []).append(one)
        ended = branches.pop(None, [])
        return [*ended, *(one for branch in branches.values() for one in self._branches(branch, at + 1))]


@dataclass(frozen=True, kw_only=True)
class Ageing(Scheduler):
    """Orders by what is kept, and lets nobody wait for ever.

    Args:
        ageing_per_s: what a second of waiting is worth, in what requests are ordered by.
    """

    ageing_per_s: float

    def __post_init__(self) -> None:
        """Refuse an order in which waiting counts against a request."""
        if self.ageing_per_s < 0:
            raise ValueError(f"scheduler.ageing_per_s must not be negative; got {self.ageing_per_s}.")

    def aged(self, one: Waiting) -> float:
        """Return what a request's waiting is worth."""
        return self.ageing_per_s * one.waited_s


@dataclass(frozen=True, kw_only=True)
class LongestMatch(Ageing):
    """Who has most tokens with entries comes first; waiting counts as tokens.

    Source: Zheng et al. (SGLang), arXiv:2312.07104, sec. 3; its code orders by arrival where more than 128 wait.
    Deviates: two that arrive together with the same new prefix need not wait for each other, as within a pass one reads
        what the other stores; and there is ageing.

    Args:
        most_ordered: requests beyond which the order is that of arrival.
    """

    most_ordered: int

    def __post_init__(self) -> None:
        """Refuse to order nothing."""
        super().__post_init__()
        if self.most_ordered < 1:
            raise ValueError(f"scheduler.most_ordered must be at least 1; got {self.most_ordered}.")

    def order(self, waiting: Sequence[Waiting], tree: PrefixTree | None) -> list[Waiting]:
        """Return who waits, the longest match first, and of equal ones the earliest."""
        assert tree is not None
        if len(waiting) > self.most_ordered:
            return list(waiting)
        return sorted(waiting, key=lambda one: -tree.length(one.tokens) - self.aged(one))


@dataclass(frozen=True, kw_only=True)
class DepthFirst(Ageing):
    """Branches of the tree of entries that most requests wait for come first; waiting counts as requests.

    Source: the depth-first order by weight of SGLang's code; arXiv:2312.07104, sec. 3, shows that going depth first is
        best where the longest path fits.
    """

    def order(self, waiting: Sequence[Waiting], tree: PrefixTree | None) -> list[Waiting]:
        """Return who waits, by the branches of what is kept."""
        assert tree is not None
        ends = [(tree.find(one.tokens), one) for one in waiting]
        weights, ages = defaultdict[int, float](float), defaultdict[int, float](float)
        for node, one in ends:
            ages[id(node)] += self.aged(one)
            for each in node.path():
                weights[id(each)] += 1 + self.aged(one)

        def place(node: Node) -> list[tuple[float, float]]:
            path = [(-weights[id(each)], float(each.tokens[0])) for each in node.path()]
            return [*reversed(path), (-ages[id(node)], math.inf)]  # of a node's own, only their waiting counts

        return [one for _, one in sorted(ends, key=lambda end: place(end[0]))]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Requests that share a prefix.

    Args:
        members: in order of arrival.
        shared: tokens of the prefix.
        there: first tokens of it that have entries.
    """

    members: Sequence[Waiting]
    shared: int
    there: int

    @property
    def saved(self) -> int:
        """Tokens that are computed less often if the group runs together."""
        return (len(self.members) - 1) * self.shared + self.there

    @property
    def share_generated(self) -> float:
        """Tokens to generate over tokens of prompts, what is shared counted once."""
        prompts = sum(len(one.tokens) - self.shared for one in self.members) + self.shared
        return sum(one.new_tokens for one in self.members) / prompts


@dataclass(frozen=True, kw_only=True)
class GlobalGroups(Ageing):
    """Everything that waits is divided into groups so that most is saved, and runs group by group.

    Groups that generate most for what they read come first, so that reading and generating overlap; one that is under
    way goes on. Waiting counts as generated over read.

    Source: Zheng et al. (BatchLLM), arXiv:2412.03594, sec. 4.1 and 4.2.
    Deviates: groups are formed anew whenever somebody is let in, as requests may arrive over time, and what has entries
        counts; entries go when others need their pages, least recently used first, not with the last of a group. The
        batches of the paper that are cut by memory are those of the engine.
    """

    def order(self, waiting: Sequence[Waiting], tree: PrefixTree | None) -> list[Waiting]:
        """Return who waits, group by group."""
        assert tree is not None
        groups = self.groups(waiting, tree)
        most = max((group.share_generated for group in groups), default=0.0)

        def worth(group: Group) -> float:
            is_under_way = group.shared > 0 and group.there == group.shared
            return group.share_generated + is_under_way * most + max(map(self.aged, group.members))

        return [one for group in sorted(groups, key=worth, reverse=True) for one in group.members]

    def groups(self, waiting: Sequence[Waiting], tree: PrefixTree) -> list[Group]:
        """Return groups of which each shares a prefix, that save most together."""
        branches = defaultdict[int, list[Waiting]](list)
        for one in waiting:
            branches[one.tokens[0]].append(one)
        return [group for branch in branches.values() for group in self._best(branch, 1, tree)]

    def _best(self, waiting: Sequence[Waiting], at: int, tree: PrefixTree) -> list[Group]:
        """Return the best groups of requests that agree in the tokens before `at`."""
        at = _agreed(waiting, at)
        whole = Group(members=waiting, shared=at, there=min(at, tree.length(waiting[0].tokens[:at])))
        if len(waiting) == 1:
            return [whole]
        branches = defaultdict[int, list[Waiting]](list)
        ended = [one for one in waiting if len(one.tokens) == at]
        for one in waiting:
            if len(one.tokens) > at:
                branches[one.tokens[at]].append(one)
        parts = [group for branch in branches.values() for group in self._best(branch, at + 1, tree)]
        parts += [Group(members=[one], shared=at, there=whole.there) for one in ended]
        return [whole] if whole.saved >= sum(part.saved for part in parts) else parts


def _agreed(waiting: Sequence[Waiting], at: int) -> int:
    """Return how many first tokens all have in common, where those before `at` are."""
    shortest = min(len(one.tokens) for one in waiting)
    first = waiting[0].tokens
    while at < shortest and all(one.tokens[at] == first[at] for one in waiting):
        at += 1
    return at
