"""How the weights of linear layers lie in memory."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kvbench.models.siblings import ATTENTION, FEED_FORWARD, join, siblings

WIDE = 2  # times as many outputs as inputs, or inputs as outputs, from where on the order matters


def lay_out(model: nn.Module, *, in_rows: bool) -> None:
    """Lay out the weights of linear layers, of which no number changes.

    Those that read the same tokens lie side by side, so that one product can be made of them. On a CPU float32
    weights lie by columns where outputs are many, and by rows where inputs are: torch reads them faster so for a token
    or two, and as fast for many. What an embedding shares stays in rows, which is what it is looked up by.

    Args:
        model: as it was loaded, or laid out otherwise.
        in_rows: whether an engine reads rows on a CPU, whatever is faster for torch.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    done = set()
    for parts in [*siblings(model, ATTENTION), *siblings(model, FEED_FORWARD)]:
        outputs, inputs = sum(part.out_features for part in parts), parts[0].in_features
        is_wide = outputs >= WIDE * inputs and parts[0].weight.dtype == torch.float32
        join(parts, by_columns=on_cpu and is_wide and not in_rows)
        done |= set(map(id, parts))
    if not on_cpu:
        return
    owners = Counter(each.data_ptr() for module in model.modules() for each in module.parameters(recurse=False))
    for module in model.modules():
        if not isinstance(module, nn.Linear | Conv1D) or id(module) in done or owners[module.weight.data_ptr()] > 1:
            continue
        weight = module.weight.data if isinstance(module, nn.Linear) else module.weight.data.t()
        rows = weight.contiguous() if in_rows else _laid_out(weight)
        module.weight.data = rows if isinstance(module, nn.Linear) else rows.t()


def _laid_out(rows: Tensor) -> Tensor:
    """Return a matrix [out, in] as torch reads it soonest."""
    outputs, inputs = rows.shape
    if rows.dtype != torch.float32:
        return rows
    if outputs >= WIDE * inputs:
        return rows.t().contiguous().t()
    return rows.contiguous() if inputs >= WIDE * outputs else rows
