"""Caches that transformers brings: their bytes, what they need, and what they are refused with."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from kvbench.engines.stock import Stock
from kvbench.models.view import view_of
from kvbench.strategies import black_box
from kvbench.types import RunShape
from tests.mutants import black_boxes as mutants
from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.support import black_boxes
from tests.support.black_boxes import box, bytes_by_hand, generated, run_of
from tests.support.models import NAMES, attention, ids, model

PACKED, NEW = 24, 6  # tokens of the prompt, and new ones: the last of them is never written
ORACLES = (
    black_boxes.parts_of_a_packed_tensor_are_counted,
    black_boxes.what_lies_beside_codes_is_counted,
    black_boxes.a_storage_is_counted_once_and_whole,
    black_boxes.what_lies_on_the_host_is_counted_there,
    black_boxes.lengths_fit_as_worked_out_by_hand,
)

has_fp8 = pytest.mark.skipif(not black_boxes.transformers_is_at_least("5.23"), reason="fp8 is of transformers 5.23")
missing = [name for name in ("hf_quanto", "hf_hqq") if box(name).unavailable() is not None]
each_package = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.skipif(name in missing, reason="pip install .[quantized]"))
        for name in ("hf_quanto", "hf_hqq")
    ],
)


@pytest.mark.parametrize("oracle", ORACLES, ids=lambda oracle: oracle.__name__)
def test_what_is_worked_out_by_hand_is_what_is_said(oracle: Check) -> None:
    oracle()


@each_of(mutants.MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert set(ORACLES) - seen_to_fail(mutants.MUTANTS) == set()


# -- bytes ------------------------------------------------------------------------------------------------------------


def test_bytes_of_the_dynamic_cache_are_those_of_a_hand_count() -> None:
    assert generated("transformers", prompt=PACKED, new=NEW).cache_bytes == 2 * 2 * 2 * 2 * (PACKED + NEW - 1) * 8 * 4


@has_fp8
def test_bytes_of_an_fp8_cache_are_those_of_a_hand_count() -> None:
    numbers, tensors = 2 * 2 * (PACKED + NEW - 1) * 8, 2 * 2  # rows x heads x tokens x width; layers x (keys, values)
    assert generated("hf_fp8", prompt=PACKED, new=NEW).cache_bytes == tensors * (numbers + 4)


@each_package
def test_bytes_of_a_packed_cache_are_those_of_a_hand_count(name: str) -> None:
    for bits, group in product((2, 4), (16, 32)):
        made = generated(name, f"bits={bits}", f"group={group}", "residual=8", prompt=PACKED, new=NEW)
        assert made.cache_bytes == bytes_by_hand(bits, group, packed=PACKED, exact=NEW - 1)
        made = generated(name, f"bits={bits}", f"group={group}", "residual=4", prompt=PACKED, new=NEW)
        assert made.cache_bytes == bytes_by_hand(bits, group, packed=PACKED + 4, exact=1)


# -- what they generate -----------------------------------------------------------------------------------------------


def test_the_dynamic_cache_is_what_generate_would_make_itself() -> None:
    network: Any = model("gemma3", torch.float32)  # sliding layers and full ones
    prompt = ids(0, 1, PACKED)
    run, engine = RunShape(prompt_lengths=(PACKED,), new_tokens=NEW), Stock(variant="dynamic", attention="sdpa")
    assert box("transformers").own_cache(network.config, run) is None
    with attention(network, "sdpa"):
        own = network.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=NEW, pad_token_id=0,
            return_dict_in_generate=True,
        )  # fmt: skip
        cache = engine.cache(network.config, run)
        mine = engine.generate(network, prompt, run, cache)
    assert torch.equal(mine.tokens, own.sequences[:, PACKED:])
    assert [type(layer) for layer in cache.layers] == [type(layer) for layer in own.past_key_values.layers]
    assert type(cache) is type(own.past_key_values)


class Stream:
    """A stream of a device that does everything at once."""

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        """Do nothing."""

    def wait_stream(self, other: object) -> None:
        """Do nothing."""


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers offload from the host to the host, where nothing moves."""
    monkeypatch.setattr(torch, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: Stream())


@pytest.mark.usefixtures("streams")
@pytest.mark.parametrize("name", ["hf_offloaded", "hf_offloaded_static"])
def test_offloaded_caches_generate_what_the_dynamic_cache_does(name: str) -> None:
    made, expected = (generated(one, prompt=PACKED, new=NEW) for one in (name, "transformers"))
    assert torch.equal(made.tokens, expected.tokens)
    assert expected.cache_bytes is not None
    counters = 2 * 8 if name == "hf_offloaded_static" else 0  # each layer counts its tokens
    assert made.cache_bytes == expected.cache_bytes + counters
    assert made.host_bytes == 0
    cache = box(name).own_cache(model("llama_gqa").config, run_of(PACKED))
    assert cache is not None
    assert cache.offloading
    assert cache.get_max_length() == (PACKED if name == "hf_offloaded_static" else -1)


