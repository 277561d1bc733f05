"""What must hold for recurrent networks, and for the states that a cache keeps of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel, RwkvConfig, RwkvForCausalLM
from transformers.models.mamba2.configuration_mamba2 import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2ForCausalLM

from kvbench.cache.kv_cache import KVCache
from kvbench.configuration import build_group, compose, resolved
from kvbench.models import mamba, mamba2, recurrence, rwkv
from kvbench.models.load import load
from kvbench.models.spec import ModelSpec
from kvbench.models.view import view_of
from kvbench.types import RunShape
from tests.support.checks import NEW, PROMPT, assert_close, uniform
from tests.support.drive import drive, padded
from tests.support.models import VOCABULARY, ids
from tests.support.storage import storages_are_exact_and_reported
from tests.support.strategies import composed

NAMES = ("mamba", "mamba2", "rwkv")
SCANNED = ("mamba", "rwkv")  # by one operation per token
HIDDEN, LAYERS, STATES, KERNEL = 16, 3, 4, 4
CONFIGS: dict[str, Callable[[], Any]] = {
    "mamba": lambda: MambaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=LAYERS, state_size=STATES
    ),
    "mamba2": lambda: Mamba2Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        state_size=STATES,
        num_heads=4,
        head_dim=8,
        n_groups=2,
    ),
    "rwkv": lambda: RwkvConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=LAYERS, rescale_every=0, attention_hidden_size=24
    ),
}
OURS: dict[str, Any] = {"mamba": mamba.Mamba, "mamba2": mamba2.Mamba2, "rwkv": rwkv.Rwkv}
THEIRS: dict[str, Any] = {"mamba": MambaForCausalLM, "mamba2": Mamba2ForCausalLM, "rwkv": RwkvForCausalLM}
FEW = 3  # tokens at once, so that what is read has many pieces


@functools.cache
def network(name: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """Return a small network with uneven random weights."""
    torch.manual_seed(5)
    made = OURS[name](CONFIGS[name]()).eval().requires_grad_(False)
    for key, weight in made.named_parameters():
        if weight.ndim > 1 and "time_mix" not in key and "A_log" not in key:
            weight.mul_(4)
        elif name == "rwkv" and "time_" not in key:
            weight.add_(torch.rand_like(weight) / 2)  # biases of norms too, which padding must not bring in
    return cast("PreTrainedModel", made.to(dtype))


def few_at_once(name: str, patch: pytest.MonkeyPatch) -> None:
    """Have the states of few tokens of two rows there at once."""
    if name == "mamba2":
        patch.setattr(mamba2, "TOGETHER", FEW)
        return
    numbers = {"mamba": 2 * 2 * HIDDEN * STATES, "rwkv": 2 * 2 * 24}[name]
    patch.setattr(recurrence, "AT_ONCE", FEW * numbers)


# -- the recurrence -------------------------------------------------------------------------------------------------


def _mamba_loop(mixer: Any, hidden: Tensor) -> Tensor:
    """Read token by token, each a row of formulas."""
    inputs, gate = mixer.in_proj(hidden).chunk(2, dim=-1)
    rate, width = -mixer.A_log.exp(), mixer.conv1d.weight.shape[-1]
    before = torch.cat([inputs.new_zeros(len(inputs), width - 1, inputs.shape[2]), inputs], dim=1)
    state, outs = inputs.new_zeros(len(inputs), *rate.shape), []
    for at in range(hidden.shape[1]):
        near = before[:, at : at + width]
        new = torch.nn.functional.silu((near * mixer.conv1d.weight[:, 0].T).sum(dim=1) + mixer.conv1d.bias)
        time, made, asked = mixer.x_proj(new).split([mixer.time_step_rank, rate.shape[1], rate.shape[1]], dim=-1)
        time = torch.nn.functional.softplus(mixer.dt_proj(time))
        state = state * (time[..., None] * rate).exp() + torch.einsum("bd,bd,bn->bdn", time, new, made)
        out = torch.einsum("bdn,bn->bd", state, asked) + mixer.D * new
        outs.append(out * torch.nn.functional.silu(gate[:, at]))
    return cast("Tensor", mixer.out_proj(torch.stack(outs, dim=1)))


def _mamba2_loop(mixer: Any, hidden: Tensor) -> Tensor:
    """Read token by token, and head by head."""
    size, heads, groups, width = mixer.ssm_state_size, mixer.num_heads, mixer.n_groups, mixer.conv_kernel_size
    gate, inputs, time = mixer.in_proj(hidden).split([2 * HIDDEN, 2 * HIDDEN + 2 * groups * size, heads], dim=-1)
    before = torch.cat([inputs.new_zeros(len(inputs), width - 1, inputs.shape[2]), inputs], dim=1)
    steps, outs = torch.nn.functional.softplus(time + mixer.dt_bias), []
    states = [inputs.new_zeros(len(inputs), mixer.head_dim, size) for _ in range(heads)]
    for at in range(hidden.shape[1]):
        near = before[:, at : at + width]
        new = torch.nn.functional.silu((near * mixer.conv1d.weight[:, 0].T).sum(dim=1) + mixer.conv1d.bias)
        fed, made, asked = new.split([2 * HIDDEN, groups * size, groups * size], dim=-1)
        said = []
        for head in range(heads):
            mine, own = slice(head * mixer.head_dim, (head + 1) * mixer.head_dim), head * groups // heads
            group = slice(own * size, (own + 1) * size)
            step = steps[:, at, head, None, None]
            states[head] = states[head] * (-step * mixer.A_log[head].exp()).exp()
            states[head] = states[head] + step * fed[:, mine, None] * made[:, None, group]
            said.append((states[head] * asked[:, None, group]).sum(dim=-1) + mixer.D[head] * fed[:, mine])
        out = torch.cat(said, dim=-1) * torch.nn.functional.silu(gate[:, at])
        parts = [part / (part.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() for part in out.chunk(groups, dim=-1)]
        outs.append(torch.cat(parts, dim=-1) * mixer.norm.weight)
    return cast("Tensor", mixer.out_proj(torch.stack(outs, dim=1)))


def _chunks(name: str, mixer: Any, hidden: Tensor) -> Tensor:
    states = tuple(shape.fresh(len(hidden), hidden.device) for shape in network(name).layer_states())  # type: ignore[operator]
    return {"mamba": mamba.mix, "mamba2": mamba2.mix}[name](mixer, hidden, states, None)[0]


def _rwkv_loop(fall: Tensor, bonus: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Weigh all values before a token anew for each token."""
    outs = []
    for at in range(key.shape[1]):
        age = torch.arange(at - 1, -1, -1, dtype=key.dtype)[:, None]
        weights = torch.cat([key[:, :at] - age * fall.exp(), key[:, at : at + 1] + bonus], dim=1).exp()
        outs.append((weights * value[:, : at + 1]).sum(dim=1) / weights.sum(dim=1))
    return torch.stack(outs, dim=1)


