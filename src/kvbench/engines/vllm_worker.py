"""What runs in vLLM's own environment: answers lines of JSON with lines of JSON. Nothing of kvbench is imported.

{"start": {...}} loads a model and tells what it runs on; {"generate": {...}} goes on greedily after prompts of token
ids, a request for each, and tells when each token came. The end of the questions ends the process, and removes the
folder that it was called with.
"""

from __future__ import annotations

import json
import os
import platform
import queue
import shutil
import sys
import threading
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

STATE = Path("/proc/self/statm")  # where the system says what a process holds


class Server:
    """A vLLM engine that is stepped from here, so that every token is seen when it comes.

    Args:
        asked: folder of the model, type of its numbers, tokens and rows of a batch, tokens of a page, pages, and
            whether the model is compiled.
    """

    def __init__(self, asked: dict[str, Any]) -> None:
        self.vllm: Any = import_module("vllm")
        self.engine = self.vllm.LLMEngine.from_engine_args(
            self.vllm.EngineArgs(
                model=asked["model"],
                dtype=asked["dtype"],
                max_model_len=asked["tokens"],
                max_num_seqs=asked["rows"],
                block_size=asked["block"],
                num_gpu_blocks_override=asked["blocks"],
                enforce_eager=not asked["is_compiled"],
                enable_prefix_caching=False,  # or a prompt would be read once, and never again
                skip_tokenizer_init=True,
                disable_log_stats=True,
                seed=0,
            )
        )
        self.requests = 0

    def started(self) -> dict[str, Any]:
        """Return what runs, where, and the bytes of the pool of pages."""
        torch: Any = import_module("torch")
        cache_bytes, attention = self.engine.collective_rpc(_held)[0]
        return {
            "device": import_module("vllm.platforms").current_platform.device_type,
            "vllm": self.vllm.__version__,
            "torch": torch.__version__,
            "transformers": import_module("transformers").__version__,
            "python": platform.python_version(),
            "num_threads": torch.get_num_threads(),
            "attention": attention,
            "cache_bytes": cache_bytes,
        }

    def generated(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the new tokens of each prompt, and when they came."""
        limits = self.vllm.SamplingParams(
            temperature=0.0, max_tokens=asked["new_tokens"], ignore_eos=True, detokenize=False
        )
        names = [f"{self.requests + row}" for row in range(len(asked["prompts"]))]
        self.requests += len(names)
        tokens: dict[str, list[int]] = {name: [] for name in names}
        arrivals_ns: dict[str, list[int]] = {name: [] for name in names}
        cached = 0
        started_ns = time.perf_counter_ns()
        for name, prompt in zip(names, asked["prompts"], strict=True):
            self.engine.add_request(name, {"prompt_token_ids": prompt}, limits)
        while self.engine.has_unfinished_requests():
            outputs = self.engine.step()
            now_ns = time.perf_counter_ns()
            for output in outputs:
                tokens[output.request_id] = list(output.outputs[0].token_ids)
                came = arrivals_ns[output.request_id]
                came += [now_ns] * (len(tokens[output.request_id]) - len(came))
                cached = max(cached, output.num_cached_tokens or 0)
        return {
            "tokens": [tokens[name] for name in names],
            "started_ns": started_ns,
            "arrivals_ns": [arrivals_ns[name] for name in names],
            "cached_tokens": cached,
            "resident_bytes": _resident_bytes(),
        }


def _held(worker: Any) -> tuple[int, str]:
    """Return the bytes of the storages that keys and values lie in, and what attends to them."""
    runner = worker.model_runner
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in runner.kv_caches}
    return sum(storages.values()), runner.attn_groups[0][0].backend.get_name()


def _resident_bytes() -> int | None:
    if not STATE.exists():
        return None
    return int(STATE.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _read(questions: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        questions.put(json.loads(line))
    shutil.rmtree(sys.argv[1], ignore_errors=True)  # whoever asked is gone, whatever is going on
    os._exit(0)


def _say(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def main() -> None:
    """Answer until there are no more questions, or until something goes wrong."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints goes where its errors go
    questions: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read, args=(questions,), daemon=True).start()
    try:
        server = Server(questions.get()["start"])
        _say(answers, server.started())
        while True:
            _say(answers, server.generated(questions.get()["generate"]))
    except Exception as error:  # noqa: BLE001  whatever it is, it is told
        traceback.print_exc()
        sys.stderr.flush()
        text = str(error).strip().splitlines()
        _say(answers, {"error": f"{type(error).__name__}: {text[0]}" if text else type(error).__name__})
        os._exit(1)


if __name__ == "__main__":
    main()
