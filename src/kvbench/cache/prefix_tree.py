"""Which runs of tokens have entries in pages that may be shared: a radix tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvbench.cache.page_table import PagePool


class Node:
    """A run of tokens behind those of its parent.

    Args:
        tokens: of the run.
        start: how many come before it.
        pages: that slots start .. start + len(tokens) of the path lie in; the first one also has what comes before in
            that page.
        parent: node before it; None for the root.
    """

    def __init__(self, tokens: Sequence[int], start: int, pages: Sequence[int], parent: Node | None) -> None:
        self.tokens, self.start, self.pages, self.parent = list(tokens), start, list(pages), parent
        self.children: dict[int, Node] = {}  # by their first token
        self.locks = 0  # sequences under way that begin with this path
        self.used = 0  # when it was last part of a match or an insertion

    @property
    def stop(self) -> int:
        """Tokens of the path down to the end of this run."""
        return self.start + len(self.tokens)

    def path(self) -> Iterator[Node]:
        """Yield this node and those above it, without the root."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent


class PrefixTree:
    """Token runs whose entries are kept, for whatever begins with them; least recently used leaves go first.

    Source: Zheng et al. (RadixAttention, SGLang), arXiv:2312.07104, sec. 3.
    Deviates: a prefix may end within a page, which whoever goes on from there copies as far as it is shared; the
        original shares single slots, or whole pages.

    Args:
        pool: of the pages; the tree holds those of its runs.
        size: slots of a page.
    """

    def __init__(self, pool: PagePool, size: int) -> None:
        self.pool, self.size = pool, size
        self.root = Node((), 0, (), None)
        self._clock = 0

    def length(self, tokens: Sequence[int]) -> int:
        """Return how many of the first tokens have entries; nothing is changed by asking."""
        return sum(shared for _, shared in self._walk(tokens))

    def find(self, tokens: Sequence[int]) -> Node:
        """Return the node that the longest prefix with entries ends with; a run that goes on otherwise is split."""
        self._clock += 1
        node = self.root
        for child, shared in list(self._walk(tokens)):
            node = child if shared == len(child.tokens) else self._split(child, shared)
            node.used = self._clock
        return node

    def pages_of(self, node: Node) -> list[int]:
        """Return the pages of the whole path down to a node."""
        pages: list[int] = []
        for each in reversed(list(node.path())):
            pages[each.start // self.size :] = each.pages
        return pages

    def insert(self, tokens: Sequence[int], pages: Sequence[int]) -> Node:
        """Keep the entries of tokens that lie in so many pages, where there are none yet; return the path's end."""
        node = self.find(tokens)
        if node.stop == len(tokens):
            return node
        mine = pages[node.stop // self.size : -(-len(tokens) // self.size)]
        self.pool.hold(mine)
        leaf = Node(tokens[node.stop :], node.stop, mine, node)
        leaf.used = self._clock
        node.children[leaf.tokens[0]] = leaf
        return leaf

    def lock(self, node: Node) -> None:
        """Have one more sequence need this path."""
        for each in node.path():
            each.locks += 1

    def unlock(self, node: Node) -> None:
        """Have one sequence less need this path."""
        for each in node.path():
            each.locks -= 1
            assert each.locks >= 0

    def evict(self, pages: int) -> None:
        """Let go of unlocked leaves until so many pages are free, or there is none."""
        while len(self.pool.free) < pages:
            leaves = [node for node in self._nodes() if not node.children and node.locks == 0]
            if not leaves:
                return
            self._drop(min(leaves, key=lambda leaf: leaf.used))

    def evictable(self) -> int:
        """Return how many pages would be free if nothing but what is locked were kept."""
        loose = [node for node in self._nodes() if node.locks == 0]
        held: dict[int, int] = {}
        for node in loose:
            for page in node.pages:
                held[page] = held.get(page, 0) + 1
        return sum(self.pool.holders[page] == count for page, count in held.items())

    @property
    def num_tokens(self) -> int:
        """Tokens that have entries."""
        return sum(len(node.tokens) for node in self._nodes())

    def _walk(self, tokens: Sequence[int]) -> Iterator[tuple[Node, int]]:
        """Yield the nodes that tokens lead to, and how many tokens they have in common with each."""
        at, node = 0, self.root
        while at < len(tokens) and tokens[at] in node.children:
            node = node.children[tokens[at]]
            shared = _common(node.tokens, tokens, at)
            yield node, shared
            if shared < len(node.tokens):
                return
            at += shared

    def _split(self, node: Node, count: int) -> Node:
        """Return a node of the first tokens of a run, which the rest hangs from; both hold the page between them."""
        assert node.parent is not None
        middle = node.start + count
        first = node.start // self.size
        upper = Node(node.tokens[:count], node.start, node.pages[: -(-middle // self.size) - first], node.parent)
        upper.locks, upper.used = node.locks, node.used
        upper.children[node.tokens[count]] = node
        node.parent.children[node.tokens[0]] = upper
        if middle % self.size:
            self.pool.hold(upper.pages[-1:])
        node.tokens, node.start, node.parent = node.tokens[count:], middle, upper
        node.pages = node.pages[middle // self.size - first :]
        return upper

    def _drop(self, leaf: Node) -> None:
        assert leaf.parent is not None
        del leaf.parent.children[leaf.tokens[0]]
        self.pool.release(leaf.pages)

    def _nodes(self) -> Iterator[Node]:
        waiting = list(self.root.children.values())
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.children.values()


def _common(run: Sequence[int], tokens: Sequence[int], at: int) -> int:
    """Return how many tokens of a run equal those from `at` on."""
    most = min(len(run), len(tokens) - at)
    if run[:most] == tokens[at : at + most]:
        return most
    return next(index for index in range(most) if run[index] != tokens[at + index])
