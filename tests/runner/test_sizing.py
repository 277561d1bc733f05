"""The sizes of a model are those of the model, counted another way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvbench import sizing
from kvbench.configuration import check, compose
from kvbench.models.load import load
from kvbench.models.spec import ModelSpec
from kvbench.sizing import network_of
from tests.mutants import sizing as mutants

SMALL = "hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4, vocab_size: 100"
LLAMA = f"{{model_type: llama, num_key_value_heads: 2, head_dim: 8, tie_word_embeddings: false, {SMALL}}}"
GPT2 = "{model_type: gpt2, vocab_size: 100, n_positions: 64, n_embd: 32, n_layer: 2, n_head: 4}"
GEMMA = f"{{model_type: gemma3_text, num_key_value_heads: 2, head_dim: 8, sliding_window: 16, {SMALL}}}"


def spec(architecture: str, dtype: str = "bfloat16") -> ModelSpec:
    """Return a model of random weights."""
    asked = ["model=llama8", "~model.architecture", f"+model.architecture={architecture}", f"model.dtype={dtype}"]
    return check(compose([*asked, "model.weights=random", "strategy=baseline"])).model


def check_parameters() -> None:
    """Llama: projections, norms and head are read, not the table; GPT-2's table is its head, and positions are not."""
    block = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32
    network = network_of(spec(LLAMA))
    assert network.read_parameters == 2 * block + 32 + 100 * 32
    assert network.weights_bytes == 2 * (network.read_parameters + 100 * 32)
    block = (32 + 1) * 96 + (32 + 1) * 32 + (32 + 1) * 128 + (128 + 1) * 32 + 4 * 32
    network = network_of(spec(GPT2, "float32"))
    assert network.read_parameters == 2 * block + 2 * 32 + 100 * 32
    assert network.weights_bytes == 4 * (network.read_parameters + 64 * 32)


def check_widths() -> None:
    """Widths are those that were asked for, and GPT-2's feed-forward part is four times as wide."""
    network = network_of(spec(LLAMA))
    assert (network.hidden, network.intermediate, network.vocabulary, network.kv_width) == (32, 48, 100, 2 * 2 * 8)
    assert (network.query_heads, network.kv_heads, network.windows, network.number_bytes) == (4, 2, (0, 0), 2)
    network = network_of(spec(GPT2))
    assert (network.hidden, network.intermediate, network.kv_width) == (32, 128, 64)


def check_launches() -> None:
    """A layer more is as many operations more as the layer has; what only looks at numbers is none."""
    one, two = (
        network_of(spec(LLAMA.replace("num_hidden_layers: 2", f"num_hidden_layers: {layers}"))) for layers in (1, 2)
    )
    each = two.launches - one.launches
    assert 35 <= each <= 55  # 7 products; 2 norms with their conversions, rotation, attention, SwiGLU, additions
    assert one.launches - each < 25


CHECKS = (check_parameters, check_widths, check_launches)


@pytest.mark.parametrize("oracle", CHECKS, ids=lambda oracle: oracle.__name__)
def test_sizes_are_those_counted_by_hand(oracle: Callable[[], None]) -> None:
    oracle()


@pytest.mark.parametrize(("name", "broken", "oracle"), [(*m, CHECKS[n]) for *m, n in mutants.SIZES])
def test_oracle_catches_other_sizes(
    name: str, broken: object, oracle: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizing, name, broken)
    with pytest.raises(AssertionError):
        oracle()


def test_a_window_is_of_its_layer() -> None:
    network = network_of(spec(GEMMA))
    assert network.windows == (16, 16)  # two of the five that slide before one sees everything


def test_nothing_is_loaded_and_what_is_loaded_weighs_as_much() -> None:
    asked = spec(LLAMA)
    model = load(asked, seed=0, attention="sdpa").model
    assert network_of(asked).weights_bytes == sum(p.nbytes for p in model.parameters())
