"""What settings of parts, and parts that do not fit together, are refused with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from kvbench.cache.codecs.moments import Moments
from kvbench.calibrated import fingerprint
from kvbench.kernels import compiling
from kvbench.kernels.packed import native
from kvbench.models.view import view_of
from kvbench.strategies.position.policies import Rank
from kvbench.strategies.selection.key_norm import KeyNorm
from kvbench.strategies.selection.recency import Recency
from kvbench.strategies.transform.crossing import FILE
from kvbench.strategies.trigger import Every
from tests.support.checks import BUDGET, PROMPT, uniform
from tests.support.drive import drive
from tests.support.generation import generate
from tests.support.measured import folder as files_of
from tests.support.measured import measured
from tests.support.models import attention, ids, model
from tests.support.strategies import composed, strategy
from tests.support.tuned import folder as bit_files
from tests.support.wrappers import output_is_unknown


def asked(name: str, *overrides: str) -> Callable[[], object]:
    """Return what composes a method with overrides and builds its cache."""
    return lambda: composed(name, *overrides).build(view_of(model("llama_gqa")), uniform())


def changed(name: str, part: str, **settings: object) -> Callable[[], object]:
    """Return what changes a part in Python, where no configuration has looked at the settings."""
    return lambda: replace(getattr(composed(name), part), **settings)


def changed_quantiser(**settings: Any) -> Callable[[], object]:
    """Return what changes a quantiser in Python."""
    return lambda: replace(composed("kivi2").codec.key_quantiser, **settings)  # type: ignore[attr-defined]


def other_blocks() -> None:
    """Take blocks that were trained for another model."""
    with TemporaryDirectory() as folder:
        said = {"weights": "of another", "blocks": "1", "width": "9"}
        save_file({"nothing": torch.zeros(1)}, Path(folder) / FILE, metadata=said)
        composed("arch_alt_10x", f"transform.weights='{folder}'").prepare(model("llama_gqa"))


def uncompiled() -> None:
    """Compile with what is no compiler."""
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        patch.setenv("KVBENCH_CACHE", folder)
        patch.setenv("CXX", "false")
        compiling.compiled(native.SOURCE, {}, native.MEND)


def other(name: str, **parts: Any) -> Callable[[], object]:
    """Return what builds the cache of a method with other parts."""
    return lambda: replace(composed(name), **parts).build(view_of(model("llama_gqa")), uniform())


def windowed(name: str, *overrides: str) -> Callable[[], object]:
    """Return what builds the cache of a model whose first layer has a sliding window."""

    def build() -> object:
        view = view_of(model("llama_gqa"))
        layers = (replace(view.layers[0], window=8), *view.layers[1:])
        return composed(name, *overrides).build(replace(view, layers=layers), uniform())

    return build


def scores(change: Callable[[dict[str, Any]], object] | None, text: str = "") -> Callable[[], object]:
    """Return what builds a method of head scores whose file was changed or holds a text instead."""

    def build() -> object:
        view = view_of(model("llama_gqa"))
        with TemporaryDirectory() as folder:
            file = Path(folder) / "scores.json"
            made = {
                "kind": "retrieval",
                "model": "other",
                "revision": "",
                "weights": "0" * 12,
                "seed": 0,
                "samples": 1,
                "tokens": 1,
                "scores": {"retrieval": [[0.5] * layer.kv_heads for layer in view.layers]},
            }
            if change is not None:
                change(made)
            file.write_text(text or json.dumps(made))
            return composed("headkv", f"budget.scores={file}").build(view, uniform())

    return build


def no_scores() -> None:
    """Ask for scores in a folder that has none."""
    with TemporaryDirectory() as folder:
        composed("headkv", f"budget.scores={folder}").build(view_of(model("llama_gqa")), uniform())


def unknown_projections() -> None:
    """Group the heads of a model of which nobody knows what makes them."""
    view = view_of(model("llama_gqa"))
    layers = tuple(replace(layer, value_projection=None) for layer in view.layers)
    composed("mqa").build(replace(view, layers=layers), uniform())


def packed_in_pieces() -> None:
    """Read a prompt in pieces, pack it, and have another layer read it."""
    made = composed("cla", "strategy/codec=int8")
    network = cast("PreTrainedModel", made.prepare(model("llama_gqa")))
    drive(network, made, ids(0, 1, PROMPT), uniform(new=0), chunks=(PROMPT - 4, 4))


def maxima(change: Callable[[dict[str, Any]], object] | None, text: str = "") -> Callable[[], object]:
    """Return what smooths a model by a file of channel maxima that was changed or holds a text instead."""

    def prepare() -> object:
        with TemporaryDirectory() as folder:
            file = Path(folder) / "maxima.json"
            (found,) = files_of("smooth").glob(f"*_{fingerprint(view_of(model('llama_gqa')))}.json")
            made = json.loads(found.read_text(encoding="utf-8"))
            if change is not None:
                change(made)
            file.write_text(text or json.dumps(made), encoding="utf-8")
            return composed("smoothquant", f"transform.maxima={file}").prepare(model("llama_gqa"))

    return prepare


def of_file(method: str, key: str, files: Callable[[], Path]) -> Callable[..., Callable[[], object]]:
    """Return what takes a change of a file that a method reads, or a text instead, and returns what builds a cache."""

    def changed_file(change: Callable[[dict[str, Any]], object] | None, text: str = "") -> Callable[[], object]:
        def build() -> object:
            view = view_of(model("llama_gqa"))
            with TemporaryDirectory() as folder:
                file = Path(folder) / "changed.json"
                (found,) = files().glob(f"*_{fingerprint(view)}.json")
                made = json.loads(found.read_text(encoding="utf-8"))
                if change is not None:
                    change(made)
                file.write_text(text or json.dumps(made), encoding="utf-8")
                return composed(method, f"{key}={file}").build(view, uniform())

        return build

    return changed_file


codebooks = of_file("kvquant3", "codec.codebooks", lambda: files_of("codebooks"))
bits = of_file("kvtuner", "codec.errors", bit_files)


def too_many_channels() -> None:
    """Ask for more channels than an index tells apart."""
    view = view_of(model("llama_gqa"))
    layers = tuple(replace(layer, kv_heads=5000) for layer in view.layers)
    composed("kvquant3").build(replace(view, layers=layers), uniform())


def keys_of_size(name: str, size: int) -> Callable[[], object]:
    """Return what asks for a model whose keys have so many channels."""
    view = view_of(model("llama_gqa"))
    layers = tuple(replace(layer, key_dim=size) for layer in view.layers)
    return lambda: composed(name).build(replace(view, layers=layers), uniform())


def no_maxima() -> None:
    """Ask for channel maxima in a folder that has none."""
    with TemporaryDirectory() as folder:
        composed("smoothquant", f"transform.maxima={folder}").build(view_of(model("llama_gqa")), uniform())


def moments(change: Callable[[Moments], Moments], *, spoilt: bool = False) -> Callable[[], object]:
    """Return what builds Palu's cache by a file of moments that was changed, or cut off."""

    def build() -> object:
        with TemporaryDirectory() as folder:
            file = Path(folder) / "some.safetensors"
            change(measured("moments", model("llama_gqa"), samples=2, tokens=20)).write(file)
            if spoilt:
                file.write_bytes(file.read_bytes()[:100])
            return composed("palu", f"codec.moments={file}").build(view_of(model("llama_gqa")), uniform())

    return build


