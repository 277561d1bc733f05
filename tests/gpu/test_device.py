"""What only a GPU can show; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import kvbench
from kvbench.api import strategy
from kvbench.cache.doors import ATTENTION
from kvbench.engines.arm import Arm, DecodeArm
from kvbench.engines.cuda_graph import CudaGraph
from kvbench.engines.eager import Eager
from kvbench.measure.clock import clock_for
from kvbench.measure.links import measure_links
from kvbench.models.load import load
from kvbench.strategies.transform.int8_linear import integer_product
from kvbench.types import RunShape
from tests.support import family
from tests.support.small import spec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
EVICTING = ["random_eviction", "sliding_window", "attention_sink", "h2o", "tova", "snapkv", "knorm"]
RUN = RunShape(prompt_lengths=(48, 48), new_tokens=24)
EAGER, GRAPH = Eager(prefill_chunk=0), CudaGraph(prefill_chunk=0)


def arm(name: str, device: str, engine: Eager = EAGER) -> DecodeArm:
    """Return a strategy at the end of a prompt."""
    loaded = load(spec(device=device, weights="random"), seed=0, attention=ATTENTION)
    state = load(spec(device="cpu"), seed=0, attention=ATTENTION).model.state_dict()
    loaded.model.load_state_dict(state)
    settings: dict[str, object] = {}
    if name != "baseline":
        settings["budget"] = {"amount": 20, "unit": "tokens", "skip_layers": []}
    if name == "snapkv":
        settings["scorer"] = {"window": 8}
    made = Arm(
        name=name,
        model=loaded.model,
        view=engine.view(loaded.view),
        strategy=strategy(name, **settings),
        engine=engine,
    )
    ids = torch.randint(5, 200, (2, 72), generator=torch.Generator().manual_seed(0))
    return DecodeArm(made, RUN, ids.to(loaded.view.device))


@pytest.mark.parametrize("name", ["baseline", *EVICTING])
def test_a_decode_step_never_waits_for_the_host(name: str) -> None:
    with torch.no_grad():
        running = arm(name, "cuda")
        running.step()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(16):
                running.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["baseline", *EVICTING])
def test_logits_are_the_cpus(name: str) -> None:
    with torch.no_grad():
        outs = []
        for device in ("cpu", "cuda"):
            running = arm(name, device)
            logits = [running.arm.step(running.cache, token) for token in running.tokens]
            outs.append(torch.stack(logits).cpu())
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", ["baseline", "quantization_8bit", *EVICTING])
def test_recorded_steps_say_what_eager_ones_do_and_never_wait(name: str) -> None:
    with torch.no_grad():
        outs = []
        for engine in (EAGER, GRAPH):
            running = arm(name, "cuda", engine)
            logits = [running.arm.step(running.cache, token) for token in running.tokens]
            outs.append(torch.stack(logits))
        assert running.cache.recorded is not None
        torch.testing.assert_close(outs[1], outs[0], rtol=0, atol=2e-3)
        running.restore()
        torch.cuda.set_sync_debug_mode("error")
        try:
            again = [running.arm.step(running.cache, token) for token in running.tokens]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.testing.assert_close(torch.stack(again), outs[1], rtol=0, atol=0)


def test_decoding_allocates_nothing_that_stays() -> None:
    with torch.no_grad():
        running = arm("h2o", "cuda")
        running.step()
        before = torch.cuda.memory_allocated()
        for _ in range(16):
            running.step()
        assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize(("rows", "width", "outputs"), [(1, 64, 48), (40, 3000, 304), (3, 33, 17)])
def test_integer_products_are_exact(rows: int, width: int, outputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = [torch.randint(-127, 128, (n, width), dtype=torch.int8, generator=generator) for n in (rows, outputs)]
    got = integer_product(*(code.cuda() for code in codes))
    assert torch.equal(got.cpu(), (codes[0].long() @ codes[1].long().t()).int())


def test_a_link_is_measured_each_way_and_both_at_once() -> None:
    device = torch.device("cuda:0")
    found = {one.name: one for one in measure_links(device, 64 * 2**20, clock_for(device), 1)}
    ways = {f"{way}{kind}" for way in ("host_to_device", "device_to_host") for kind in ("", "_pageable")}
    ways |= {"both_directions"}
    assert found.keys() == ways | {f"{way}_latency" for way in ways}
    assert all(found[way].value > 1e9 for way in ways)
    assert all(0 <= found[f"{way}_latency"].value < 1e-3 for way in ways)


def test_a_member_of_the_family_learns(tmp_path: Path) -> None:
    family.training_lowers_the_loss(tmp_path, device="cuda")


@pytest.mark.parametrize("codec", ["dense", "int8"])
def test_requests_are_served_from_pages_they_share(codec: str, tmp_path: Path) -> None:
    asked = ["strategy=scheduling_prefix", f"strategy/codec={codec}", "model.device=cuda", "workload.num_requests=8"]
    quick = ["measure.min_rounds=2", "measure.max_rounds=2", "sink.wandb.mode=disabled", f"runs={tmp_path}"]
    row = kvbench.run([*asked, *quick]).rows.set_index("arm").loc["strategy"]
    prompts = row["prefill_tokens_computed"] + row["prefill_tokens_reused"]
    assert row["status"] == "ok"
    assert row["prefill_tokens_computed"] == round(prompts / row["sharing"])
    assert row["kv_allocated_bytes"] == row["kv_predicted_bytes"]
