"""Measuring processes: spawned cheaply, watched, ended on time; what they die of becomes a status."""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any

# imported once by the fork server, so that a child starts in a tenth of a second
PRELOAD = ["kvbench.worker", "kvbench.serve", "kvbench.generating", "kvbench.answering"]
Progress = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a child ended.

    Args:
        status: ok | out_of_memory | timeout | error.
        reason: why, where it is not ok.
        value: what the function returned, where it is ok.
        log: the traceback of an error.
    """

    status: str
    reason: str
    value: Any = None
    log: str = ""


def start() -> None:
    """Start the fork server, so that its imports run while the parent goes on."""
    _context()
    forkserver.ensure_running()


def call(function: str, *arguments: Any, timeout_s: float, progress: Progress, renews: bool = False) -> Outcome:
    """Run a function in a fresh process.

    Args:
        function: "module:name"; it is called with the arguments and a `report(stage, share)`.
        arguments: picklable.
        timeout_s: after which the process is ended.
        progress: receives the child's reports.
        renews: whether the time begins again with every report.
    """
    receiver, sender = _context().Pipe(duplex=False)
    child = _context().Process(target=_run, args=(sender, function, arguments), daemon=True)
    child.start()
    sender.close()
    try:
        return _listen(receiver, child, timeout_s, progress, renews)
    finally:
        if child.is_alive():
            child.kill()
        child.join()
        receiver.close()


def _listen(receiver: Connection, child: Any, timeout_s: float, progress: Progress, renews: bool) -> Outcome:
    deadline = time.monotonic() + timeout_s
    while receiver.poll(max(0.0, deadline - time.monotonic())):
        try:
            kind, *content = receiver.recv()
        except (EOFError, OSError):  # the latter where it died in the middle of what it said
            child.join()
            if child.exitcode == -signal.SIGKILL:
                return Outcome(status="out_of_memory", reason="the measuring process was killed by the system")
            return Outcome(status="error", reason=f"the measuring process died with exit code {child.exitcode}")
        if kind == "progress":
            progress(*content)
            deadline = time.monotonic() + timeout_s if renews else deadline
        elif kind == "value":
            return Outcome(status="ok", reason="", value=content[0])
        else:
            status, reason, log = content
            return Outcome(status=status, reason=reason, log=log)
    return Outcome(status="timeout", reason=f"not done after measure.timeout_s={timeout_s:.0f} seconds")


def _context() -> Any:
    if multiprocessing.get_start_method(allow_none=True) == "loky":  # joblib's own, which no child knows
        multiprocessing.set_start_method("forkserver", force=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def _run(sender: Connection, function: str, arguments: tuple[Any, ...]) -> None:
    import torch

    Thread(target=_end_with_parent, daemon=True).start()  # sleeps until then
    gc.freeze()  # what was imported stays, and is not looked through for garbage

    def report(stage: str, share: float) -> None:
        sender.send(("progress", stage, share))

    try:
        module, _, name = function.partition(":")
        sender.send(("value", getattr(importlib.import_module(module), name)(*arguments, report)))
    except (MemoryError, torch.OutOfMemoryError) as error:
        sender.send(("failure", "out_of_memory", first_line(error), traceback.format_exc()))
    except TimeoutError as error:
        sender.send(("failure", "timeout", first_line(error), traceback.format_exc()))
    except BaseException as error:  # noqa: BLE001  whatever ends a child is its row's reason
        sender.send(("failure", "error", first_line(error), traceback.format_exc()))
    finally:
        sender.close()


def _end_with_parent() -> None:
    """End this process when the one that asked for it is killed: it would go on beside whoever runs the same again."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def first_line(error: BaseException) -> str:
    """Return an error as the reason of a row."""
    text = str(error).strip()
    name = type(error).__name__
    if name in ("ModelError", "ValueError") and text:
        return text
    return f"{name}: {text.splitlines()[0]}" if text else name
