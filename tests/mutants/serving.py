"""Serving with one thing wrong each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from kvbench.engines.schedulers import Ageing, Group, Grouped, LongestMatch, Waiting
from kvbench.engines.serving import Serving, _Running
from tests.mutants.core_mutant import Mutant
from tests.support import serving

take, count, preempt = Serving._take, Serving._count, Serving._preempt


def without_a_copy(self: Serving, one: _Running, tokens: int) -> None:
    """Go on in a page that is another's."""
    one.goes_on = False
    take(self, one, tokens)


def keeps_pages(self: Serving, one: _Running) -> None:
    """Forget pages without letting go of them."""
    if self.tree is not None and one.node is not None:
        self.tree.unlock(one.node)
    one.pages, one.stored, one.node, one.goes_on = [], 0, None, False


def forgets(self: Serving, one: _Running) -> None:
    """Begin anew behind the prompt."""
    preempt(self, one)
    one.tokens = one.tokens[: one.served.prompt_tokens]


def of_its_prompt(self: Serving, number: int) -> list[int]:
    """Leave out what was generated."""
    served = self.served[number]
    return list(served.request.prompt)


def twice(self: Serving, one: _Running, tokens: int) -> None:
    """Count what is generated as a prompt's."""
    first = one.served.computed_tokens
    count(self, one, tokens)
    one.served.computed_tokens = first + tokens


def by_arrival(self: object, waiting: Sequence[Waiting], tree: object) -> list[Waiting]:
    """Do not order at all."""
    return list(waiting)


def worth_nothing(self: Ageing, one: Waiting) -> float:
    """Let waiting be worth nothing."""
    return 0.0


def never_kept(self: Serving, one: _Running, stop: int) -> None:
    """Keep nothing for others."""


alone = serving.every_request_gets_the_tokens_it_gets_alone
MUTANTS = (
    Mutant(
        name="a page is written to by two",
        patches=((Serving, "_take", without_a_copy),),
        killed_by=(partial(alone, "prefix"),),
    ),
    Mutant(
        name="pages leak",
        patches=((Serving, "_let_go", keeps_pages),),
        killed_by=(partial(alone, "fcfs"),),
    ),
    Mutant(
        name="what was generated is lost with the pages",
        patches=((Serving, "_preempt", forgets),),
        killed_by=(partial(serving.two_hundred_requests_come_and_go, "lpm"),),
    ),
    Mutant(
        name="nothing is kept",
        patches=((Serving, "_keep", never_kept),),
        killed_by=(
            partial(serving.prompts_are_computed_once, "prefix"),
            partial(serving.the_last_token_of_a_prompt_is_always_read, "lpm"),
            partial(serving.a_conversation_goes_on_from_what_was_said, "lpm"),
        ),
    ),
    Mutant(
        name="what is generated counts as a prompt's",
        patches=((Serving, "_count", twice),),
        killed_by=(
            serving.without_reuse_all_is_computed,
            partial(serving.nothing_is_saved_where_nothing_is_shared, "fcfs"),
        ),
    ),
    Mutant(
        name="answers are forgotten",
        patches=((Serving, "_whole", of_its_prompt),),
        killed_by=(partial(serving.a_conversation_goes_on_from_what_was_said, "fcfs"),),
    ),
    Mutant(
        name="groups are not formed",
        patches=((Grouped, "order", by_arrival), (LongestMatch, "order", by_arrival)),
        killed_by=(
            partial(serving.order_saves_where_memory_is_short, "prefix"),
            partial(serving.order_saves_where_memory_is_short, "lpm"),
        ),
    ),
    Mutant(
        name="groups are as small as can be",
        patches=((Group, "saved", property(lambda self: -len(self.members))),),
        killed_by=(partial(serving.groups_save_most, 0),),
    ),
    Mutant(
        name="waiting is worth nothing",
        patches=((Ageing, "aged", worth_nothing),),
        killed_by=(partial(serving.nobody_waits_for_ever, "lpm"),),
    ),
)
