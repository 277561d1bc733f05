"""How the command line says that something is wrong."""

from __future__ import annotations

import os
import sys

FAILED = 1
WRONG_INPUT = 2


def complain(error: Exception) -> int:
    """Print an error as one message and return the exit status; HYDRA_FULL_ERROR=1 raises it instead.

    Args:
        error: a ValueError is the user's to mend, an OSError the machine's.
    """
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    say(str(error))
    return WRONG_INPUT if isinstance(error, ValueError) else FAILED


def say(text: str) -> None:
    """Print a message beside the results."""
    print(f"kvbench: {text}", file=sys.stderr)