def _rwkv_chunks(fall: Tensor, bonus: Tensor, key: Tensor, value: Tensor) -> Tensor:
    shapes = network("rwkv").layer_states()[2:]  # type: ignore[operator]
    states = tuple(replace(shape, dtype=key.dtype).fresh(len(key), key.device) for shape in shapes)
    return rwkv.weighted_mean(fall, bonus, key, value, states, None)[0]


def _weighed(tokens: int, scale: float = 2.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    sizes = ((24,), (24,), (2, tokens, 24), (2, tokens, 24))
    made = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    return [made[0], made[1], made[2] * scale, made[3]]


def _both_ways(name: str, tokens: int) -> list[tuple[Tensor, list[Tensor]]]:
    """Return the output and its gradients, in few tokens at once and in a loop over all of them."""
    ways: list[Callable[..., Tensor]]
    if name != "rwkv":
        mixer: Any = network(name).backbone.layers[1].mixer  # type: ignore[union-attr, index]
        loop = {"mamba": _mamba_loop, "mamba2": _mamba2_loop}[name]
        leaves = [torch.randn(2, tokens, HIDDEN, generator=torch.Generator().manual_seed(6), dtype=torch.float64)]
        ways = [functools.partial(way, mixer) for way in (functools.partial(_chunks, name), loop)]
        learned = list(mixer.parameters())
    else:
        leaves, ways, learned = _weighed(tokens), [_rwkv_chunks, _rwkv_loop], []
    found = []
    for leaf in (*leaves, *learned):
        leaf.requires_grad_(True)
    try:
        for way in ways:
            out = way(*leaves)
            weigh = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out).sin()
            found.append((out.detach(), list(torch.autograd.grad((out * weigh).sum(), (*leaves, *learned)))))
    finally:
        for leaf in learned:
            leaf.requires_grad_(False)
    return found


@torch.enable_grad()
def chunks_equal_a_loop(name: str, tokens: int) -> None:
    """Many tokens at once say what a loop over time says, and have its gradients."""
    with pytest.MonkeyPatch.context() as patch:
        few_at_once(name, patch)
        (got, mine), (want, theirs) = _both_ways(name, tokens)
    assert_close(got, want)
    for one, other in zip(mine, theirs, strict=True):
        assert tokens == 1 or other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def large_keys_do_not_overflow() -> None:
    """Weights too large for float32 give the mean they give in float64."""
    wide = _weighed(40, scale=90.0)
    assert wide[2].max() > 200
    got, want = _rwkv_chunks(*(t.float() for t in wide)), _rwkv_loop(*wide)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-3)


