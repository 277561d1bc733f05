"""Layers on several devices: each keeps its own entries, the rest is refused, and what was got is recorded."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kvbench import bench
from kvbench.cache.doors import ATTENTION
from kvbench.columns import layer_devices
from kvbench.configuration import check, compose
from kvbench.measure.memory import MemoryMeter
from kvbench.models import load as loading
from kvbench.models.load import ModelError, load
from kvbench.models.spec import ModelSpec
from kvbench.models.view import view_of
from kvbench.runner import job_of, measure
from kvbench.types import RunShape
from tests.mutants.core_mutant import Check, Mutant, each_of, oracles_in, seen_to_fail
from tests.mutants.spread import MUTANTS
from tests.support import spread
from tests.support.small import checkpoint, spec
from tests.support.strategies import composed

TWO = (torch.device("cuda:0"), torch.device("cuda:1"))


@pytest.mark.parametrize("name", spread.SERVED)
def test_entries_are_where_their_layer_is(name: str) -> None:
    spread.entries_are_where_their_layer_is(name, "llama")


def test_so_they_are_where_positions_are_learned() -> None:
    spread.entries_are_where_their_layer_is("h2o", "gpt2")


def test_padding_is_counted_on_each_device() -> None:
    spread.padding_is_counted_on_each_device()


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("squeezeattention", "budget=uniform"),
        ("kvzip", "budget=uniform"),
        ("shadowkv", "evicted=drop"),
        ("quest", "reader=all"),
        ("minicache", "layout=separate"),
        ("paged", "layout=separate"),
        ("offload", "placement=device"),
        ("gqa", "transform=none"),
        ("kvquant3", "codec=dense or int8"),
    ],
)
def test_what_knows_of_one_device_only_is_refused(name: str, part: str) -> None:
    with spread.spread("llama") as model:
        view, run = view_of(model), RunShape(prompt_lengths=(64,), new_tokens=4)
    made = composed(name)
    for reason in (made.unsupported(view, run), made.cannot_change(view)):
        assert reason is not None
        assert "model.device_map has put layers on several devices" in reason
        assert f"strategy/{part}" in reason


def test_which_layers_are_where_is_a_word_of_the_row() -> None:
    with spread.spread("llama") as model:
        view = view_of(model)
    assert layer_devices(view) == "cpu: 0-1, meta: 2-3"
    assert layer_devices(replace(view, places=())) == "cpu: 0-3"
    assert layer_devices(replace(view, places=(*TWO, *TWO))) == "cuda:0: 0 2, cuda:1: 1 3"


class Placed:
    """Stands in for transformers' loader: says what it was told, and where it put what."""

    def __init__(self, **places: str) -> None:
        self.places, self.told, self.real = places, "", loading._auto()

    def from_pretrained(self, *arguments: Any, device_map: str, **keywords: Any) -> Any:
        """Load on the processor."""
        self.told, made = device_map, self.real.from_pretrained(*arguments, **keywords)
        if self.places:  # which a model on one device does not have
            made.hf_device_map = self.places
        return made


@pytest.fixture
def at_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """Return a specification that asks for several devices, with what spreads layers installed or not."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace())
    folder = str(checkpoint(tmp_path / "model"))
    return spec(path=folder, architecture={}, device="auto", device_map="balanced")


def test_transformers_is_told_how_to_spread(at_a_checkpoint: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Placed()
    monkeypatch.setattr(loading, "_auto", lambda: loader)
    loaded = load(at_a_checkpoint, seed=0, attention=ATTENTION)
    assert loader.told == "balanced"
    assert layer_devices(loaded.view) == "cpu: 0-1"


@pytest.mark.parametrize(
    ("places", "fetched"),
    [
        ({"a": "cuda:0", "b": "cpu"}, "cpu"),
        ({"a": "0", "b": "disk", "c": "cpu"}, "cpu and disk"),
        ({"a": "disk"}, "disk"),
    ],
)
def test_weights_that_every_pass_would_fetch_are_refused(
    at_a_checkpoint: ModelSpec, monkeypatch: pytest.MonkeyPatch, places: dict[str, str], fetched: str
) -> None:
    loader = Placed(**places)
    monkeypatch.setattr(loading, "_auto", lambda: loader)
    with pytest.raises(ModelError, match=rf"balanced left weights of small on {fetched}, from where .* more GPUs"):
        load(at_a_checkpoint, seed=0, attention=ATTENTION)


def test_a_model_without_a_checkpoint_is_not_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"random ones are made on one device; set model\.path="):
        spec(device="auto", device_map="auto")
    with pytest.raises(ValueError, match=r"device_map=auto takes every GPU .* model\.device=cpu"):
        spec(device_map="auto")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    nowhere = spec(device="auto", device_map="auto", weights="auto", hub_id="nobody/nothing", revision="main")
    with pytest.raises(ModelError, match=r"those of nobody/nothing are not to be had; set model\.path="):
        load(nowhere, seed=0, attention=ATTENTION)


def test_a_recurrent_network_is_not_spread() -> None:
    tiny: ModelSpec = check(compose(["model=tiny-rwkv", "model.device_map=auto"])).model
    with pytest.raises(ModelError, match="tiny-rwkv is a recurrent network, which runs on one device"):
        load(tiny, seed=0, attention=ATTENTION)


def test_without_accelerate_the_row_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    job = job_of(check(compose(["model.device_map=auto"])))
    row = measure(job, lambda text: None, lambda stage, share: None).rows["strategy"]
    assert row["status"] == "unavailable"
    assert "needs accelerate, which is not installed: pip install '.[accelerate]'" in str(row["reason"])
    with pytest.raises(ModelError, match="needs accelerate"):
        load(job.spec, seed=0, attention=ATTENTION)


def test_several_gpus_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("max_memory_allocated", "memory_allocated", "max_memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda gpu: 10 ** (1 + gpu.index))
    done: list[Any] = []
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, done.append)
    meter = MemoryMeter(TWO[0], others=TWO[1:])
    meter.settle()
    meter.reset()
    assert done == [*TWO, *TWO]
    assert [meter.peak_bytes(), meter.held_bytes(), meter.reserved_bytes()] == [110, 110, 110]


def test_all_gpus_have_room_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "device_of", lambda spec: TWO[0])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (8 * 2**20, 0))
    with pytest.raises(MemoryError):
        bench.check_memory(job_of(check(compose([]))))
    bench.check_memory(job_of(check(compose(["model.device_map=auto"]))))


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert not oracles_in(spread) - seen_to_fail(MUTANTS)
