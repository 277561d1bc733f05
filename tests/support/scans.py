"""The recurrence of a selective state space model, token by token, and what is held against it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvbench.kernels.selective_scan import selective_scan

NUMBERS = 4


def given(rows: int, tokens: int, channels: int, largest: float = 3.0) -> list[Tensor]:
    """Return steps, inputs, what divides and reads them, rates and a state to start from."""
    generator = torch.Generator().manual_seed(rows * 100 + tokens)
    sizes = ((rows, tokens, channels),) * 2 + ((rows, tokens, NUMBERS),) * 2 + ((channels, NUMBERS),)
    made = [torch.randn(size, generator=generator) for size in (*sizes, (rows, NUMBERS, channels))]
    made[0], made[4] = made[0].abs() * 0.3, (made[4].abs() * largest).log()
    return made


def loop(step: Tensor, fed: Tensor, by: Tensor, of: Tensor, log_rate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Read one token after the other."""
    outs, rate = [], -log_rate.mT.exp()
    for at in range(step.shape[1]):
        here = step[:, at, None]
        state = (here * rate).exp() * state + here * fed[:, at, None] * by[:, at, :, None]
        outs.append((state * of[:, at, :, None]).sum(dim=1))
    return torch.stack(outs, dim=1), state


@torch.enable_grad()
def equals_a_loop(rows: int, tokens: int, channels: int = 32) -> None:
    """Outputs, the state after them and all gradients are those of a loop in float64."""
    found: list[list[Tensor]] = []
    for scan, dtype in ((selective_scan, torch.float32), (loop, torch.float64)):
        leaves = [each.to(dtype).requires_grad_() for each in given(rows, tokens, channels)]
        out, last = scan(*leaves)
        weighed = (out * out.detach().cos()).sum() + (last * last.detach().sin()).sum()
        found.append([out.detach(), last.detach(), *torch.autograd.grad(weighed, leaves)])
    for got, want in zip(*found, strict=True):
        assert want.abs().max() > 0
        torch.testing.assert_close(got.double(), want, rtol=0, atol=3e-6 * want.abs().max().item())


def goes_on_from_a_state(pieces: Sequence[int]) -> None:
    """Tokens read in pieces say what they say at once."""
    whole = given(2, sum(pieces), 32)
    out, last = selective_scan(*whole)
    state, outs = whole[5], []
    for step, fed, by, of in zip(*(each.split(list(pieces), dim=1) for each in whole[:4]), strict=True):
        one, state = selective_scan(step, fed, by, of, whole[4], state)
        outs.append(one)
    torch.testing.assert_close(torch.cat(outs, dim=1), out, rtol=0, atol=0)
    torch.testing.assert_close(state, last, rtol=0, atol=0)


def large_rates_forget_all() -> None:
    """A state that falls by e^-1000 is gone, and nothing is no number."""
    many = given(1, 9, 16, largest=1e4)
    (out, last), (want, after) = selective_scan(*many), loop(*(each.double() for each in many))
    torch.testing.assert_close(out.double(), want, rtol=0, atol=1e-5)
    torch.testing.assert_close(last.double(), after, rtol=0, atol=1e-5)
