"""What all tests share: one thread, so that runs side by side do not disturb each other."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
