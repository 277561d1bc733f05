"""What all tests share: one thread, so that runs side by side do not disturb each other, and Triton's interpreter.

What costs time and shows nothing is off: a graph for gradients nobody asks for (a test that trains turns it on), and
looking for garbage among the modules that were imported.
"""

from __future__ import annotations

import gc
import os

import torch

gc.disable()  # until everything is imported
torch.set_num_threads(1)
torch.set_grad_enabled(False)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # looked at once, when Triton is imported


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()
