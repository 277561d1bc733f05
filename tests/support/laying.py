"""What holds of weights that were laid out anew, and of linear layers that became one product."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from kvbench.models.laying import lay_out
from kvbench.models.siblings import fuse, joint
from kvbench.models.view import view_of
from tests.support.models import VOCABULARY, ids

LAYERS = 2


def network(tie: bool = False, bias: bool = False) -> Any:
    """Return a random Llama that answers through transformers' own attention."""
    torch.manual_seed(7)
    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4 * VOCABULARY,
            hidden_size=64,
            intermediate_size=144,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=tie,
            attention_bias=bias,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    for key, weight in made.named_parameters():
        if "bias" in key:
            weight.data.normal_()
    return made.eval().requires_grad_(False)


def storage_bytes(model: nn.Module) -> int:
    """Return the bytes of all storages that a model's parameters lie in."""
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in model.parameters()}
    return sum(storages.values())


def says_the_same(model: nn.Module, other: nn.Module, tokens: int) -> None:
    """Two networks' logits are the same, but for the order of sums."""
    want, got = (each(ids(3, 2, tokens), use_cache=False).logits for each in (model, other))
    assert want.std() > 1e-2
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def no_number_changes(tie: bool = False, bias: bool = False) -> None:
    """Weights laid out anew are the same numbers in as many bytes, and say the same."""
    before = network(tie, bias)
    after = copy.deepcopy(before)
    lay_out(after, in_rows=False)
    for one, other in zip(before.parameters(), after.parameters(), strict=True):
        assert torch.equal(one, other)
    assert storage_bytes(after) == storage_bytes(before)
    says_the_same(before, after, tokens=9)


def wide_layers_lie_by_columns() -> None:
    """What makes many outputs of few inputs lies by columns, siblings as one, and the rest by rows."""
    model = network()
    lay_out(model, in_rows=False)
    block = model.model.layers[0]
    heads, gated = block.self_attn, block.mlp
    for parts in ([heads.q_proj, heads.k_proj, heads.v_proj], [gated.gate_proj, gated.up_proj], [model.lm_head]):
        wide = joint([part.weight for part in parts])
        assert wide is not None
        assert wide.t().is_contiguous()
    for other in (gated.down_proj, heads.o_proj, model.model.embed_tokens):
        assert other.weight.is_contiguous()
    lay_out(model, in_rows=True)
    assert all(each.is_contiguous() for each in model.parameters())


def tied_weights_lie_by_rows() -> None:
    """What an embedding shares stays in rows, and stays shared."""
    model = network(tie=True)
    lay_out(model, in_rows=False)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.is_contiguous()


def other_kinds_stay_as_they_are() -> None:
    """Nothing lies by columns in half precision."""
    model = network().bfloat16()
    lay_out(model, in_rows=False)
    assert all(each.is_contiguous() for each in model.parameters())


def whoever_looks_keeps_no_copy() -> None:
    """What a view shows of keys' projections is where the model has them, when they have become one product, too."""
    model = network()
    lay_out(model, in_rows=False)
    view = view_of(model)
    fuse(model, Counting)
    for layer, block in zip(view.layers, model.model.layers, strict=True):
        for seen, part in (
            (layer.key_projection, block.self_attn.k_proj),
            (layer.value_projection, block.self_attn.v_proj),
        ):
            assert seen is not None
            assert seen.weight.data_ptr() == part.weight.data_ptr()
            assert (
                part.weight.untyped_storage().data_ptr() == block.self_attn.q_proj.weight.untyped_storage().data_ptr()
            )


class Counting:
    """A product that counts how often it was made."""

    calls = 0

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._made = partial(nn.functional.linear, weight=weight, bias=bias)

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the product of rows [..., K]."""
        Counting.calls += 1
        return self._made(rows)


def one_token_is_two_products_a_layer(bias: bool = False) -> None:
    """Of one token per row queries, keys and values are one product, and so are both halves of what follows."""
    before = network(bias=bias)
    after = copy.deepcopy(before)
    lay_out(after, in_rows=False)
    fuse(after, Counting)
    for tokens, products in ((1, 2 * LAYERS), (5, 0)):
        Counting.calls = 0
        says_the_same(before, after, tokens)
        assert Counting.calls == products
    assert storage_bytes(after) == storage_bytes(before)


def each_multiplies_what_it_is_given() -> None:
    """A layer that is asked about other tokens than the first of its siblings, or has other weights now, says so."""
    before = network()
    after = copy.deepcopy(before)
    lay_out(after, in_rows=False)
    fuse(after, Counting)
    plain, fused = (each.model.layers[0].self_attn for each in (before, after))
    some, other = torch.randn(2, 2, 1, 64)
    fused.q_proj(some)
    torch.testing.assert_close(fused.k_proj(other), plain.k_proj(other), rtol=0, atol=1e-6)
    fused.k_proj.weight.data = -fused.k_proj.weight
    fused.q_proj(some)
    torch.testing.assert_close(fused.k_proj(some), -plain.k_proj(some), rtol=0, atol=1e-6)
