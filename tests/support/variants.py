"""Oracles of engines that bring their own cache: what they generate, what they read for it, when its tokens come."""

from __future__ import annotations

from typing import Any

import torch

from kvbench.engines import black_box
from kvbench.engines.black_box import Generated
from kvbench.engines.stock import Stock
from kvbench.generating import equal_tokens
from kvbench.types import RunShape
from tests.support.black_boxes import box, last_of, prompts
from tests.support.models import attention, model

ROWS, PROMPT, NEW = 3, 300, 7  # a prompt longer than a page
RUN = RunShape(prompt_lengths=(PROMPT,) * ROWS, new_tokens=NEW)


def of_variant(variant: Any, name: str = "llama_gqa", *, times: int = 2, run: RunShape | None = None) -> Generated:
    """Return what a variant of transformers' engine generates at last."""
    engine = Stock(variant=variant, attention="sdpa")
    return last_of(engine, model(name, torch.float32), box("transformers"), run or RUN, times=times)


def the_tokens_are_those_of_generate(variant: str, name: str) -> None:
    """In float32 every variant generates what `generate` does when it is left alone, by its logits one by one."""
    network: Any = model(name, torch.float32)
    read = prompts(RUN)
    with attention(network, "sdpa"):
        for _ in range(NEW):
            read = torch.cat([read, network(read, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(of_variant(variant, name).tokens, read[:, PROMPT:])


def no_token_ends_a_row_or_is_kept_from_coming(variant: str) -> None:
    """What would end a row is generated like any other token, and the row goes on."""
    network: Any = model("llama_gqa", torch.float32)
    expected = of_variant(variant).tokens
    settings = network.generation_config
    before, settings.eos_token_id = settings.eos_token_id, int(expected[0, 0])
    try:
        assert torch.equal(of_variant(variant).tokens, expected)
    finally:
        settings.eos_token_id = before


def every_round_reads_all_rows_at_once_from_the_start(variant: str) -> None:
    """A round is one pass over all prompts and one over each new token but the last, whatever was read before."""
    network: Any = model("llama_gqa", torch.float32)
    passes: list[int] = []
    embeddings = network.get_input_embeddings()
    hook = embeddings.register_forward_hook(lambda module, given, out: passes.append(given[0].numel()))
    try:
        of_variant(variant, times=2)
    finally:
        hook.remove()
    assert passes == 2 * [ROWS * PROMPT, *(NEW - 1) * [ROWS]]


def a_step_ends_with_its_last_row() -> None:
    """Two rows given at 100, whose tokens come at 110 and 130, at 120 and 125: steps of 20 and 10."""
    assert black_box.steps_of(100, [[110, 130], [120, 125]]) == (20, 10)


def tokens_are_equal_up_to_the_first_that_differs_in_any_row() -> None:
    """Of rows of four the second differs at 2, the third at 1, and later agrees again."""
    ours = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]])
    theirs = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 8], [9, 0, 11, 12]])
    assert equal_tokens(theirs, ours) == (1, 2)
    assert equal_tokens(ours.clone(), ours) == (4, None)
