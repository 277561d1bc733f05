"""A process in an environment of its own that answers lines of JSON with lines of JSON."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any

LAST_LINES = 30  # of what a process wrote, in the log of a run that it ended
PARTING_S = 5.0  # for a process that is asked nothing any more to end by itself


class ProcessError(Exception):
    """A process that answered with an error, or died; what it wrote last follows the first line."""


class Lines:
    """A process from its start to its end.

    Args:
        command: that starts it.
        variables: its whole environment.
        log: file for what it writes beside its answers.
        patience_s: seconds that an answer may take.
    """

    def __init__(self, command: Sequence[str], *, variables: Mapping[str, str], log: Path, patience_s: float) -> None:
        self.log, self.patience_s = log, patience_s
        with log.open("wb") as written:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=written, env=variables
            )
        self.answers: SimpleQueue[bytes] = SimpleQueue()
        self.listener = Thread(target=self._listen, daemon=True)
        self.listener.start()

    def __enter__(self) -> Lines:
        """Return the process."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.close()
            self.process.wait(PARTING_S)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self.process.kill()
            self.process.wait()
        self.listener.join(PARTING_S)
        self.process.stdout.close()

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a question.

        Raises:
            ProcessError: if it is an error, or there is none.
            TimeoutError: if it does not come in time.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died, and says so where its answer would be
        try:
            line = self.answers.get(timeout=self.patience_s)
        except Empty:
            raise TimeoutError(self._with_log(f"no answer after engine.patience_s={self.patience_s:g}")) from None
        if not line:
            raise ProcessError(self._with_log(f"it died with exit code {self.process.wait()}"))
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ProcessError(self._with_log(answer["error"]))
        return answer

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put(b"")

    def _with_log(self, reason: str) -> str:
        written = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join([reason, *written[-LAST_LINES:]])