def no_moments(name: str) -> Callable[[], object]:
    """Return what asks for moments in a folder that has none."""

    def build() -> object:
        with TemporaryDirectory() as folder:
            return composed(name, f"codec.moments={folder}").build(view_of(model("llama_gqa")), uniform())

    return build


def _shares(name: str, key: str, *, wrong: str = "1.5") -> tuple[Callable[[], object], str]:
    return asked(name, f"{key}={wrong}"), rf"strategy\.{key} must be between 0 and 1; got {wrong}"


def by_rank() -> None:
    """Put heads that keep different numbers of entries where each kept set moves along."""
    view = view_of(model("gpt2"))
    made = replace(strategy("headkv", tokens=BUDGET), scorer=Recency(), trigger=Every(period=1), position=Rank())
    made.build(view, uniform())


def unwatched() -> None:
    """Read a prompt without the hooks that SqueezeAttention needs."""
    made = strategy("squeezeattention", tokens=BUDGET)
    with attention(model("llama_gqa"), "kvbench") as network:
        network(ids(0, 1, PROMPT), past_key_values=made.build(view_of(network), uniform()), use_cache=True)


def untold() -> None:
    """Attach hooks to a model whose attention has no name that is known."""
    made = strategy("squeezeattention", tokens=BUDGET)
    with made.attach(nn.Linear(1, 1), made.build(view_of(model("llama_gqa")), uniform())):
        pass


def based_on_repetition() -> None:
    """Judge chunks by a scorer that needs passes of its own."""
    made = composed("chunkkv", "strategy/scorer@strategy.scorer.base=repetition", "selector.num_recent=0")
    drive(model("llama_gqa"), made, ids(0, 1, PROMPT), uniform(new=0))


def too_long_to_repeat() -> None:
    """Ask for a prompt behind which the model has no positions left."""
    view = view_of(model("llama_gqa"))
    composed("kvzip").build(view, uniform(view.max_positions))


def generated_at_once() -> None:
    """Let transformers generate with a cache whose prompt has to be read again."""
    cache = strategy("kvzip", tokens=BUDGET).build(view_of(model("llama_gqa")), uniform())
    generate("llama_gqa", "kvbench", ids(0, 1, PROMPT), cache)


