"""vLLM, in an environment and a process of its own, because it needs other versions of what kvbench is made of."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvbench.engines.black_box import BlackBoxEngine, Generated, Session, steps_of
from kvbench.engines.lines import Lines
from kvbench.folders import cache_folder, engine_folder
from kvbench.models.laying import lay_out
from kvbench.models.load import Loaded
from kvbench.strategies.base import CacheStrategy
from kvbench.strategies.black_box import BlackBox
from kvbench.types import ModelView, RunShape

WORKER = Path(__file__).parent / "vllm_worker.py"
PINS = Path(__file__).parent / "vllm_pins.txt"
_COLUMNS = ("vllm", "torch", "transformers", "python", "num_threads", "attention")


@dataclass(frozen=True, kw_only=True)
class Vllm(BlackBoxEngine):
    """Greedy requests to vLLM, a row each, over a pool of pages that they fill; no prompt's pages are used again.

    Args:
        environment: folder of the Python environment; "" for the one that `kvbench engine install vllm` makes.
        block: tokens of a page; on a CPU a multiple of 32.
        is_compiled: whether the model is compiled, as vLLM does by itself (on a GPU with graphs).
        patience_s: seconds that vLLM may take to start, or to generate once.
    """

    environment: str
    block: int
    is_compiled: bool
    patience_s: float

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        for name in ("block", "patience_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"engine.{name} must be above 0; got {getattr(self, name)}. Set engine.{name}.")

    @property
    def folder(self) -> Path:
        """Where the environment is."""
        return Path(self.environment) if self.environment else engine_folder("vllm")

    @property
    def is_elsewhere(self) -> bool:
        """Whether another process holds the model: yes."""
        return True

    def check(self, strategy: CacheStrategy) -> None:
        """Refuse a strategy that does not name vLLM's cache.

        Raises:
            ValueError: with the keys to change.
        """
        if not isinstance(strategy, BlackBox) or strategy.engine != "vllm":
            raise ValueError(
                "engine=vllm brings its own cache, which strategy=vllm names: the two go together and with nothing "
                "else. Leave engine= out."
            )

    def unavailable(self) -> str | None:
        """Return what has to be installed first and how, or None."""
        if installed(self.folder) is not None:
            return None
        return (
            f"there is no vLLM in {self.folder}: install it with `kvbench engine install vllm`, or name another Python "
            f"environment that has it with engine.environment=<folder>"
        )

    def unsupported(self, loaded: Loaded) -> str | None:
        """Return why a model cannot be run, or None."""
        kind = type(loaded.model)
        if kind.__module__.startswith("transformers."):
            return None
        return f"{kind.__name__} is a network of kvbench's own, which vLLM does not know; choose another model="

    @contextmanager
    def opened(self, loaded: Loaded, strategy: CacheStrategy, run: RunShape) -> Iterator[Session]:
        """Yield vLLM with the same weights, from a folder that is gone on exit."""
        pages, page_bytes = pool(loaded.view, run, self.block)
        with tempfile.TemporaryDirectory(prefix="kvbench-vllm-") as folder:
            lay_out(loaded.model, in_rows=True)  # what is saved cannot lie side by side by columns
            loaded.model.save_pretrained(folder)  # type: ignore[operator]
            command, log = [str(self.folder / "bin" / "python"), "-I", str(WORKER), folder], Path(folder) / "log"
            variables = _variables(pages * page_bytes)
            with Lines(command, variables=variables, log=log, patience_s=self.patience_s) as lines:
                asked = {
                    "model": folder,
                    "dtype": str(loaded.view.dtype).removeprefix("torch."),
                    "tokens": run.prompt_tokens + (run.new_tokens or 1),
                    "rows": run.batch_size,
                    "block": self.block,
                    "blocks": pages,
                    "is_compiled": self.is_compiled,
                }
                facts = lines.ask({"start": asked})
                if facts["device"] != loaded.view.device.type:
                    raise ValueError(
                        f"vLLM in {self.folder} computes on {facts['device']}, not on {loaded.view.device.type}: set "
                        f"model.device={facts['device']} or engine.environment="
                    )

                def generate(prompt: Tensor) -> Generated:
                    return _generated(lines, facts, prompt, run.new_tokens or 1)

                yield Session(generate=generate, facts={name: facts[name] for name in _COLUMNS})


def installed(folder: Path) -> str | None:
    """Return the version of vLLM in an environment, or None."""
    found = sorted(folder.glob("lib/python3*/site-packages/vllm*-*.dist-info"))
    has_python = (folder / "bin" / "python").exists()
    return found[0].name.removesuffix(".dist-info").rpartition("-")[2] if found and has_python else None


def pool(view: ModelView, run: RunShape, block: int) -> tuple[int, int]:
    """Return how many pages hold a batch, and the bytes of one.

    A page is of several layers that see equally far: of as many as there are of the rarest kind.

    Args:
        view: of the model.
        run: the batch.
        block: tokens of a page.
    """
    kinds = Counter(layer.window for layer in view.layers)
    together = min(kinds.values())
    groups = sum(ceil(number / together) for number in kinds.values())
    widest = max(layer.kv_heads * (layer.key_dim + layer.value_dim) for layer in view.layers)
    pages = run.batch_size * ceil((run.prompt_tokens + (run.new_tokens or 1)) / block)
    return groups * pages + 1, block * together * widest * view.dtype.itemsize  # vLLM keeps one page empty


def _generated(lines: Lines, facts: Mapping[str, Any], prompt: Tensor, new_tokens: int) -> Generated:
    made = lines.ask({"generate": {"prompts": prompt.tolist(), "new_tokens": new_tokens}})
    if made["cached_tokens"]:
        raise ValueError(f"vLLM read {made['cached_tokens']} tokens of a prompt from its cache: no time is a prompt's")
    return Generated(
        tokens=torch.tensor(made["tokens"]),
        step_ns=steps_of(made["started_ns"], made["arrivals_ns"]),
        cache_bytes=facts["cache_bytes"],
        used_bytes=None,
        resident_bytes=made["resident_bytes"] if facts["device"] == "cpu" else None,
    )


def _variables(pool_bytes: int) -> dict[str, str]:
    """Return the environment of vLLM's process: as many threads as here, nothing from the network, nothing sent."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},  # not of this one
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "VLLM_CPU_KVCACHE_SPACE": str(ceil(pool_bytes / 2**30)),  # GiB, of which the pool takes what it needs
        "VLLM_CACHE_ROOT": str(cache_folder() / "vllm"),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }
