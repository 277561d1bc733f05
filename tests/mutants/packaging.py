"""Broken dependency lists that the tests must refuse."""

from __future__ import annotations

import re
from collections.abc import Callable

Break = Callable[[str], str]


def other_torch(constraints: str) -> str:
    """Pin a torch that nothing was tried with."""
    return re.sub(r"(?m)^torch==.*$", "torch==2.14.0", constraints)


def old_transformers(constraints: str) -> str:
    """Pin the oldest transformers where the newest belongs."""
    return re.sub(r"(?m)^transformers==.*$", "transformers==5.17.0", constraints)


def unpinned(constraints: str) -> str:
    """Forget one package."""
    return re.sub(r"(?m)^pandas==.*\n", "", constraints)


def own_list(environment: str) -> str:
    """Name a package twice, in two places."""
    return environment.replace("  - pip\n", "  - pytorch\n  - pip\n")


def without_constraints(environment: str) -> str:
    """Let conda's pip choose versions."""
    return environment.replace("      - -c constraints.txt\n", "")


def old_python(environment: str) -> str:
    """Ask for a Python that is too old."""
    return environment.replace("python=3.11", "python=3.10")


FORBIDDEN_IMPORTS = [  # part, text
    ("strategies", "from kvbench.measure.clock import HostClock"),
    ("strategies", "def step():\n    import hydra"),
    ("cache", "from kvbench import strategies"),
    ("results", "import torch.cuda"),
    ("plots", "from kvbench.models.load import load"),
    ("workloads", "from transformers import AutoTokenizer"),
    ("planning", "from kvbench.measure.hardware import measure_hardware"),
    ("types", "import kvbench.cache.layer"),
]