ERRORS: Mapping[str, tuple[Callable[[], object], str]] = {
    # budgets
    "steps of a pyramid": (asked("pyramidkv", "budget.steepness=0.5"), r"steepness must be at least 1; got 0\.5"),
    "no layer ratio": (
        asked("pyramidkv", "budget.layer_ratios=[0,0]"),
        r"0 or more each, and not all 0; got \[0\.0, 0\.0\]",
    ),
    "other number of layer ratios": (
        asked("pyramidkv", "budget.layer_ratios=[1,2,3]", "selector.num_recent=1"),
        r"needs one number for each of the model's 2 layers; got 3",
    ),
    "attention to recover": (asked("fastgen", "budget.threshold=-1"), r"budget\.threshold must be at least 0; got -1"),
    "no special token": (asked("fastgen", "budget.num_special=0"), r"num_special must be at least 1; got 0"),
    "share of heavy entries": _shares("fastgen", "budget.heavy_share"),
    "other selector than the policies": (
        asked("fastgen", "selector.local_share=0.1"),
        r"cheapest_policy needs strategy/selector=policy_order with the same num_special, heavy_share and local_share",
    ),
    "policies without all votes": (
        asked("fastgen", "strategy/scorer=recency"),
        r"cheapest_policy needs strategy/scorer=mean_attention, strategy/evicted=drop and",
    ),
    "queries of a lazy layer": (
        changed("simlayerkv", "budget", queries=0),
        r"budget\.queries must be at least 1; got 0",
    ),
    "lazy layers by score": (
        other("simlayerkv", scorer=KeyNorm()),
        r"budget=lazy needs entries scored by recency.*use strategy/scorer=recent_run",
    ),
    "share of the layers that give": (
        asked("squeezeattention", "budget.share_of_least=0"),
        r"share_of_least must be above 0 and at most 1; got 0",
    ),
    "hidden states nobody noted": (unwatched, r"budget=squeeze needs hidden states.*within strategy\.attach"),
    "attention that cannot be told": (untold, r"budget=squeeze cannot tell the attention of layer 0"),
    "safeguard": _shares("adakv", "budget.safeguard"),
    "window of a cascade": (asked("cake", "budget.window=0"), r"strategy\.budget\.window must be at least 1; got 0"),
    "temperature of a cascade": (asked("cake", "budget.entropy_temperature=0"), r"entropy_temperature must be above 0"),
    "share of induction heads": _shares("razorattention", "budget.induction_share"),
    "pool of heads": (asked("headkv", "budget.beta=0.5"), r"strategy\.budget\.beta must be at least 1; got 0\.5"),
    "temperature of heads": (asked("headkv", "budget.temperature=-1"), r"temperature must be at least 0; got -1"),
    "recent tokens of a head": (asked("duoattention", "budget.recent=0"), r"budget\.recent must be at least 1; got 0"),
    "lazy layers by rank": (
        other("simlayerkv", position=Rank(), trigger=Every(period=1)),
        r"strategy/budget=lazy needs strategy/position=original: some layers keep everything",
    ),
    "lazy layers with other sinks": (
        asked("simlayerkv", "budget.num_sink=1"),
        r"budget\.num_sink must be strategy\.selector\.num_sink=\d+; got 1",
    ),
    "heads that differ by rank": (
        by_rank,
        r"different numbers of entries need strategy/position=original",
    ),
    "heads without scores": (no_scores, r"no retrieval scores in .*Run once: kvbench calibrate retrieval"),
    "scores of another kind": (
        scores(lambda made: made.update(kind="gate")),
        r"holds gate scores; retrieval scores are needed: kvbench calibrate retrieval",
    ),
    "scores of other heads": (
        scores(lambda made: made.update(scores={"retrieval": [[0.5]]})),
        r"was made for another model: 'retrieval' has KV heads \[1\] per layer, this model has \[2, 2\]",
    ),
    "scores of other weights": (scores(None), r"was made for other weights: other \(0{12}\), this model is"),
    "scores in no file": (
        asked("headkv", "budget.scores=nowhere.json"),
        r"scores=nowhere\.json cannot be read: No such",
    ),
    "scores that are none": (scores(None, text="[]"), r"holds no head scores.*Make it again with: kvbench calibrate"),
    "score above 1": (
        scores(lambda made: made.update(scores={"retrieval": [[2.0, 2.0]] * 2})),
        r"head scores 'retrieval' must be numbers between 0 and 1",
    ),
    # handlers
    "similarity of runs": (asked("kvmerger", "evicted.threshold=2"), r"threshold must be between -1 and 1; got 2"),
    "nothing that follows": (asked("cam", "evicted.num_following=0"), r"num_following must be at least 1; got 0"),
    "summary of another kind": (changed("fixed_size", "evicted", mode="max"), r"mode must be mean or sum; got 'max'"),
    "weights of a merge": (
        changed("d2o", "evicted", weights="max"),
        r"exponential, similarity, mean or pivot; got 'max'",
    ),
    "threshold of a merge": (changed("d2o", "evicted", threshold="0.5"), r"threshold must be none or mean; got"),
    "memory of a merge": (asked("d2o", "evicted.memory=1"), r"memory must be at least 0 and below 1; got 1"),
    "no mean": (asked("zeromerge", "evicted.num_entries=0"), r"num_entries must be at least 1; got 0"),
    "compensation": _shares("zeromerge", "evicted.compensation"),
    "bits of what leaves": (asked("fixed_size_offload", "evicted.bits=3"), r"must be one of \[16, 8, 4\]; got 3"),
    "no ring": (asked("fixed_size_offload", "evicted.offload_size=0"), r"offload_size must be at least 1; got 0"),
    "threshold of importance": (
        asked("fixed_size_offload", "evicted.importance_threshold=-1"),
        r"importance_threshold must be at least 0; got -1",
    ),
    "folder of a ring": (
        lambda: drive(
            model("llama_gqa"),
            strategy("fixed_size_all", "evicted.folder=/dev/null", tokens=BUDGET),
            ids(0, 1, PROMPT),
            uniform(),
        ),
        r"cannot be kept in /dev/null: .*strategy\.evicted\.folder.*mmap=false",
    ),
    "packed entries that leave for the host": (
        asked("fixed_size_offload", "strategy/codec=int8"),
        r"packs those that leave; use strategy/codec=dense and strategy\.evicted\.bits",
    ),
    "pages beside a ring": (
        asked("snapkv", "strategy/evicted=offloaded", "evicted.restore_every=0", "strategy/reader=pages"),
        r"keeps what attention does not read; use strategy/reader=all",
    ),
    "entries that moved": (
        asked("attention_sink", "strategy/evicted=offloaded"),
        r"brings entries back to where they were.*strategy/position=original",
    ),
    "return without leaving": (
        asked("fixed_size_offload", "strategy/trigger=prefill_end"),
        r"come back when others leave while decoding; use strategy/trigger=every_step",
    ),
    "return without memory": (
        asked("h2o", "strategy/evicted=offloaded"),
        r"needs a scorer that remembers how much an entry mattered; use strategy/scorer=remembered_attention",
    ),
    # triggers and selectors
    "period": (asked("h2o", "strategy/trigger=every_k", "trigger.period=0"), r"period must be at least 1; got 0"),
    "sampled share": _shares("nacl", "selector.sampled_share"),
    "truncation": (changed("fixed_size", "selector", truncation="half"), r"must be attention or hybrid; got 'half'"),
    "split": _shares("fixed_size", "selector.split"),
    "share of the policies": _shares("fastgen", "selector.heavy_share"),
    # scorers
    "share of proxies": (asked("nacl", "scorer.share=0"), r"scorer\.share must be above 0 and at most 1; got 0"),
    "history": (asked("scissorhands", "scorer.history=0"), r"history must be at least 1 step; got 0"),
    "queries of a recent run": (asked("simlayerkv", "scorer.queries=0"), r"scorer\.queries must be at least 1; got 0"),
    "noise": (asked("keyformer", "scorer.noise=-1"), r"noise must be 0 or more; got -1"),
    "temperature of noise": (asked("keyformer", "scorer.tau_end=0"), r"must be above 0; got 1\.0 and 0"),
    "steps of a temperature": (asked("keyformer", "scorer.tau_steps=0"), r"tau_steps must be at least 1; got 0"),
    "weight of variance": (asked("cake", "scorer.variance_weight=-1"), r"variance_weight must be 0 or more; got -1"),
    "calls": (changed("fixed_size", "scorer", accumulate="mean"), r"accumulate must be none, ema or sum; got 'mean'"),
    "calls remembered": (
        asked("fixed_size", "scorer.importance_window=-1"),
        r"importance_window must be a number of calls, or 0 for none; got -1",
    ),
    "decay of calls": (asked("fixed_size", "scorer.decay=1"), r"decay must be at least 0 and below 1; got 1"),
    "certain": _shares("defensivekv", "scorer.certain"),
    "defensive without outputs": (partial(output_is_unknown, "defensivekv"), r"scorer=defensive needs the output proj"),
    "repetition of nothing": (
        asked("kvzip", "scorer.chunk=0"),
        r"chunk >= 1, lead >= 0 and num_sink >= 0; got",
    ),
    "repetition behind windows": (windowed("kvzip"), r"layers with a sliding window have let go of it by then"),
    "repetition beyond the model": (
        too_long_to_repeat,
        r"up to position \d+, and the model has \d+; lower strat",
    ),
    "repetition within another scorer": (based_on_repetition, r"passes of its own and cannot be another scorer's base"),
    "repetition without passes": (
        generated_at_once,
        r"has the prompt read again, which only kvbench's own loop does: use engine=eager",
    ),
    "scope of heads": (changed("adakv", "budget", scope="row"), r"scope must be layer or model; got 'row'"),
    # readers
    "pages that lose entries": (
        asked("h2o", "strategy/reader=pages"),
        r"reader=pages needs entries to stay where they are.*trigger=prefill_end",
    ),
    "pages of summaries": (
        asked("snapkv", "strategy/reader=pages", "strategy/evicted=summary"),
        r"reader=pages chooses by keys and knows nothing of entries that stand for many tokens",
    ),
    "pages at equal bytes": (
        asked("snapkv", "strategy/reader=pages", "budget.unit=bytes", "budget.amount=4000"),
        r"adds bytes that strategy\.budget\.unit=bytes does not count",
    ),
    "tiers that nobody reads": (
        asked("h2o", "strategy/evicted=tiers"),
        r"evicted=tiers keeps what .* with strategy/reader=pages",
    ),
    "tiers of packed entries": (
        asked("tiered", "strategy/codec=int8"),
        r"as the model made them; use strategy/codec=dense",
    ),
    "tiers of entries that move": (
        asked("tiered", "strategy/position=rank", "trigger.period=1"),
        r"at their own positions; use .*position=original",
    ),
    "tiers within tiers": (
        asked("tiered", "strategy/placement=host"),
        r"evicted=tiers says itself.*use strategy/placement=device",
    ),
    "tiers at equal bytes": (
        asked("tiered", "budget.unit=bytes", "budget.amount=40000"),
        r"adds bytes that strategy\.budget\.unit=bytes does not count",
    ),
    "blocks of what has not left": (
        asked("quest", "strategy/reader=blocks"),
        r"ways of reading what has left; use .*evicted=tiers",
    ),
    "distances of what has not left": (
        asked("h2o", "strategy/position=clamped"),
        r"ways of reading what has left; use .*evicted=tiers",
    ),
    "clamped keys of low rank": (
        asked("shadowkv", "strategy/position=clamped"),
        r"evicted\.rank makes keys again at their own",
    ),
    "more keys than a block has": (
        asked("infllm", "reader.representatives=40"),
        r"representatives must be between 1 and .*size=3",
    ),
    "fewer than no first entries": (
        asked("tiered", "evicted.first=-1"),
        r"evicted\.first must be 0 or more entries; got -1",
    ),
    "too few pages at hand": (asked("tiered", "evicted.at_hand=0.5"), r"evicted\.at_hand must be at least 1.*got 0\.5"),
    "more than all pages": (asked("tiered", "evicted.host=2"), r"evicted\.host must be a share between 0 and 1; got 2"),
    "an unknown policy": (changed("tiered", "evicted", policy="mru"), r"policy must be lru, fifo or lfu; got 'mru'"),
    "coordinates below none": (changed("tiered", "evicted", rank=-1), r"evicted\.rank must be 0, for .*; got -1"),
    "coordinates of what leaves later": (
        asked("tiered", "evicted.rank=4"),
        r"evicted\.rank cuts the keys of a prompt.*trigger=prefill_end with strategy/budget=uniform, or .*rank=0",
    ),
    "coordinates of heads that differ": (
        asked("duoattention", "strategy/evicted=shadow", "strategy/reader=landmarks"),
        r"evicted\.rank cuts the keys of a prompt, all heads together",
    ),
    "tiers of a divided budget": (
        asked("tiered", "strategy/budget=adaptive"),
        r"into whole pages, whose bytes nobody knows.*use strategy/budget=uniform or pyramid",
    ),
    "tiers of layers that read everything": (
        asked("tiered", "reader.skip_layers=[1]"),
        r"layer 1 reads everything.*take it out of strategy\.reader\.skip_layers",
    ),
    "landmarks of what is held": (
        asked("shadowkv", "strategy/evicted=drop"),
        r"ways of reading what has left; use .*evicted=tiers or shadow",
    ),
    "outliers of no chunks": (asked("shadowkv", "scorer.size=0"), r"strategy\.scorer\.size must be at least 1; got 0"),
    "chunks without tokens": (asked("shadowkv", "selector.size=0"), r"selector\.size must be at least 1.*got size=0"),
    "sinks that cut a chunk": (
        asked("shadowkv", "selector.num_sink=4"),
        r"num_sink a multiple of it; got size=8, num_sink=4",
    ),
    "part of the pages": (asked("quest", "reader.amount=2"), r"the fraction read, above 0 and at most 1; got 2"),
    "tokens of the pages": (
        asked("quest", "reader.amount=0.5", "reader.unit=tokens"),
        r"unit=tokens must be a whole number of at least 1; got 0\.5",
    ),
    "unit of the pages": (
        changed("quest", "reader", unit="bytes"),
        r"reader\.unit must be ratio or tokens; got 'bytes'",
    ),
    "pages of nothing": (asked("quest", "reader.size=0"), r"must be at least 1; got size=0, least_pages=3"),
    "pages of layers that are not there": (
        asked("quest", "reader.skip_layers=[5]"),
        r"reader\.skip_layers=\[5\]: the model has layers 0 to 1",
    ),
    # placements
    "no machine": (
        asked("kvpr", "placement.recompute=auto", "placement.hardware=/none"),
        r"recompute=auto: no machine was measured: there is no /none\. Run kvbench hardware.*link=modelled for a link",
    ),
    "link": (asked("offload", "placement.link_gb_per_s=0"), r"link_gb_per_s must be above 0 and link_latency_us at le"),
    "link that nothing crosses": (
        asked("h2o", "placement.link=modelled"),
        r"here everything stays on the device; use strategy/placement=host, strategy/evicted=tiers, or .*link=real",
    ),
    "shares elsewhere": (
        asked("flexgen", "placement.host=0.8", "placement.disk=0.4"),
        r"above 0 and at most 1; got host",
    ),
    "what is divided": (
        changed("flexgen", "placement", axis="heads"),
        r"placement\.axis must be sequence or batch; got 'heads'",
    ),
    "nothing to fit to": (
        asked("flexgen", "placement.host=fit"),
        r"placement\.memory_gib, which goes with it alone; got host=fit, memory_gib=0\.0\. Set both, or a share",
    ),
    "memory for nothing": (
        asked("flexgen", "placement.memory_gib=16"),
        r"which goes with it alone; got host=0\.5, memory_gib=16\.0\. Set both, or a share with memory_gib=0",
    ),
    "memory below the weights": (
        asked("flexgen", "placement.host=fit", "placement.memory_gib=0.0001"),
        r"memory_gib=0\.0001 has no room for 0\.000\d+ GiB: weights \(0\.000\d+\), .*memory_gib to at least 0\.000\d+",
    ),
    "who attends": (
        changed("flexgen", "placement", attend="disk"),
        r"placement\.attend must be device or host; got 'disk'",
    ),
    "attended on disk": (
        asked("disk", "placement.attend=host"),
        r"what is on disk, or made again, is not there; use strategy\.placement\.disk=0 and",
    ),
    "attended and made again": (
        asked("kvpr", "placement.attend=host"),
        r"or made again, is not there; .*strategy\.placement\.recompute=0, or strategy\.placement\.attend=device",
    ),
    "packed for the host": (
        asked("flexgen", "placement.attend=host", "strategy/codec=quarot"),
        r"keeps some of it for both; use strategy/codec=dense, int8 or kivi4, or strategy\.placement\.attend=device",
    ),
    "packed at different times": (
        asked("flexgen", "placement.attend=host", "strategy/codec=kivi4"),
        r"packs them at different times; use strategy\.placement\.axis=batch, .*such as int8, or .*attend=device",
    ),
    "pages of the host": (
        asked("quest", "reader.skip_layers=[]", "strategy/placement=split", "placement.attend=host"),
        r"every entry for one token; use strategy/reader=all with strategy/evicted=drop",
    ),
    "layers ahead": (
        asked("offload", "placement.prefetch=-1"),
        r"placement\.prefetch must be 0 or more layers; got -1",
    ),
    "part made again": (asked("kvpr", "placement.recompute=1.5"), r"a number of tokens, a fraction.*or auto; got 1\.5"),
    "made again of rows": (
        asked("kvpr", "placement.axis=batch"),
        r"takes the place of the oldest entries that lie else",
    ),
    "stages": (asked("kvpr", "placement.stages=0"), r"placement\.stages must be at least 1; got 0"),
    "no folder": (asked("disk", "placement.folder=/dev/null"), r"cannot be kept in /dev/null: .*placement\.folder, or"),
    "overwritten elsewhere": (
        asked("h2o", "strategy/placement=host"),
        r"what lies elsewhere is written once, and strat",
    ),
    "pairs elsewhere": (
        asked("minicache", "strategy/placement=host"),
        r"paired keeps its prompt where two layers read",
    ),
    "codec elsewhere": (
        asked("streaming_kvquant", "strategy/placement=host"),
        r"change while they are held; use another",
    ),
    "packed and made again": (
        asked("kivi4", "strategy/placement=recompute"),
        r"all first tokens, as the model makes them",
    ),
    "normed and made again": (
        lambda: composed("kvpr").build(view_of(model("qwen3")), uniform()),
        r"with nothing after them but rotation, which this model has not; set strategy\.placement\.recompute=0",
    ),
    # layouts
    "pairs that lose entries": (
        asked("h2o", "strategy/layout=paired"),
        r"layout=paired needs both layers of a pair to hold and to read the whole prompt; use strategy/budget=all",
    ),
    "packed pairs": (
        asked("minicache", "strategy/codec=int8"),
        r"work on entries as the model made them; use strategy/codec=dense",
    ),
    "pairs of windows": (
        windowed("minicache", "layout.start=0"),
        r"merges layers that see the whole prompt, and layer 0 sees 8 tokens; move strategy\.layout\.start",
    ),
    "no pair": (
        asked("minicache", "layout.start=1", "layout.start_unit=layers"),
        r"no two of 2 layers are left to merge from strategy\.layout\.start on; lower it",
    ),
    "depth of pairs": (asked("minicache", "layout.start=1.5"), r"a fraction of the depth, at least 0 and below 1; got"),
    "layer of pairs": (
        asked("minicache", "layout.start=0.5", "layout.start_unit=layers"),
        r"start_unit=layers must be a whole number of at least 0; got 0\.5",
    ),
    "unit of pairs": (
        changed("minicache", "layout", start_unit="tokens"),
        r"start_unit must be ratio or layers; got 'tok",
    ),
    "blend": (asked("minicache", "layout.blend=2"), r"blend and retained_share between 0 and 1.*got blend=2"),
    "granularity": (
        changed("minicache", "layout", granularity="layer"),
        r"granularity must be head or token; got 'layer'",
    ),
    "empty pages": (asked("paged", "layout.page_tokens=0"), r"strategy\.layout\.page_tokens must be at least 1; got 0"),
    "kernel of pages": (
        changed("paged", "layout", kernel="fast"),
        r"strategy\.layout\.kernel must be auto, native, triton, reference or flex; got 'fast'",
    ),
    "weights of a kernel that says none": (
        asked("h2o", "strategy/layout=paged", "layout.kernel=flex"),
        r"kernel=flex says outputs alone, and here a step needs to know .*; use strategy\.layout\.kernel=auto",
    ),
    "codes by a kernel that reads numbers": (
        lambda: composed("paged", "strategy/codec=int8", "layout.kernel=flex").build(
            view_of(model("llama_gqa")), uniform()
        ),
        r"kernel=flex reads keys and values as the model made them; use strategy/codec=dense, or strategy\.layout\.k",
    ),
    "a kernel without float64": (
        lambda: composed("paged", "layout.kernel=flex").build(view_of(model("llama_gqa")), uniform()),
        r"FlexAttention computes in float32 on a CPU, and the model in float64; set strategy\.layout\.kernel=auto",
    ),
    "kernel that pages lack": (
        lambda: composed("paged", "layout.kernel=native").build(view_of(model("llama_gqa")), uniform()),
        r"computes in float32, and the model in float64; set strategy\.layout\.kernel=auto or reference",
    ),
    "groups in pages": (
        lambda: composed("paged", "strategy/codec=kivi2").build(view_of(model("llama_gqa")), uniform()),
        r"layout=paged needs a strategy/codec that writes each entry alone; use strategy/codec=dense, int8 or fp8",
    ),
    "pages of pages": (
        asked("quest", "strategy/layout=paged"),
        r"attention alone reads slots that lie in pages; use strategy/reader=all, or strategy/layout=separate",
    ),
    "merging in pages": (
        asked("cam", "strategy/layout=paged"),
        r"attention alone reads slots that lie in pages; use strategy/trigger=prefill_end, or",
    ),
    # transforms
    "how much moves into weights": (
        asked("smoothquant", "transform.alpha=1.5"),
        r"strategy\.transform\.alpha must be between 0 and 1; got 1\.5",
    ),
    "norms that cannot be told": (
        lambda: composed("smoothquant").build(view_of(model("gemma3")), uniform()),
        r"cannot tell which norms of this model only linear layers read; use strategy=quantization_8bit",
    ),
    "no layer": (asked("cla", "transform.factor=0"), r"factor must be at least 1; got 0"),
    "layers that cannot share": (
        lambda: composed("cla").prepare(model("mistral")),
        r"transform=cla needs rotary positions and layers without a window",
    ),
    "layers of another kind": (
        lambda: composed("cla").prepare(model("phi3")),
        r"transform=cla needs attention of Llama's kind, which Phi3ForCausalLM has not",
    ),
    "nothing is left": (
        asked("mla", "transform.latent_share=0"),
        r"rotary_share must be between 0 and 1, and latent_share above 0 and at most 1; got 0\.25 and 0",
    ),
    "keys that are normed": (
        lambda: composed("mla").prepare(model("qwen3")),
        r"transform=mla needs to know what makes keys that nothing follows but rotation",
    ),
    "latents whose values are written otherwise": (
        lambda: composed("kivi2").build(view_of(composed("mla").prepare(model("llama_gqa"))), uniform()),
        r"a value of this model is its key and all heads share it; use strategy/codec=dense, int8 or fp8",
    ),
    "latents elsewhere": (
        lambda: composed("offload").build(view_of(composed("mla").prepare(model("llama_gqa"))), uniform()),
        r"a value of this model is its key and all heads share it; use strategy/placement=device",
    ),
    "packed where nothing is kept": (
        lambda: composed("no_cache", "strategy/codec=int8").build(
            view_of(composed("no_cache").prepare(model("llama_gqa"))), uniform()
        ),
        r"no entries are kept between steps; use strategy/codec=dense$",
    ),
    "pages where nothing is kept": (
        lambda: composed("no_cache", "strategy/layout=paged").build(
            view_of(composed("no_cache").prepare(model("llama_gqa"))), uniform()
        ),
        r"no entries are kept between steps; use strategy/layout=separate$",
    ),
    "a forgotten prompt, read again": (
        lambda: composed("no_cache").prepare(composed("arch_alt_10x").prepare(model("llama_gqa"))),
        r"forgets its prompt, and strategy/transform=reread has it read again",
    ),
    "a prompt that grows": (
        asked("arch_alt_10x", "transform.compression=0.5"),
        r"compression must be at least 1; got 0",
    ),
    "another way to compress": (
        changed("arch_alt_10x", "transform", mode="both"),
        r"transform\.mode must be auto, kv or hidden; got 'both'",
    ),
    "windows that forget": (
        lambda: composed("arch_alt_10x").prepare(model("mistral")),
        r"transform=xc needs layers that keep keys and values of their own and see everything",
    ),
    "blocks that are not there": (
        asked("arch_alt_10x", "transform.weights=nowhere"),
        r"transform\.weights=nowhere holds no blocks \(.*\)\. Make them with: kvbench train family=xc10",
    ),
    "blocks of another model": (
        other_blocks,
        r"holds blocks with weights=of another, width=9, and here weights=\w+, width=6 are needed\. .* kvbench train",
    ),
    "a context of which entries leave": (
        lambda: composed("h2o").build(view_of(composed("arch_alt_10x").prepare(model("llama_gqa"))), uniform()),
        r"of a prompt this model keeps what blocks read, whole and in every step; use strategy/budget=all",
    ),
    "a context that nobody asks": (
        lambda: composed("think").build(view_of(composed("arch_alt_10x").prepare(model("llama_gqa"))), uniform()),
        r"of a prompt this model keeps what blocks read.*; use strategy/codec=dense, int8 or kivi4",
    ),
    "no token": (asked("yoco", "transform.window=0"), r"transform\.window must be at least 1; got 0"),
    "windows of its own": (
        lambda: composed("yoco").prepare(model("mistral")),
        r"transform=yoco needs rotary positions and layers without a window",
    ),
    "attention of another kind": (
        lambda: composed("yoco").prepare(model("phi3")),
        r"transform=yoco needs attention of Llama's kind, which Phi3ForCausalLM has not",
    ),
    "layers that share and evict": (
        lambda: composed("h2o").build(view_of(composed("cla").prepare(model("llama_gqa"))), uniform()),
        r"layers of this model share keys and values, which one of them keeps; use strategy/budget=all",
    ),
    "packed in pieces": (packed_in_pieces, r"layers that share keys and values read a prompt at once.*prefill_chunk=0"),
    "no group": (asked("gqa", "transform.num_groups=0"), r"num_groups must be at least 1; got 0"),
    "another alignment": (changed("gqa", "transform", align="svd"), r"align must be none or procrustes; got 'svd'"),
    "groups that no heads fill": (
        lambda: composed("gqa", "transform.num_groups=4").prepare(model("llama_gqa")),
        r"num_groups=4 does not divide the 2 KV heads of this model; set it to 1 or 2",
    ),
    "aligned keys that are normed": (
        lambda: composed("gqa", "transform.num_groups=1", "transform.align=procrustes").prepare(model("qwen3")),
        r"align=procrustes needs keys that nothing follows but rotation.*set it to none",
    ),
    "heads that cannot be told": (
        unknown_projections,
        r"transform=gqa cannot tell what makes the keys and values",
    ),
    "measured on other heads": (
        asked("gqa", "strategy/codec=kvquant4"),
        r"this strategy/codec reads what was measured on the model's own heads.*or strategy/transform=none",
    ),
    "channels without maxima": (no_maxima, r"no maxima in .*Run once: kvbench calibrate smooth"),
    "maxima of other weights": (
        maxima(lambda made: made.update(weights="0" * 12)),
        r"was made for other weights: small \(0{12}\), this model is .*Run: kvbench calibrate smooth",
    ),
    "maxima of other channels": (
        maxima(lambda made: made["maxima"].pop()),
        r"has maxima for 3 norms of widths \[32\], this model has 4 of \[32\]\. Run: kvbench calibrate smooth",
    ),
    "maxima in no file": (
        asked("smoothquant", "transform.maxima=nowhere.json"),
        r"transform\.maxima=nowhere\.json cannot be read: No such",
    ),
    "maxima that are none": (maxima(None, text="[]"), r"holds no channel maxima.*again with: kvbench calibrate smooth"),
    "negative maxima": (
        maxima(lambda made: made["maxima"][0].append(-1)),
        r"holds no channel maxima \(channel maxima must be numbers of at least 0",
    ),
    # codecs
    "overwriting packed tokens": (
        asked("tova", "strategy/codec=kivi2"),
        r"trigger=every_step overwrites single entries.*strategy/codec whose residual is 0, such as int8",
    ),
    "merging packed entries": (
        asked("d2o", "strategy/codec=int8"),
        r"entries that are packed never change.*use strategy/codec=dense, or strategy/trigger=prefill_end",
    ),
    "packing nothing in pieces": (
        asked("baseline", "strategy/trigger=every_chunk"),
        r"every_chunk packs each piece.*; use strategy/codec=int8, int4, .*, or strategy/trigger=prefill_end",
    ),
    "packing in pieces what leaves": (
        asked("snapkv", "strategy/codec=int8", "strategy/trigger=every_chunk"),
        r"every_chunk packs each piece.*where all of them stay; use strategy/budget=all, or strategy/trigger",
    ),
    "packing in pieces what is written whole": (
        asked("gear", "strategy/trigger=every_chunk"),
        r"every_chunk packs each piece.*; use strategy/codec=int8",
    ),
    "pieces that another layer reads": (
        lambda: composed("cla", "strategy/codec=int8", "strategy/trigger=every_chunk").build(
            view_of(composed("cla").prepare(model("llama_gqa"))), uniform()
        ),
        r"layers of this model share keys and values.*; use strategy/trigger=prefill_end",
    ),
    "bits": (
        asked("kivi2", "codec.key_quantiser.bits=5"),
        r"bits with levels=integers must be one of \[2, 3, 4, 8\]; got 5",
    ),
    "axis": (
        changed_quantiser(along="heads"),
        r"along must be channels or tokens; got 'heads'",
    ),
    "group of one token": (
        asked("kivi2", "codec.key_quantiser.group=1"),
        r"group with along=tokens must be at least 2; got 1",
    ),
    "levels": (changed_quantiser(levels="steps"), r"levels must be integers, e4m3, float16, normal; got 'steps'"),
    "short floats": (
        asked("fp8", "codec.key_quantiser.bits=4"),
        r"bits with levels=e4m3 must be one of \[8\]; got 4",
    ),
    "floats with a least number": (
        asked("fp8", "codec.key_quantiser.symmetric=false"),
        r"levels=e4m3 needs strategy\.codec\.\*\.symmetric=true and strategy\.codec\.\*\.along=channels",
    ),
    "scales": (changed_quantiser(scales="bytes"), r"scales must be float16 or e4m3; got 'bytes'"),
    "short scales of floats": (
        asked("fp8", "codec.key_quantiser.scales=e4m3"),
        r"scales=e4m3 needs strategy\.codec\.\*\.levels=integers; got e4m3",
    ),
    "normal numbers in groups": (
        asked("turboquant4", "codec.latent.key_quantiser.group=32"),
        r"levels=normal needs strategy\.codec\.\*\.group=0; got 32",
    ),
    "residual": (asked("kivi2", "codec.residual=-1"), r"codec\.residual must be 0 or more; got -1"),
    "residual of part of a group": (
        asked("kivi2", "codec.residual=100"),
        r"codec\.residual must be a multiple of the 32 tokens that share a scale.*got 100",
    ),
    "kernel": (
        changed("kivi2", "codec", kernel="fast"),
        r"kernel must be auto, native, triton or reference; got 'fast'",
    ),
    "a compiler that fails": (uncompiled, r"did not compile; set strategy\.codec\.kernel=reference, or CXX to another"),
    "clipping beyond the largest": (
        asked("quarot", "codec.latent.key_quantiser.clip=1.5"),
        r"clip must be above 0 and at most 1, and below 1 needs strategy\.codec\.\*\.symmetric=false; got 1\.5",
    ),
    "clipping both ways": (
        asked("quarot", "codec.latent.value_quantiser.symmetric=true"),
        r"clip must be above 0.*needs strategy\.codec\.\*\.symmetric=false; got 0\.95",
    ),
    "heads of a group": (asked("palu", "codec.heads=5"), r"codec\.heads must be from 1 to 4; got 5"),
    "heads that are turned together": (asked("rotatekv", "codec.heads=0"), r"codec\.heads must be from 1 to 4; got 0"),
    "exact tokens": (
        asked("quarot", "codec.window=-1"),
        r"codec\.num_sink and strategy\.codec\.window must be 0 or more; got 0 and -1",
    ),
    "overwriting what leaves a window": (
        asked("tova", "strategy/codec=quarot", "codec.window=8"),
        r"trigger=every_step overwrites single entries",
    ),
    "no directions kept": (asked("palu", "codec.kept=0"), r"codec\.kept must be above 0 and at most 1; got 0"),
    "no shared directions kept": (
        asked("eigen_attention", "codec.kept=1.1"),
        r"codec\.kept must be above 0 and at most 1; got 1\.1",
    ),
    "no channels kept": (asked("think", "codec.kept=0"), r"codec\.kept must be above 0 and at most 1; got 0"),
    "no whole keys": (
        asked("think", "codec.window=0"),
        r"codec\.window and strategy\.codec\.num_queries must be at least 1; got 0 and 32",
    ),
    "how directions are shared": (
        changed("palu", "codec", ranks="even"),
        r"codec\.ranks must be fisher or uniform; got 'even'",
    ),
    "coordinates of coordinates": (
        asked("palu", "strategy/codec@strategy.codec.latent=quarot"),
        r"codec\.latent must write each token alone, along directions of no other codec",
    ),
    "how much of keys is scaled": (
        asked("qoq_kv4", "codec.alpha=2"),
        r"codec\.alpha must be between 0 and 1; got 2",
    ),
    "no moments": (no_moments("palu"), r"have no moments in .*Run once: kvbench calibrate moments"),
    "no moments of queries": (
        no_moments("eigen_attention"),
        r"have no moments in .*Run once: kvbench calibrate moments",
    ),
    "no moments for scales": (no_moments("qoq_kv4"), r"have no moments in .*Run once: kvbench calibrate moments"),
    "no moments for an order": (no_moments("skvq"), r"have no moments in .*Run once: kvbench calibrate moments"),
    "moments of other weights": (
        moments(lambda made: replace(made, weights="0" * 12)),
        r"was made for other weights: small \(0{12}\), this model is .*Run: kvbench calibrate moments",
    ),
    "moments of other layers": (
        moments(lambda made: replace(made, keys=made.keys[:1], values=made.values[:1], largest=made.largest[:1])),
        r"has moments of 1 layers with heads of a group, groups, and .*this model has 2 with \[\(2, 1, 16, 16\)",
    ),
    "moments in no file": (
        asked("palu", "codec.moments=nowhere.safetensors"),
        r"codec\.moments=nowhere\.safetensors cannot be read: No such.*calibrate moments .* --out nowhere",
    ),
    "moments that are none": (
        moments(lambda made: made, spoilt=True),
        r"holds no moments \(.*again with: kvbench calibrate moments",
    ),
    "moments that are no numbers": (
        lambda: replace(
            measured("moments", model("llama_gqa"), samples=1, tokens=4), largest=[torch.tensor([torch.nan])]
        ),
        r"moments must be finite numbers",
    ),
    "directions": (
        asked("lorc", "codec.least=0"),
        r"codec\.least must be above 0, at most strategy\.codec\.most.*got 0",
    ),
    "more than all directions": (asked("lorc", "codec.most=2"), r"and that at most 1; got 0\.25 and 2"),
    "coordinates in groups": (
        asked("lorc", "strategy/codec@strategy.codec.latent=kivi2"),
        r"codec\.latent must write each token alone.*use float16, int8, int4 or dense",
    ),
    "heads that go their own way": (
        asked("snapkv", "strategy/codec=lorc"),
        r"writes the heads of a token together.*use a strategy/scorer and a strategy/budget that treat them alike",
    ),
    "keys that are no projection": (
        lambda: composed("lorc").build(view_of(model("qwen3")), uniform()),
        r"a projection of hidden states, and those of layer 0 are not, or it was not found; use another",
    ),
    "chunks": (
        asked("streaming_kvquant", "codec.chunk=1"),
        r"codec\.chunk must be at least 2, and strategy\.codec\.num_sink 0 or more; got 1 and 8",
    ),
    "decay": (
        asked("streaming_kvquant", "codec.decay=1"),
        r"decay must be from 0 to below 1, strategy\.codec\.outlier_above and.*got 1\.0, 6\.0 and 5\.0",
    ),
    "bits of a stream": (
        asked("streaming_kvquant", "codec.value_bits_high=7"),
        r"codec\.value_bits_high must be one of \[2, 3, 4, 8\]; got 7",
    ),
    "groups of values": (
        asked("streaming_kvquant", "codec.value_groups=0"),
        r"value_groups must be -1 \(each channel alone\) or at least 1; got 0",
    ),
    "groups that do not divide": (
        asked("streaming_kvquant", "codec.value_groups=3"),
        r"codec\.value_groups=3 does not divide 8 channels of a value",
    ),
    "scale of a stream": (
        changed("streaming_kvquant", "codec", scale="mean"),
        r"codec\.scale must be max or ema; got 'mean'",
    ),
    "kernel of a stream": (
        changed("streaming_kvquant", "codec", kernel="fast"),
        r"kernel must be auto, native, triton or reference; got 'fast'",
    ),
    "bits of a table": (asked("kvquant3", "codec.bits=8"), r"codec\.bits must be one of \[2, 3, 4\]; got 8"),
    "share of outliers": (
        asked("kvquant3", "codec.outliers=0.6"),
        r"codec\.outliers must be between 0 and 0\.5, and strategy\.codec\.num_sink 0 or more; got 0\.6 and 1",
    ),
    "channels of many bits": (
        too_many_channels,
        r"keeps the channel of an outlier in 16 bits, and a token of this model has 40000 numbers; use strategy/codec=",
    ),
    "a token that is corrected alone": (
        asked("gear", "codec.key_quantiser.along=channels", "codec.residual=1"),
        r"codec\.residual must be at least 2 with strategy/codec=gear, as tokens are corrected together; got 1",
    ),
    "directions below 0": (
        asked("gear", "codec.block_rank=-1"),
        r"strategy\.codec\.rank and strategy\.codec\.block_rank 0 or more; got 0\.02, 4 and -1",
    ),
    "outliers of many channels": (
        keys_of_size("gear", 20_000),
        r"codec=gear keeps the channel of an outlier in 16 bits, and a token of this model has 40000 numbers; use ",
    ),
    "heads that fill other slots": (
        asked("h2o", "strategy/codec=kvquant3"),
        r"writes all heads of a slot at once.*use strategy/trigger=prefill_end with strategy/budget=uniform",
    ),
    "no codebooks": (
        asked("kvquant3", "codec.codebooks=/"),
        r"the keys and values of this model have no codebooks in /\. Run once: kvbench calibrate codebooks",
    ),
    "codebooks of other channels": (
        codebooks(lambda made: made.update(lower=[[0.0]], upper=[[1.0]])),
        r"has codebooks for 1 layers with \[1\] channels of keys, this model has 2 with \[16\]\. Run: kvbench calib",
    ),
    "codebooks of other weights": (
        codebooks(lambda made: made.update(weights="0" * 12)),
        r"was made for other weights: small \(0{12}\), this model is .*Run: kvbench calibrate codebooks",
    ),
    "limits the wrong way round": (
        codebooks(lambda made: made.update(lower=made["upper"], upper=made["lower"])),
        r"holds no codebooks \(codebooks need lower numbers that are at most the upper ones",
    ),
    "tables of other bits": (
        codebooks(lambda made: made["keys"].update({"3": made["keys"]["2"]})),
        r"holds no codebooks \(codebooks need 2\^bits numbers in each table, in rising order",
    ),
    "codebooks that are none": (codebooks(None, text="[]"), r"holds no codebooks.*again with: kvbench calibrate codeb"),
    "mean of bits": (asked("kvtuner", "codec.bits=1.5"), r"codec\.bits must be between 2 and 8; got 1\.5"),
    "bits of floating point numbers": (
        asked("kvtuner", "strategy/codec@strategy.codec.like=fp8"),
        r"codec@strategy\.codec\.like must round to integers; use kivi4, kivi2, int4 or int8",
    ),
    "no errors by bits": (
        asked("kvtuner", "codec.errors=/"),
        r"the layers of this model have no errors by bits in /\. Run once: kvbench calibrate bits",
    ),
    "errors of other layers": (
        bits(lambda made: made.update(errors={side: rows[:1] for side, rows in made["errors"].items()})),
        r"has errors for \[1\] layers, this model has 2\. Run: kvbench calibrate bits",
    ),
    "errors below 0": (
        bits(lambda made: made["errors"]["values"][0].__setitem__(0, -1.0)),
        r"holds no bit errors \(bit errors must be 3 numbers of at least 0 for each layer and side",
    ),
    "triton in float64": (
        asked("kivi2", "codec.kernel=triton"),
        r"triton kernel .*the model .*; set strategy\.codec\.kernel=auto or reference",
    ),
    "group of one key": (asked("polarquant", "codec.group=1"), r"codec\.group must be at least 2 tokens; got 1"),
    "residual of part of a group of keys": (
        asked("polarquant", "codec.group=96"),
        r"codec\.residual must be a multiple of the 96 tokens that share a scale \(strategy\.codec\.\*group\).*got 128",
    ),
    "bits of a pair": (
        asked("polarquant", "codec.angle_bits=3"),
        r"radius_bits and strategy\.codec\.angle_bits must be.*together one of \[2, 3, 4, 8\]; got 4 and 3",
    ),
    "channels without a partner": (
        keys_of_size("polarquant", 7),
        r"strategy/codec=polarquant pairs channels, and keys of this model have 7; use kivi4",
    ),
    "projections": (
        asked("qjl", "codec.bits=0"),
        r"codec\.num_large must be at least 1, and strategy\.codec\.first_layers 0 or more; got 0, 4, 8 and 15",
    ),
    "channels that are all large": (
        asked("qjl"),
        r"needs more channels of a key than strategy\.codec\.num_large=8, and 256 at most; this model has 8",
    ),
    "native in float64": (
        asked("kivi2", "codec.kernel=native"),
        r"computes in float32, and the model in float64; set strategy\.codec\.kernel=auto or reference",
    ),
    "a matched network of a transformer": (
        asked("non_transformer_mamba"),
        r"cannot be made of this model: kvbench run loads the one that model\.matched\.mamba names; .*choose that",
    ),
}