def equals_transformers(name: str) -> None:
    """Logits are those of transformers' network with the same weights."""
    mine = network(name, torch.float32)
    reference = THEIRS[name](mine.config).eval()
    if name == "mamba2" and not hasattr(reference.backbone.layers[0].mixer.norm, "group_size"):
        pytest.skip("this transformers norms the channels of all groups at once")
    reference.load_state_dict(mine.state_dict())
    tokens = ids(31, 2, 40)
    with torch.no_grad():
        got, want = (each(tokens, use_cache=False).logits for each in (mine, reference))
    assert want.abs().max() > 1
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * want.abs().max().item())


def checkpoints_of_transformers_are_loaded(name: str) -> None:
    """A folder that transformers' network was saved in gives ours, with its logits."""
    mine = network(name, torch.float32)
    with TemporaryDirectory() as folder:
        reference = THEIRS[name](mine.config)
        reference.load_state_dict(mine.state_dict())
        reference.save_pretrained(folder)
        spec: ModelSpec = build_group(resolved(compose([]))["model"], "model")
        loaded = load(replace(spec, path=str(Path(folder)), device="cpu"), seed=0, attention="kvbench")
    assert isinstance(loaded.model, OURS[name])
    tokens = ids(32, 1, 12)
    assert torch.equal(loaded.model(tokens).logits, mine(tokens).logits)


# -- states in the cache --------------------------------------------------------------------------------------------


def steps_equal_the_full_forward(name: str, chunks: Sequence[int] = (), steps: Sequence[int] = ()) -> None:
    """A prompt in any pieces, and what follows it in any, says what is said of everything at once."""
    tokens = ids(33, 2, PROMPT + NEW)
    want = network(name)(tokens).logits
    got = drive(network(name), composed("baseline"), tokens, uniform(rows=2), chunks=chunks, steps=steps).logits
    assert (want[:, 1:] - want[:, :-1]).abs().max() > 1e-2
    assert_close(got, want)


def bytes_are_the_closed_form(name: str, dtype: torch.dtype = torch.float64) -> None:
    """Bytes are those of the published sizes, as many after 10 tokens as after 190."""
    made, view = composed("baseline"), view_of(network(name, dtype))
    size = dtype.itemsize
    wide = max(4, size)
    per_layer = {
        "mamba": 2 * HIDDEN * (STATES * wide + KERNEL * size),
        "mamba2": (2 * HIDDEN + 2 * 2 * STATES) * KERNEL * size + 2 * HIDDEN * STATES * wide,
        "rwkv": 2 * HIDDEN * size + 3 * 24 * wide,
    }[name]
    sizes = set()
    for prompt in (10, 190):
        run = uniform(prompt, 3, rows=2)

        def watch(cache: KVCache, seen: int, run: RunShape = run) -> None:
            storages_are_exact_and_reported(cache)
            said = (made.allocated_bytes(view, run), made.used_bytes(view, run, seen))
            assert (cache.allocated_bytes(), cache.used_bytes()) == said
            assert cache.read_bytes() == cache.used_bytes()
            sizes.add(said)

        driven = drive(network(name, dtype), made, ids(34, 2, prompt + 3), run, watch=watch)
        assert driven.cache.numbers_held() == sum(state.numel() for state in driven.cache.tensors())
    assert sizes == {(2 * LAYERS * per_layer,) * 2}


def restore_is_exact(name: str) -> None:
    """After going back, the same tokens give the same bits, in the same storages."""
    model, run, tokens = network(name), uniform(rows=2), ids(35, 2, PROMPT + NEW)
    cache = drive(model, composed("baseline"), tokens[:, :-4], run).cache
    kept, places = cache.snapshot(), [state.data_ptr() for state in cache.tensors()]
    said = []
    for _ in range(2):
        said.append(torch.cat([model(tokens[:, at : at + 1], past_key_values=cache).logits for at in range(-4, -1)]))
        assert cache.get_seq_length() == PROMPT + NEW - 1
        cache.restore(kept)
    assert torch.equal(*said)
    assert cache.get_seq_length() == PROMPT + NEW - 4
    assert [state.data_ptr() for state in cache.tensors()] == places


def padded_rows_equal_rows_alone(name: str, chunks: Sequence[int] = ()) -> None:
    """Each row of a left-padded batch says what it says alone."""
    lengths = (17, PROMPT, 5)
    texts = [ids(36 + row, 1, length + NEW)[0] for row, length in enumerate(lengths)]
    run = RunShape(prompt_lengths=lengths, new_tokens=NEW)
    batch = drive(network(name), composed("baseline"), padded(texts), run, chunks=chunks)
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        assert_close(batch.logits[row, PROMPT - length :], network(name)(text[None]).logits[0])
