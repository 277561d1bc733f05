"""What must hold for a network whose lower layers see a window and whose upper ones read one set of keys and values."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from kvbench.models.sharing import SharingAttention
from kvbench.models.view import view_of
from kvbench.strategies.transform.cross_layer import Yoco
from kvbench.types import DECODE, RunShape
from tests.support.checks import NEW, PROMPT, assert_close, uniform
from tests.support.drive import drive, padded
from tests.support.models import attention, ids, model
from tests.support.strategies import composed

DEEP, WINDOW = "llama_deep", 7
FIRST, LAYERS = 2, 4  # the first layer of the upper half, and how many there are
CHUNKS = (7, 1, 13, 3)
THINK = ("baseline", "strategy/codec=think", "codec.window=4", "codec.num_queries=4")


def made(window: int = WINDOW, name: str = DEEP) -> PreTrainedModel:
    """Return a model whose lower layers see so many tokens."""
    return cast("PreTrainedModel", composed("yoco", f"transform.window={window}").prepare(model(name)))


def stock(network: PreTrainedModel, tokens: Tensor, attend: str = "sdpa", **keywords: Any) -> Tensor:
    """Return the logits of ids by one of transformers' attention functions."""
    with attention(network, attend):
        logits: Tensor = network(tokens, use_cache=False, **keywords).logits
    return logits


# -- plain loops ----------------------------------------------------------------------------------------------------


def by_loops(tokens: Tensor) -> Tensor:
    """Return the logits of ids [T] by the weights of the model that is changed, one token and head at a time."""
    network: Any = model(DEEP)
    rows = network.model.embed_tokens(tokens)
    keys: list[Tensor] = []
    for index, layer in enumerate(network.model.layers):
        normed, own = layer.input_layernorm(rows), layer.self_attn
        query = [_rotated(row, at) for at, row in enumerate(own.q_proj(normed))]
        if index <= FIRST:
            keys, values = [_rotated(row, at) for at, row in enumerate(own.k_proj(normed))], own.v_proj(normed)
        out = [_attended(query[at], keys, values, _first(index, at), at) for at in range(len(tokens))]
        rows = rows + own.o_proj(torch.stack(out))
        rows = rows + layer.mlp(layer.post_attention_layernorm(rows))
    logits: Tensor = network.lm_head(network.model.norm(rows))
    return logits


def _first(index: int, at: int) -> int:
    return max(0, at - WINDOW + 1) if index < FIRST else 0


def _rotated(row: Tensor, at: int) -> Tensor:
    """Return the heads [heads, D] of one token's queries or keys, rotated."""
    network: Any = model(DEEP)
    frequency = network.model.rotary_emb.inv_freq
    one, other = row.unflatten(-1, (-1, 2, len(frequency))).unbind(-2)
    cosine, sine = (at * frequency).cos(), (at * frequency).sin()
    return torch.cat([one * cosine - other * sine, other * cosine + one * sine], dim=-1)


