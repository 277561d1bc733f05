"""As much of vLLM as the worker asks for: greedy requests, one forward pass of everything per step, nothing kept.

A file beside this one says what goes wrong.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

__version__ = "0.0.1"
BEHAVIOUR = Path(__file__).parent / "behaviour"


@dataclass(frozen=True, kw_only=True)
class EngineArgs:
    """What an engine is made of."""

    model: str
    dtype: str
    max_model_len: int
    max_num_seqs: int
    block_size: int
    num_gpu_blocks_override: int
    enforce_eager: bool
    enable_prefix_caching: bool
    skip_tokenizer_init: bool
    disable_log_stats: bool
    seed: int


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How a request goes on."""

    temperature: float
    max_tokens: int
    ignore_eos: bool
    detokenize: bool


@dataclass(kw_only=True)
class Request:
    """A row that is not done."""

    name: str
    prompt: list[int]
    limits: SamplingParams
    tokens: list[int]


class LLMEngine:
    """Rows that go on together, while there are pages for all of them."""

    def __init__(self, args: EngineArgs) -> None:
        self.args, self.behaviour = args, BEHAVIOUR.read_text() if BEHAVIOUR.exists() else ""
        sys.stdout.write("this is no answer\n")
        sys.stdout.flush()
        if self.behaviour == "raises":
            sys.stderr.write("this was said before\n")
            raise ValueError("no pages\nof this size")
        if self.behaviour == "dies":
            os._exit(3)
        if self.behaviour == "sleeps":
            BEHAVIOUR.with_name("asleep").write_text(f"{os.getpid()} {args.model}")
            time.sleep(600)
        self.torch: Any = import_module("torch")  # after what goes wrong, because it takes a while
        self.torch.set_grad_enabled(False)
        auto, dtype = import_module("transformers").AutoModelForCausalLM, getattr(self.torch, args.dtype)
        self.model: Any = auto.from_pretrained(args.model, dtype=dtype).eval()
        self.requests: list[Request] = []

    @classmethod
    def from_engine_args(cls, args: EngineArgs) -> LLMEngine:
        """Return an engine."""
        return cls(args)

    def add_request(self, name: str, prompt: dict[str, list[int]], limits: SamplingParams) -> None:
        """Take a request."""
        assert limits.temperature == 0
        assert limits.ignore_eos
        assert not self.args.enable_prefix_caching
        self.requests.append(Request(name=name, prompt=prompt["prompt_token_ids"], limits=limits, tokens=[]))
        longest = [len(request.prompt) + request.limits.max_tokens for request in self.requests]
        assert max(longest) <= self.args.max_model_len
        assert len(longest) <= self.args.max_num_seqs
        assert sum(ceil(tokens / self.args.block_size) for tokens in longest) < self.args.num_gpu_blocks_override

    def has_unfinished_requests(self) -> bool:
        """Return whether there is anything left to do."""
        return bool(self.requests)

    def step(self) -> list[Any]:
        """Add a token to every row."""
        read = self.torch.tensor([request.prompt + request.tokens for request in self.requests])
        logits = self.model(read, use_cache=False).logits[:, -1]
        for request, row in zip(self.requests, logits, strict=True):
            choice = 1 if self.behaviour == "errs" and len(request.tokens) == 3 else 0
            request.tokens.append(int(row.topk(2).indices[choice]))
        out = [
            SimpleNamespace(
                request_id=request.name,
                outputs=[SimpleNamespace(token_ids=request.tokens)],
                num_cached_tokens=64 if self.behaviour == "caches" else 0,
            )
            for request in self.requests
        ]
        self.requests = [one for one in self.requests if len(one.tokens) < one.limits.max_tokens]
        return out

    def collective_rpc(self, asked: Any) -> list[Any]:
        """Ask the only worker, whose pool is one storage that two layers view."""
        storage = self.torch.zeros(self.args.num_gpu_blocks_override, self.args.block_size)
        attends = SimpleNamespace(backend=SimpleNamespace(get_name=lambda: "STAND_IN"))
        runner = SimpleNamespace(kv_caches=[storage, storage[1:]], attn_groups=[[attends]])
        return [asked(SimpleNamespace(model_runner=runner))]
