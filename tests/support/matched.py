"""What must hold for arms that run on different networks."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, MambaConfig, PreTrainedTokenizerFast

from kvbench import asking, bench
from kvbench.bench import Bench
from kvbench.configuration import check, compose
from kvbench.job import Job
from kvbench.models.mamba import Mamba
from kvbench.models.rwkv import Rwkv
from kvbench.models.spec import TINY
from kvbench.runner import describe, job_of
from tests.support.family import shipped
from tests.support.small import spec

QUICK = ("workload.prompt_tokens=24", "workload.new_tokens=4", "measure.threads=1", "model.device=cpu")
SMALL = ("quality.text_windows=2", "quality.context_tokens=20", "quality.scored_tokens=8", "quality.recall_samples=0")
SIZES: dict[str, Any] = {"vocab_size": 2048, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}


@functools.cache
def job(kind: str, *overrides: str) -> Job:
    """Return the job of a recurrent network beside the embedded model."""
    return job_of(check(compose([f"strategy=non_transformer_{kind}", *overrides, *QUICK, *SMALL])))


@functools.cache
def attending(*overrides: str) -> Job:
    """Return the job of the family's MHA beside the embedded model."""
    chosen = ("strategy=matched", "strategy.transform.kind=mha", *overrides)
    return job_of(check(compose([*chosen, *QUICK, *SMALL])))


def made(asked: Job) -> Bench:
    """Return the loaded bench of a job."""
    try:
        return Bench(asked, lambda stage, share: None)
    finally:
        torch.set_grad_enabled(True)


@contextmanager
def trained() -> Iterator[Job]:
    """Hold a job whose recurrent network has weights of its own and the embedded tokenizer."""
    asked = job("mamba")
    assert asked.matched is not None
    with TemporaryDirectory() as folder:
        torch.manual_seed(8)
        Mamba(MambaConfig(**SIZES)).save_pretrained(folder)
        PreTrainedTokenizerFast.from_pretrained(TINY).save_pretrained(folder)
        yield replace(asked, matched=replace(asked.matched, path=folder))


def arms_run_on_their_own_networks() -> None:
    """The baseline runs on the model, the strategy on the one that matches it, and rows say so."""
    for kind, network in (("mamba", Mamba), ("rwkv", Rwkv)):
        found = made(replace(job(kind), spec=spec()))
        assert isinstance(found.arms["baseline"].model, LlamaForCausalLM)
        assert isinstance(found.arms["strategy"].model, network)
        assert found.refused() is None
        rows = found.measured.rows
        is_trained = kind in shipped()
        assert rows["strategy"]["network"].startswith(f"tiny-{kind} ({'embedded' if is_trained else 'random'}, ")
        assert rows["strategy"].get("fidelity") == (None if is_trained else "structure_only")
        assert not {"network", "fidelity"} & rows["baseline"].keys()
        assert (
            rows["strategy"]["weights_bytes"]
            == pytest.approx(1.966e6 * 4, rel=0.01)
            != rows["baseline"]["weights_bytes"]
        )
        assert found.alone("strategy").model is found.loaded.model
        assert isinstance(found.loaded.model, network)


def ids_are_of_each_vocabulary() -> None:
    """Random ids of a smaller vocabulary are within it, those of the other arm are not."""
    asked = replace(job("mamba"), spec=spec())
    assert asked.matched is not None
    few = {"model_type": "mamba", **SIZES, "vocab_size": 50}
    found = made(replace(asked, matched=replace(asked.matched, weights="random", architecture=few)))
    run = asked.workload.runs()[-1]
    assert found.ids(run, "strategy").max() < 50 <= found.ids(run, "baseline").max()


