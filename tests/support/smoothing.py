"""What must hold of a smoothed model: it says the same before it is rounded, and rounding is what plain loops do."""

from __future__ import annotations

import copy
import functools
import gc
import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kvbench.bench import Bench, source_of
from kvbench.cache.doors import ATTENTION
from kvbench.columns import weights_read
from kvbench.configuration import check, compose
from kvbench.engines.arm import Arm
from kvbench.engines.eager import Eager
from kvbench.models.load import Loaded, load
from kvbench.models.norms import linear_layers, norms_of, weight_of
from kvbench.models.view import view_of, weights_bytes
from kvbench.quality.evaluate import likelihood
from kvbench.runner import job_of
from kvbench.strategies.transform.base import with_modules
from kvbench.strategies.transform.int8_linear import Int8Linear, integer_product, tiled_product
from kvbench.strategies.transform.maxima import ChannelMaxima
from kvbench.strategies.transform.smooth import folded, in_eight_bits
from tests.support.codecs import rand
from tests.support.measured import SOURCE, measured
from tests.support.models import MAIN, ids, model
from tests.support.strategies import composed, strategy

SMOOTHABLE = (*MAIN, "mistral", "qwen3", "phi3")
ALPHAS = (0.0, 0.3, 0.5, 1.0)
SAME = 1e-9  # of logits of size 1 in float64, of which transformers' norms round a part to float32, both times alike
SIX_DIGITS = 1e-5  # relative: maxima are kept with six digits
CHANNEL, TIMES = 5, 30.0  # an outlier and its size
LOSS = 0.005  # nats that may be lost on the embedded model


def logits(network: nn.Module) -> Tensor:
    """Return logits of some ids [2, 30, V]."""
    out: Tensor = network(ids(7, 2, 30), use_cache=False).logits
    return out


def fold(network: PreTrainedModel, found: ChannelMaxima, alpha: float) -> PreTrainedModel:
    """Return the folded model in floating point."""
    return cast("PreTrainedModel", with_modules(network, dict(folded(network, view_of(network), found, alpha))))


def few(network: PreTrainedModel) -> ChannelMaxima:
    """Return maxima over little text."""
    found = measured("smooth", network, samples=2, tokens=40)
    assert isinstance(found, ChannelMaxima)
    return found


# -- smoothing ------------------------------------------------------------------------------------------------------


@functools.cache
def uneven(name: str) -> PreTrainedModel:
    """Return the model with norms whose weights are not all 1, and whose biases are not all 0."""
    made, generator = copy.deepcopy(model(name)), torch.Generator().manual_seed(11)
    for norm in norms_of(made):
        for parameter in made.get_submodule(norm.norm).parameters():
            parameter.add_(torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype) / 2)
    return made


def folding_keeps_the_logits(name: str) -> None:
    """Before anything is rounded, a smoothed model says what the model says, though every norm has changed."""
    network = uneven(name)
    want, found = logits(network), few(network)
    for alpha in ALPHAS:
        got = fold(network, found, alpha)
        torch.testing.assert_close(logits(got), want, rtol=0, atol=SAME)
        for norm in view_of(network).norms:
            before, after = (made.get_submodule(norm.norm).weight for made in (network, got))
            assert not torch.allclose(cast("Tensor", before), cast("Tensor", after)), "nothing was folded"


