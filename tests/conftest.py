"""What all tests share: one thread, so that runs side by side do not disturb each other, and Triton's interpreter."""

from __future__ import annotations

import os

import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # looked at once, when Triton is imported