def quality_is_of_each_network_alone() -> None:
    """Both losses are measured and no divergence; that of the recurrent network is what it says at once.

    Where it has random weights, it is not asked.
    """
    with trained() as asked:
        found = made(asked)
    assert found.on["strategy"].tokenizer is not found.on["baseline"].tokenizer
    rows = found.measured.rows
    before = dict(rows["strategy"])
    assert before["network"].startswith("tiny-mamba (pretrained, ")
    assert "fidelity" not in before
    with torch.no_grad():
        asking.ask_likelihood(found)
    assert rows["strategy"]["quality_tokens"] == rows["baseline"]["quality_tokens"] == 16
    asked_of = {"nll_nats", "guess_nats", "bits_per_byte", "quality_tokens"}
    assert rows["strategy"].keys() - before.keys() == {*asked_of, "nll_delta_nats"}
    windows = torch.tensor(found.sources["strategy"].windows(2, 29))
    with torch.no_grad():
        said = found.arms["strategy"].model(windows).logits.double().log_softmax(dim=-1)
    nats = -said[:, 20:28].gather(2, windows[:, 21:, None])
    assert rows["strategy"]["nll_nats"] == pytest.approx(nats.mean().item(), abs=1e-4)
    tokenizer = found.on["strategy"].tokenizer
    assert tokenizer is not None
    num_bytes = sum(len(text.encode()) for text in tokenizer.batch_decode(windows[:, 21:]))
    assert rows["strategy"]["bits_per_byte"] == pytest.approx(nats.sum().item() / math.log(2) / num_bytes, rel=1e-4)
    more = rows["strategy"]["nll_nats"] - rows["baseline"]["nll_nats"]
    assert rows["strategy"]["nll_delta_nats"] == pytest.approx(more) != 0
    found.measured.rows["strategy"] = dict(before)
    other = found.sources["strategy"]
    found.sources["strategy"] = replace(other, prefix=(*other.prefix, *other.prefix))  # as another tokenizer begins
    with torch.no_grad():
        asking.ask_likelihood(found)
    assert rows["strategy"].keys() - before.keys() == asked_of
    found.measured.rows["strategy"] = dict(before)
    found.on["strategy"] = replace(found.on["strategy"], weights="random")
    with torch.no_grad():
        asking.ask_likelihood(found)
    assert found.measured.rows["strategy"] == before


def bytes_are_of_the_other_network() -> None:
    """Each arm holds the keys and values of its own network's heads in float32, and a position per layer and token."""
    found = made(replace(attending(), spec=spec()))
    run = found.job.workload.runs()[-1]
    held = {}
    for name, arm in found.arms.items():
        cache = arm.cache(run)
        arm.prefill(cache, found.ids(run, name)[:, : run.prompt_tokens])
        held[name] = cache.allocated_bytes()
    numbers = {"strategy": 4 * (2 * 6 * 32 + 1), "baseline": 2 * (2 * 2 * 16 + 1)}  # layers x (2 x heads x size + 1)
    assert held == {name: 4 * 28 * count for name, count in numbers.items()}


def a_strategy_runs_on_the_other_network() -> None:
    """Its codec writes the other network's entries, the baseline's stay as they are, and rows say both."""
    found = made(replace(attending("strategy/codec=int8"), spec=spec()))
    run, full = found.job.workload.runs()[-1], attending()
    assert found.refused() is None
    assert not found.arms["strategy"].strategy.codec.is_exact
    assert found.arms["baseline"].strategy.codec.is_exact
    assert found.measured.rows["strategy"]["network"] == "tiny-mha (embedded, mha)"
    says = [(row["fidelity"], row["saving"]) for row in (describe(job, "strategy") for job in (found.job, full))]
    assert says == [("trained", "packed"), ("trained", "physical")]
    arm = found.arms["strategy"]
    cache = arm.cache(run)
    arm.prefill(cache, found.ids(run, "strategy")[:, : run.prompt_tokens])
    assert cache.allocated_bytes() < 0.35 * full.on_its_network.allocated_bytes(arm.view, run)


def both_networks_have_to_fit() -> None:
    """Memory for one of the two networks is not enough."""
    assert not _fits(12 * 2**20)
    assert _fits(20 * 2**20)


def _fits(free: int) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "available_ram_bytes", lambda: free)
        try:
            bench.check_memory(job("mamba"))
        except MemoryError:
            return False
    return True