def what_is_measured_comes_out_of_the_norms(name: str) -> None:
    """Maxima are the largest magnitudes of what each norm puts out, over all samples."""
    network = uneven(name)
    seen: dict[str, Tensor] = {}

    def note(norm: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            seen[norm] = torch.cat([seen.get(norm, output[:0].flatten(0, 1)), output.flatten(0, 1)])

        return hook

    norms = view_of(network).norms
    handles = [network.get_submodule(norm.norm).register_forward_hook(note(norm.norm)) for norm in norms]
    for window in SOURCE.windows(3, 20):
        network(torch.tensor([window]), use_cache=False)
    for handle in handles:
        handle.remove()
    found = measured("smooth", network, samples=3, tokens=20).maxima
    assert len(found) == len(norms) == 4
    for norm, row in zip(norms, found, strict=True):
        want = [max(abs(number) for number in channel) for channel in seen[norm.norm].t().tolist()]
        torch.testing.assert_close(torch.tensor(row), torch.tensor(want), rtol=SIX_DIGITS, atol=0)


def half_and_half_equalises(name: str) -> None:
    """With alpha 0.5 a channel is as large in the activations as in the weights; else as much larger as alpha says."""
    network = uneven(name)
    found = few(network)
    for alpha in (0.3, 0.5):
        made = fold(network, found, alpha)
        for norm, row in zip(view_of(made).norms, few(made).maxima, strict=True):
            weights = torch.cat([weight_of(made.get_submodule(reader)) for reader in norm.readers])
            largest = weights.abs().amax(dim=0)
            got, want = torch.tensor(row).double() ** alpha, largest ** (1 - alpha)
            torch.testing.assert_close(got, want, rtol=3 * SIX_DIGITS, atol=0)


@functools.cache
def with_an_outlier(name: str) -> PreTrainedModel:
    """Return the model with one channel behind each norm so many times larger, and read as much smaller."""
    made = copy.deepcopy(model(name))
    for norm in norms_of(made):
        for parameter in made.get_submodule(norm.norm).parameters():
            parameter[CHANNEL] *= TIMES
        for reader in norm.readers:
            weight_of(made.get_submodule(reader))[:, CHANNEL] /= TIMES
    torch.testing.assert_close(logits(made), logits(model(name)), rtol=0, atol=SAME)
    return made


def smoothing_lowers_the_error_of_an_outlier(name: str) -> None:
    """With one channel 30 times as large, 8 bits lose far more where it is not smoothed."""
    network = with_an_outlier(name)
    want = logits(network)
    smoothed = in_eight_bits(network, folded(network, view_of(network), few(network), 0.5))
    plain = in_eight_bits(network, iter(()))
    errors = [(logits(made) - want).square().mean().sqrt() for made in (smoothed, plain)]
    assert 0 < 2 * errors[0] < errors[1], errors


# -- eight bits -----------------------------------------------------------------------------------------------------


def eight_bits(numbers: list[float]) -> tuple[list[int], float]:
    """Return the codes of numbers that share a scale, and the scale, in plain Python."""
    scale = float(torch.tensor(max(map(abs, numbers)) / 127, dtype=torch.float64).float()) or 1.0
    return [max(-127, min(127, round(number / scale))) for number in numbers], scale


def the_integer_layer_equals_plain_loops() -> None:
    """A layer's outputs are sums of integers times the scales of a token and of a channel, plus the bias."""
    for width, outputs in ((7, 5), (40, 3), (2100, 4)):
        weight = rand(outputs, width, seed=1).double() / 30
        bias = torch.randn(outputs, generator=torch.Generator().manual_seed(2)).double()
        hidden = rand(1, 6, width, seed=3).double()
        hidden[0, 2] = 0
        hidden[0, 3] *= 1e4
        got = Int8Linear(weight, bias)(hidden)
        assert got.shape == (1, 6, outputs)
        rows, columns = ([eight_bits(row) for row in numbers.tolist()] for numbers in (hidden[0], weight))
        want = [
            [
                sum(a * b for a, b in zip(codes, others, strict=True)) * scale * other + shift
                for (others, other), shift in zip(columns, bias.tolist(), strict=True)
            ]
            for codes, scale in rows
        ]
        torch.testing.assert_close(got[0], torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=1e-12)
        low = Int8Linear(weight, None)(hidden.bfloat16())
        assert low.dtype == torch.bfloat16
        torch.testing.assert_close(low.double(), got - bias, rtol=0.05, atol=0.05 * float(got.abs().max()))


def products_are_exact() -> None:
    """Products of codes are exact whichever way they are made, the largest codes and long sums included."""
    generator = torch.Generator().manual_seed(0)
    for rows, width, outputs in ((1, 8, 8), (3, 33, 17), (40, 3001, 300), (2, 1025, 8), (2, 70, 5000)):
        codes = [torch.randint(-127, 128, (n, width), dtype=torch.int8, generator=generator) for n in (rows, outputs)]
        codes[0][0], codes[1][0] = 127, 127
        codes[1][1] = -127
        want = (codes[0].long() @ codes[1].long().t()).int()
        for product in (integer_product, tiled_product, lambda a, b: torch._int_mm(a, b.t())):
            got = product(*codes)
            assert got.dtype == torch.int32
            assert torch.equal(got, want)


# -- the model ------------------------------------------------------------------------------------------------------


def the_original_stays_as_it_is(name: str) -> None:
    """The model that is given stays as it was to the bit, and what does not change is one and the same."""
    network = copy.deepcopy(model(name))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    modules = {key: id(module) for key, module in network.named_modules()}
    want, made = logits(network), strategy("smoothquant").prepare(network)
    assert (logits(made) - want).abs().max() > 1e-6, "nothing has changed: this proves nothing"
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert {key: id(module) for key, module in network.named_modules()} == modules
    assert torch.equal(logits(network), want)
    changed = {norm.norm for norm in view_of(network).norms} | linear_layers(network).keys()
    for key, module in made.named_modules():
        holds = any(name == key or name.startswith(f"{key}.") or not key for name in changed)
        given = network.get_submodule(key)
        assert (module is given) == (not holds), key
        assert (module._forward_hooks is given._forward_hooks) == (not holds), f"{key}: hooks reach the original"
    shared = {parameter.data_ptr() for parameter in network.parameters()}
    for key, parameter in made.named_parameters():
        owner = key.rpartition(".")[0]
        is_new = owner in changed and not isinstance(made.get_submodule(owner), Int8Linear)
        assert (parameter.data_ptr() in shared) != is_new, key


def bytes_of_weights_are_a_closed_form(name: str) -> None:
    """A linear layer holds one byte per weight and four per output, in storages of that size, and nothing beside."""
    network = model(name)
    made = strategy("smoothquant").prepare(network)
    layers = linear_layers(network)
    want = weights_bytes(network)
    for key, layer in layers.items():
        weight, mine = weight_of(layer), made.get_submodule(key)
        want += weight.numel() + 4 * len(weight) - weight.numel() * weight.element_size()
        tensors = [t for t in (*mine.parameters(), *mine.buffers()) if t is not mine.bias]
        assert sum(t.untyped_storage().nbytes() for t in tensors) == weight.numel() + 4 * len(weight)
    assert len(layers) == {"gpt2": 8}.get(name, 14)
    assert not linear_layers(made)
    assert weights_bytes(made) == want < 0.6 * weights_bytes(network)


def norms_are_told() -> None:
    """Norms are told in models of Llama's and GPT-2's kind, and not where they add 1, share weights or feed others."""
    for name, readers in (*((name, 5) for name in ("llama_gqa", "mistral", "qwen3")), ("phi3", 2), ("gpt2", 2)):
        found = norms_of(model(name))
        assert len(found) == 4
        assert sum(len(norm.readers) for norm in found) == 2 * readers
    assert norms_of(model("gemma3")) == ()
    for change in (_adds_one, _shares, _feeds_another):
        broken = copy.deepcopy(model("llama_gqa"))
        change(broken)
        assert norms_of(broken) == (), change.__name__


def _adds_one(network: Any) -> None:
    for layer in network.model.layers:
        layer.input_layernorm = _AddsOne(layer.input_layernorm)


class _AddsOne(nn.Module):
    """A norm that is 1 where its weights are 0, as Gemma's."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(cast("Tensor", norm.weight) - 1, requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return normed states."""
        return hidden * (1 + self.weight)


def _shares(network: Any) -> None:
    network.model.layers[1].self_attn.q_proj.weight = network.model.layers[0].self_attn.q_proj.weight


def _feeds_another(network: Any) -> None:
    network.model.layers[0].adapter = nn.Linear(2, 2)


# -- the embedded model ---------------------------------------------------------------------------------------------


@functools.cache
def embedded() -> Loaded:
    """Return the embedded model."""
    return load(check(compose(["model=tiny", "model.device=cpu"])).model, seed=0, attention=ATTENTION)


def loss_hardly_rises(name: str) -> None:
    """On the embedded model held-out text is as likely as before, but for 0.005 nats, and not all the same."""
    loaded, made = embedded(), composed(name)
    job = job_of(check(compose(["model=tiny", "model.device=cpu"])))
    judged, full = (
        Arm(name=one, model=how.prepare(loaded.model), view=loaded.view, strategy=how, engine=Eager(prefill_chunk=0))
        for one, how in (("strategy", made), ("baseline", composed("baseline")))
    )
    with torch.no_grad():
        windows = torch.tensor(source_of(job, loaded).windows(16, 161))
        found = likelihood((judged, full), windows, context=64, batch_size=16, progress=lambda share: None)
    rise = (found.nll[0] - found.nll[1]) / found.tokens
    assert 0 < abs(rise) <= LOSS, rise
    assert found.packing_errors == {}, "an error of packing is given for what the network changed"


def each_arm_has_its_own_weights() -> None:
    """A row says the bytes of the weights its own arm holds, and a step is taken to read those."""
    made = Bench(job_of(check(compose(_QUICK))), lambda stage, share: None)
    rows = {name: row["weights_bytes"] for name, row in made.measured.rows.items()}
    full = {name: weights_bytes(arm.model) for name, arm in made.arms.items()}
    assert rows == full
    saved = sum(
        weight_of(layer).numel() * 3 - 4 * len(weight_of(layer)) for layer in linear_layers(made.loaded.model).values()
    )
    assert rows["baseline"] - rows["strategy"] == saved > rows["baseline"] / 3
    reads = {name: weights_read(arm.model) for name, arm in made.arms.items()}
    assert reads["baseline"] - reads["strategy"] == saved


def weights_of_other_arms_are_let_go_of() -> None:
    """An arm that is weighed alone does not hold the floating point weights that its own are made of."""
    for name, lives in (("strategy", False), ("baseline", True)):
        made = Bench(job_of(check(compose(_QUICK))), lambda stage, share: None)
        weight = weakref.ref(made.loaded.model.get_submodule("model.layers.0.mlp.gate_proj").weight)
        arm = made.alone(name)
        gc.collect()
        assert (weight() is not None) == lives
        assert made.loaded.model is arm.model


_QUICK = ["strategy=smoothquant", "model=tiny", "model.device=cpu", "quality=none"]


def a_model_without_maxima_is_a_row(folder: str) -> None:
    """Where maxima lack, a run has no strategy's arm and gives the command that makes them as its reason."""
    quick = [f"strategy.transform.maxima='{folder}'", "workload.prompt_tokens=16", "workload.new_tokens=4"]
    made = Bench(job_of(check(compose([*_QUICK, *quick]))), lambda stage, share: None)
    reason = made.refused()
    assert reason is not None
    assert reason.endswith("Run once: kvbench calibrate smooth model=tiny")
    assert list(made.arms) == ["baseline"]