def _attended(query: Tensor, keys: list[Tensor], values: Tensor, first: int, at: int) -> Tensor:
    heads, share = [], len(query) // len(keys[0])
    for head, row in enumerate(query):
        seen = torch.stack([key[head // share] for key in keys[first : at + 1]])
        mine = values[first : at + 1].unflatten(-1, (len(keys[0]), -1))[:, head // share]
        heads.append((seen @ row * len(row) ** -0.5).softmax(dim=0) @ mine)
    return torch.cat(heads)


@functools.cache
def wanted(seed: int, tokens: int) -> Tensor:
    """Return the logits [T, V] of a text by plain loops."""
    return by_loops(ids(seed, 1, tokens)[0])


def equals_plain_loops(chunks: Sequence[int] = (), steps: Sequence[int] = ()) -> None:
    """Without a cache and with ours, prompts in pieces or not, logits are those of plain loops."""
    network, tokens, want = made(), ids(81, 1, PROMPT + NEW), wanted(81, PROMPT + NEW)
    assert (want - stock(model(DEEP), tokens)).abs().max() > 1e-3, "nothing has changed: this proves nothing"
    assert_close(stock(network, tokens)[0], want)
    assert (stock(network, tokens, "eager")[0] - want).abs().max() < 1e-6  # its softmax is float32
    given = drive(network, composed("baseline"), tokens, uniform(), chunks=chunks, steps=steps)
    assert_close(given.logits[0], want)


def equals_plain_loops_with_the_stock_cache() -> None:
    """Transformers' own cache, told of windows by the config, gives the same in passes of any length."""
    tokens, want, at = ids(81, 1, PROMPT + NEW), wanted(81, PROMPT + NEW), 0
    got: list[Tensor] = []
    with attention(made(), "sdpa") as network:
        cache: Any = DynamicCache(config=network.config)
        for count in (PROMPT, 1, 5, 1, NEW - 7):
            got.append(network(tokens[:, at : at + count], past_key_values=cache).logits[0])
            at += count
    assert_close(torch.cat(got), want)
    held = [layer.keys.shape[2] for layer in cache.layers]
    assert held == [WINDOW - 1] * FIRST + [PROMPT + NEW] * (LAYERS - FIRST)


def a_window_above_the_length_is_no_window() -> None:
    """With one layer in the upper half and a window that is never full, nothing has changed, bit for bit."""
    tokens = ids(82, 2, PROMPT)
    network = made(1000, "llama_gqa")
    assert [layer.window for layer in view_of(network).layers] == [1000, 0]
    run = uniform(PROMPT - NEW, rows=2)
    got, want = (drive(each, composed("baseline"), tokens, run).logits for each in (network, model("llama_gqa")))
    assert torch.equal(got, want)
    assert getattr(model("llama_gqa").config, "layer_types", None) is None, "the original is another one now"


# -- stopping half way ----------------------------------------------------------------------------------------------


@contextmanager
def counted(network: PreTrainedModel) -> Iterator[list[list[int]]]:
    """Yield, per layer, how many tokens went through its feed-forward part in each pass."""
    layers: Any = network.get_submodule("model.layers")
    found: list[list[int]] = [[] for _ in layers]

    def note(index: int) -> Any:
        return lambda module, given: found[index].append(given[0].shape[1])

    hooks = [layer.mlp.register_forward_pre_hook(note(index)) for index, layer in enumerate(layers)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def a_prompt_may_stop_half_way(attend: str, asked: int) -> None:
    """Where logits are asked of the last tokens, these alone go through the upper half, and say what they said."""
    network, tokens = made(), ids(83, 2, PROMPT)
    want = stock(network, tokens, attend)
    with counted(network) as found:
        got = stock(network, tokens, attend, logits_to_keep=asked)
    assert_close(got, want[:, -asked:])
    assert found == [[PROMPT]] * FIRST + [[asked]] * (LAYERS - FIRST)


def a_prompt_may_stop_half_way_in_the_cache(lengths: Sequence[int], chunks: Sequence[int], codec: str) -> None:
    """A prompt that stops half way, in pieces and padded or not, is the whole one to all tokens that follow it."""
    run = RunShape(prompt_lengths=tuple(lengths), new_tokens=NEW)
    texts = [ids(84 + row, 1, length + NEW)[0] for row, length in enumerate(lengths)]
    network, tokens, strategy = made(), padded(texts), composed("baseline", f"strategy/codec={codec}")
    want = drive(network, strategy, tokens, run, chunks=chunks).logits[:, PROMPT - 1 :]
    with attention(network, "kvbench"), counted(network) as found:
        cache = strategy.build(view_of(network), run)
        for step, columns in cache.prompt_passes(PROMPT, chunks[0] if chunks else 0):
            cache.begin(step)
            got = [_last(network, tokens[:, columns], cache)]
        passes = len(found[0])
        cache.begin(DECODE)
        got += [_last(network, tokens[:, at : at + 1], cache) for at in range(PROMPT, PROMPT + NEW)]
    assert_close(torch.cat(got, dim=1), want)
    assert all(layer[:passes] == [1] * passes for layer in found[FIRST:]), found
    assert cache.allocated_bytes() == strategy.allocated_bytes(view_of(network), run)
    assert all(module.handed.pair is None for module in network.modules() if isinstance(module, SharingAttention))


def _last(network: PreTrainedModel, tokens: Tensor, cache: Any) -> Tensor:
    where = cache.position_ids(tokens.shape[1])
    logits: Tensor = network(tokens, past_key_values=cache, position_ids=where, logits_to_keep=1).logits
    return logits


def what_looks_at_a_prompt_is_shown_all_of_it(name: str, *overrides: str) -> None:
    """A method that chooses, or packs, by the queries of a prompt leaves what it leaves of a prompt that went on."""
    network = made(name=DEEP if name == "baseline" else "llama_gqa")  # entries leave only where no layer takes them
    strategy, tokens = composed(name, *overrides), ids(85, 1, PROMPT + NEW)
    whole = drive(network, strategy, tokens, uniform())
    with attention(network, "kvbench"):
        cache = strategy.build(view_of(network), uniform())
        cache.begin(next(cache.prompt_passes(PROMPT, 0))[0])
        got = [_last(network, tokens[:, :PROMPT], cache)]
        cache.begin(DECODE)
        got += [_last(network, tokens[:, at : at + 1], cache) for at in range(PROMPT, PROMPT + NEW)]
    assert_close(torch.cat(got, dim=1), whole.logits[:, PROMPT - 1 :])


# -- bytes ----------------------------------------------------------------------------------------------------------


def bytes_are_one_layers_and_windows() -> None:
    """The upper half holds what one layer does, the lower half windows, at every length; what is not read is gone."""
    network, strategy, sizes = made(), composed("baseline"), []
    shape = view_of(model(DEEP)).layers[0]
    entry = shape.kv_heads * (shape.key_dim + shape.value_dim) * torch.float64.itemsize + torch.int32.itemsize
    for length in (PROMPT, 2 * PROMPT):
        cache = drive(network, strategy, ids(86, 1, length + NEW), uniform(length)).cache
        assert cache.allocated_bytes() == strategy.allocated_bytes(view_of(network), uniform(length))
        assert cache.used_bytes() == entry * (length + NEW + FIRST * (WINDOW - 1))
        sizes.append(cache.allocated_bytes())
    assert sizes[1] - sizes[0] == PROMPT * entry
    gone = {key for key, _ in model(DEEP).named_parameters()} - {key for key, _ in network.named_parameters()}
    assert gone == {f"model.layers.3.self_attn.{part}_proj.weight" for part in "kv"}


def shapes_are_known_before() -> None:
    """What is said of windows and donors before a model is changed is what is seen in the changed one."""
    part = composed("yoco", f"transform.window={WINDOW}").transform
    assert isinstance(part, Yoco)
    got, want = part.shapes(view_of(model(DEEP))), part.view(made(), view_of(model(DEEP)))
    for view in (got, want):
        assert [layer.window for layer in view.layers] == [WINDOW, WINDOW, 0, 0]
        assert [layer.donor for layer in view.layers] == [None, None, None, FIRST]