@has_fp8
def test_models_that_are_said_to_fit_are_those_that_transformers_takes() -> None:
    for name in NAMES:
        try:
            box("hf_fp8").own_cache(model(name).config, run_of(64))
            reason = None
        except ValueError as error:
            reason = str(error)
        said = {box(strategy).unsupported(view_of(model(name)), run_of(64)) for strategy in ("hf_fp8", "hf_quanto")}
        assert len(said) == 1
        assert (said.pop() is None) == (reason is None), reason


@each_package
def test_lengths_that_are_said_to_fit_are_those_that_the_package_takes(name: str) -> None:
    package = black_box._PACKAGES[name.removeprefix("hf_")]
    said = set()
    for shape, axis, bits in product(black_boxes.shapes(), package.axes, package.bits):
        if bits == 3 and axis == 1:
            continue  # refused
        fits = package.fits(shape, axis, bits, 32)
        asked = (f"bits={bits}", f"axis_key={axis}", f"axis_value={axis}", "group=32")
        assert black_boxes.package_takes(name, shape, *asked) == fits, (shape, asked)
        said.add(fits)
    assert said == {True, False}


# -- what they need ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "package", "pinned"),
    [("hf_quanto", "optimum-quanto", "0.2.7"), ("hf_hqq", "hqq", "0.2.8.post1")],
)
def test_a_package_that_is_missing_is_named_with_its_command(
    name: str, package: str, pinned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = box(name)

    def installed(version: str | None) -> str | None:
        monkeypatch.setattr(black_box, "_installed", {package: version}.__getitem__)
        return made.unavailable()

    command = f"pip install {package}=={pinned}"
    assert installed(None) == f"{package} is not installed: {command}"
    assert installed("0.2.5") == f"{package} 0.2.5 is older than {pinned}: {command}"
    assert [installed(version) for version in (pinned, "0.2.10", "1.0")] == [None, None, None]
    assert f"\n{package}=={pinned}\n" in (Path(__file__).parents[2] / "constraints.txt").read_text(encoding="utf-8")


def test_what_is_installed_here_is_available() -> None:
    assert (box("hf_quanto").unavailable() is None) == (find_spec("optimum") is not None)
    assert (box("hf_hqq").unavailable() is None) == (find_spec("hqq") is not None)
    assert (box("hf_fp8").unavailable() is None) == black_boxes.transformers_is_at_least("5.23")
    assert box("transformers").unavailable() is None


def test_offloaded_caches_need_a_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    view = view_of(model("llama_gqa"))
    for name in ("hf_offloaded", "hf_offloaded_static"):
        for is_here in (True, False):
            monkeypatch.setattr(torch.cuda, "is_available", lambda is_here=is_here: is_here)
            said = box(name).unavailable()
            assert (said is None) == is_here
        assert said == "transformers moves layers between a CUDA device and its host, and there is none here"
        assert box(name).unsupported(replace(view, device=torch.device("cuda")), run_of(8)) is None
        assert "set model.device=cuda" in str(box(name).unsupported(view, run_of(8)))
        assert (box(name).saving, box(name).fidelity) == ("offloaded", "exact")


def test_fp8_says_which_transformers_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda package: "5.22.1")
    said = box("hf_fp8").unavailable()
    assert said == "QuantizedCache has no fp8 in transformers 5.22.1: pip install 'transformers>=5.23,<5.24'"
    monkeypatch.setattr(metadata, "version", lambda package: "5.23.0.dev0")
    assert box("hf_fp8").unavailable() is None


# -- what they say ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hf_quanto", "hf_hqq", "hf_fp8"])
def test_they_say_that_they_pack_and_lose(name: str) -> None:
    made = box(name)
    assert (made.saving, made.fidelity, made.data_dependent, made.keeps_budget) == (
        "packed", "lossy_training_free", False, True,
    )  # fmt: skip
    assert made.statistic == ("median" if name == "hf_fp8" else "mean")


def test_models_with_windows_are_refused_and_lengths_that_fill_no_groups() -> None:
    for name in ("hf_quanto", "hf_hqq", "hf_fp8"):
        assert "sliding layers" in str(box(name).unsupported(view_of(model("gemma3")), run_of(64)))
    view = view_of(model("llama_gqa"))
    assert box("hf_quanto").unsupported(view, run_of(64)) is None
    assert box("hf_quanto").unsupported(view, run_of(66)) is not None
    later = box("hf_quanto", "residual=6")
    assert later.unsupported(view, run_of(64)) is None
    assert later.unsupported(view, RunShape(prompt_lengths=(64,), new_tokens=6)) is None  # never packed
    assert "1 x 2 x 70 x 8" in str(later.unsupported(view, RunShape(prompt_lengths=(64,), new_tokens=7)))
