"""Prompts as runs of tokens with names: what is called alike after the same beginning is the same tokens."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

from kvbench.types import Request
from kvbench.workloads.source import TokenSource

Piece = tuple[int, int]  # its name among those that follow the same beginning, and its tokens
_ROOT = 0


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A request whose prompt has no token ids yet.

    Args:
        pieces: what the prompt is made of, from its beginning, or from where the request that it follows ends.
        prompt_tokens: how many of their tokens the prompt has.
        new_tokens: as in Request.
        arrival_s: as in Request.
        group: as in Request.
        follows: as in Request.
    """

    pieces: tuple[Piece, ...]
    prompt_tokens: int
    new_tokens: int
    arrival_s: float
    group: int = 0
    follows: int | None = None


class _Tree:
    """Token ids of pieces: the text slice by slice, each beginning with a token that none beside it begins with."""

    def __init__(self, source: TokenSource) -> None:
        self._source = source
        self._ids = iter(source.text) if source.text else _random_ids(source)
        self._written: dict[tuple[int, int], tuple[int, list[int]]] = {}  # by node and name: node below, its ids
        self._begun: dict[int, set[int]] = defaultdict(set)

    def walk(self, pieces: Sequence[Piece], node: int) -> tuple[list[int], int]:
        """Return the ids of pieces from a node on, fewer where the text ends, and the node they lead to."""
        out: list[int] = []
        for name, tokens in pieces:
            if node == _ROOT and len(pieces) > 1 and tokens <= len(self._source.prefix):
                raise ValueError(
                    f"the tokenizer begins every prompt itself, so that the first {tokens} tokens tell none apart; "
                    f"raise the tokens of workload.tree's first level, or workload.length_scale."
                )
            if (node, name) not in self._written:
                self._written[node, name] = len(self._written) + 1, self._slice(node, tokens)
            node, ids = self._written[node, name]
            out += ids
        return out, node

    def _slice(self, node: int, tokens: int) -> list[int]:
        prefix, begun = list(self._source.prefix) if node == _ROOT else [], self._begun[node]
        if tokens <= len(prefix):
            return prefix[:tokens]
        if len(begun) == self._source.vocabulary:
            raise ValueError(
                f"the vocabulary has {len(begun)} tokens, so that no more prompts can differ from one place on; lower "
                f"workload.num_requests or add levels to workload.tree."
            )
        first = list(islice((token for token in self._ids if token not in begun), 1))
        begun.update(first)
        return [*prefix, *first, *islice(self._ids, tokens - len(prefix) - 1)]


def _random_ids(source: TokenSource) -> Iterator[int]:
    rng = random.Random(source.seed)
    while True:
        yield rng.randrange(source.vocabulary)


def write(planned: Sequence[Planned], source: TokenSource) -> list[Request]:
    """Return requests with token ids; the tokenizer's prefix counts to the first piece of each prompt.

    Raises:
        ValueError: if the text or the vocabulary is too small.
    """
    tree, ends, requests = _Tree(source), list[int](), list[Request]()
    for number, one in enumerate(planned):
        ids, end = tree.walk(one.pieces, _ROOT if one.follows is None else ends[one.follows])
        if len(ids) < one.prompt_tokens:
            raise ValueError(
                f"{source.name} has {len(source.text)} tokens, all of which the first {number} of {len(planned)} "
                f"requests take; lower workload.num_requests, workload.own_tokens or workload.length_scale."
            )
        ends.append(end)
        requests.append(
            Request(
                number=number,
                arrival_s=one.arrival_s,
                prompt=tuple(ids[: one.prompt_tokens]),
                new_tokens=one.new_tokens,
                group=one.group,
                follows=one.follows,
            )
        )
    return requests


def sharing(requests: Sequence[Request]) -> float:
    """Return the tokens of all prompts over those of the tree that they make together.

    The prompt of a request that follows another begins with that one's. What is generated between them is not known, so
    it is left out of both numbers.
    """
    prompts: list[tuple[int, ...]] = []
    for request in requests:
        before = () if request.follows is None else prompts[request.follows]
        prompts.append(before + request.prompt)
    shared = sum(_in_common(left, right) for left, right in pairwise(sorted(prompts)))
    tokens = sum(map(len, prompts))
    return tokens / (tokens - shared)


def _in_common(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """Return how many tokens two prompts begin with alike."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(left), len(right)))
