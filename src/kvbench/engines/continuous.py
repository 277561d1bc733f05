"""transformers' continuous batching: every row is a request of its own, all of them in one pool of pages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor

from kvbench.engines.black_box import Generated, Session, steps_of
from kvbench.engines.storages import storages
from kvbench.types import RunShape

MOST_TOKENS = 2048  # of a pass; longer prompts are cut. Left to itself, transformers asks the machine's memory
PATIENCE_S = 1.0  # between two looks at whether the thread that generates is alive


@contextmanager
def opened(model: Any, run: RunShape) -> Iterator[Session]:
    """Yield transformers' manager of requests, started, with pages for the rows of one batch.

    Nothing of a prompt that was read before is used again. Pages have the size that transformers gives them.

    Args:
        model: with the attention that is asked for; paged attention takes its place meanwhile.
        run: the batch.
    """
    from transformers import GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    new_tokens = run.new_tokens or 1
    known = {field.name for field in fields(ContinuousBatchingConfig)}
    config: Any = ContinuousBatchingConfig(
        max_batch_tokens=min(MOST_TOKENS, run.batch_size * run.prompt_tokens),
        max_requests_per_batch=run.batch_size,
        allow_block_sharing=False,
        safety_margin=0.0,  # the pool is full once all rows are in it
    )
    config.auto_switch_to_flash = False  # transformers 5.17 does not ask
    page = config.page_size if "page_size" in known else config.block_size  # so it is called in transformers 5.17
    config.num_blocks = run.batch_size * ceil((run.prompt_tokens + new_tokens) / page)
    greedy = GenerationConfig(do_sample=False, max_new_tokens=new_tokens, eos_token_id=-1)
    with model.continuous_batching_context_manager(
        generation_config=greedy, continuous_batching_config=config
    ) as manager:
        facts = {"attention": model.config._attn_implementation}
        yield Session(generate=partial(_generate, manager, new_tokens), facts=facts)


def _generate(manager: Any, new_tokens: int, prompt: Tensor) -> Generated:
    started_ns = time.perf_counter_ns()
    names = manager.add_requests(prompt.tolist(), max_new_tokens=new_tokens, record_timestamps=True)
    done: dict[str, Any] = {}
    while len(done) < len(names):
        result = manager.get_result(timeout=PATIENCE_S)
        if result is not None and result.is_finished():
            done[result.request_id] = result
        failure = result.error if result is not None else manager.background_thread_status.fatal_error
        if failure is not None:
            raise RuntimeError(f"transformers' continuous batching ended: {failure}")
    rows = [done[name] for name in names]
    return Generated(
        tokens=torch.tensor([row.generated_tokens for row in rows], device=prompt.device),
        step_ns=steps_of(started_ns, [[int(1e9 * at) for at in row.timestamps] for row in rows]),
        cache_bytes=sum(storages(manager.batch_processor.cache).values()),
        used_bytes=None,
    )
