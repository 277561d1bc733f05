"""Oracles of head scores: what `kvbench calibrate` measures, and what becomes of its files."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import Tensor

from kvbench.calibrated import fingerprint
from kvbench.calibration import watching
from kvbench.calibration.measures import GATE_POSITIONS, area, measure, paid
from kvbench.calibration.samples import Marked, needles, repetitions
from kvbench.models.load import Loaded
from kvbench.models.view import view_of
from kvbench.types import LayerShape
from kvbench.workloads.recall import RecallTasks
from kvbench.workloads.source import TokenSource
from tests.support.checks import assert_close, uniform
from tests.support.head_scores import folder, write
from tests.support.models import VOCABULARY, attention, ids, inverse_frequency, model
from tests.support.parts import rand
from tests.support.strategies import strategy

TASKS = RecallTasks(
    prefix=(1,),
    filler=tuple(range(100, 400)),
    keys=tuple(range(400, 440)),
    values=tuple(range(440, 480)),
    pair_mark=(2, 3),
    question_mark=(2, 4),
    passkey_lead=(5, 6),
    passkey_tail=(7,),
    digits=tuple((10 + digit,) for digit in range(10)),
)


def source(tasks: RecallTasks | None = None, seed: int = 0) -> TokenSource:
    """Return random ids, and tasks where there are some."""
    return TokenSource(prefix=(), text=(), vocabulary=VOCABULARY, seed=seed, name="random ids", tasks=tasks)


# -- samples --------------------------------------------------------------------------------------------------------


def needles_are_where_the_answer_stands() -> None:
    """Head scores: what counts as the needle holds the very answer that is asked for, within the context, once."""
    for sample in needles(source(TASKS), 8, 200):
        columns = torch.arange(len(sample.ids))
        rows = columns[sample.start : sample.stop, None]
        marked = sample.marks(rows, columns)["retrieval"]
        found = [sample.ids[at] for at in columns[marked[0]].tolist()]
        assert bool((marked == marked[0]).all())
        assert tuple(found) == sample.ids[sample.start : sample.stop + 1], "the needle is not what is asked for"
        assert columns[marked[0]].max() < sample.start - 1
        assert len(found) in (2, 6)
        assert len(sample.ids) <= 200


def repetitions_are_marked() -> None:
    """Head scores: an echo is the same token before, an induction the token behind it; both of every repetition."""
    for sample in repetitions(source(), 2, 40):
        assert len(sample.ids) == 40
        assert sample.ids == sample.ids[:10] * 4
        columns = torch.arange(40)
        marks = sample.marks(columns[sample.start : sample.stop, None], columns)
        for row, now in enumerate(range(sample.start, sample.stop)):
            assert columns[marks["echo"][row]].tolist() == [at for at in range(now) if (now - at) % 10 == 0]
            assert columns[marks["induction"][row]].tolist() == [at for at in range(1, now) if (now + 1 - at) % 10 == 0]
    for sample in needles(source(), 2, 40):
        columns = torch.arange(40)
        marked = sample.marks(columns[-1:, None], columns)["retrieval"]
        assert columns[marked[0]].tolist() == [19, 20], "the needle of a repetition is the token and what followed it"


# -- scores ---------------------------------------------------------------------------------------------------------


def softmax_rows(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Return causal attention [H, T, T], the plain way."""
    keys = key[0].repeat_interleave(query.shape[1] // key.shape[1], dim=0)
    logits = torch.einsum("htd,hnd->htn", query[0], keys) * scale
    seen = torch.ones(logits.shape[1:]).tril().bool()
    return logits.masked_fill(~seen, -torch.inf).softmax(dim=-1)


def paid_equals_dense_attention() -> None:
    """Head scores: the mean over the queries that count of the attention on what counts, per query head."""
    query, key = rand(1, 4, 300, 8, seed=1), rand(1, 2, 300, 8, seed=2)
    weights = softmax_rows(query, key, 0.7)

    def marks(at: Tensor, entry: Tensor) -> dict[str, Tensor]:
        return {"odd": (entry % 2 == 1).expand(len(at), -1), "third": (at - entry) % 3 == 0}

    sample = Marked(ids=(0,) * 300, start=20, stop=290, marks=marks)
    got = paid(sample, query, key, 0.7, 0)
    odd, third = torch.zeros(4).double(), torch.zeros(4).double()
    for now in range(20, 290):
        odd += weights[:, now, 1::2].sum(dim=-1)
        third += weights[:, now, [at for at in range(now + 1) if (now - at) % 3 == 0]].sum(dim=-1)
    assert_close(got["odd"].flatten(), odd / 270)
    assert_close(got["third"].flatten(), third / 270)


def perfect_heads_score_one() -> None:
    """Head scores: a head that only looks at what followed has induction 1 and echo 0, one that looks back, echo 1."""
    (sample,) = repetitions(source(), 1, 40)
    eye = torch.eye(10, dtype=torch.float64) * 50
    query = eye[torch.arange(40) % 10]
    echo = query.clone()
    after = eye[(torch.arange(40) - 1) % 10]
    for keys, induction in ((echo, 0.0), (after, 1.0)):
        own = (torch.arange(40) >= 30) | (torch.arange(40) < induction)  # the last repetition looks at earlier ones
        found = paid(
            replace(sample, start=30), query[None, None], keys.masked_fill(own[:, None], 0)[None, None], 1.0, 0
        )
        assert abs(found["induction"].item() - induction) < 1e-9
        assert abs(found["echo"].item() - (1 - induction)) < 1e-9


def area_equals_a_plain_loop() -> None:
    """Head scores: a gate is the area under the cumulated attention of the mean query over the mean key."""
    config = model("llama_gqa").config
    shape = LayerShape(
        query_heads=4, kv_heads=2, key_dim=8, value_dim=8, window=0, rotary=inverse_frequency(config, None)
    )
    query, key = rand(1, 4, 12, 8, seed=4) + 0.5, rand(1, 2, 12, 8, seed=5) + 0.5
    at = torch.arange(12)
    got = area(turned(query, at, shape), turned(key, at, shape), 0.9, shape)
    for head in range(4):
        last = turned(query[:, head : head + 1].mean(dim=2, keepdim=True), torch.tensor([GATE_POSITIONS - 1]), shape)
        mean = key[:, head // 2 : head // 2 + 1].mean(dim=2, keepdim=True)
        keys = turned(mean.expand(-1, -1, GATE_POSITIONS, -1), torch.arange(GATE_POSITIONS), shape)
        logits = [float(last[0, 0, 0] @ keys[0, 0, at]) * 0.9 for at in range(GATE_POSITIONS)]
        whole = sum(math.exp(logit) for logit in logits)
        total = sum(math.exp(logit) * (GATE_POSITIONS - at) for at, logit in enumerate(logits))
        assert abs(got[head // 2, head % 2].item() - total / whole / GATE_POSITIONS) < 1e-10
    flat = replace(shape, rotary=torch.zeros(4, dtype=torch.float64))
    even = (GATE_POSITIONS + 1) / (2 * GATE_POSITIONS)
    assert_close(area(query, key, 0.9, flat), torch.full((2, 2), even, dtype=torch.float64))


def turned(entries: Tensor, at: Tensor, shape: LayerShape) -> Tensor:
    """Rotate entries [1, H, T, D] to positions [T], number by number."""
    assert shape.rotary is not None
    out = entries.clone()
    for step, position in enumerate(at.tolist()):
        for pair, frequency in enumerate(shape.rotary.tolist()):
            cos, sin = math.cos(position * frequency), math.sin(position * frequency)
            first, second = entries[0, :, step, pair], entries[0, :, step, pair + 4]
            out[0, :, step, pair] = first * cos - second * sin
            out[0, :, step, pair + 4] = second * cos + first * sin
    return out


def loaded(name: str) -> Loaded:
    """Return a test model as the loader would."""
    return Loaded(model=model(name), tokenizer=None, view=view_of(model(name)), weights="random", revision="seed-0")


def measured_scores_equal_eager_attention(name: str) -> None:
    """Head scores: what is measured in a forward pass is what eager attention gives, grouped per KV head."""
    view, tokens = view_of(model(name)), 64
    with attention(model(name), watching.ATTENTION):
        got = measure(
            "repetition", name, loaded(name), source(), samples=2, tokens=tokens, report=lambda share: None
        ).scores
    want = {title: torch.zeros(len(view.layers), view.layers[0].query_heads) for title in ("echo", "induction")}
    for sample in repetitions(source(), 2, tokens):
        with attention(model(name), "eager") as network:
            weights = network(torch.tensor([sample.ids]), use_cache=False, output_attentions=True).attentions
        for layer, one in enumerate(weights):
            for now in range(16, tokens):
                for back, title in ((0, "echo"), (15, "induction")):
                    at = [j for j in range(back > 0, now) if (now - j) % 16 == back]
                    want[title][layer] += one[0, :, now, at].sum(dim=-1).float() / 48 / 2
    for title, table in want.items():
        best = table.unflatten(1, (view.layers[0].kv_heads, -1)).amax(dim=2)
        torch.testing.assert_close(torch.tensor(got[title]), best, rtol=0, atol=2e-6)


def a_watched_model_says_what_the_stock_model_says(name: str) -> None:
    """Head scores: the forward pass that is watched is the model's own."""
    tokens, outs = ids(99, 1, 40), []

    def note(module: object, inputs: object, output: object) -> None:
        outs.append(output.logits)  # type: ignore[attr-defined]

    handle = model(name).register_forward_hook(note)
    for function in (watching.ATTENTION, "sdpa"):
        with attention(model(name), function) as network:
            watching.forward(network, tokens, lambda *seen: None)
    handle.remove()
    assert_close(outs[0], outs[1])


# -- files ----------------------------------------------------------------------------------------------------------


def weights_tell_models_apart() -> None:
    """Head scores: a fingerprint is the same in every dtype and another for other weights."""
    view = view_of(model("llama_gqa"))
    same = {fingerprint(view_of(model("llama_gqa", dtype))) for dtype in (torch.float32, torch.bfloat16)}
    other = replace(view, layers=tuple(replace(layer, output=-layer.output) for layer in view.layers))  # type: ignore[operator]
    assert same == {fingerprint(view)}
    assert len({fingerprint(view), fingerprint(other), fingerprint(view_of(model("gpt2")))}) == 3


def scores_of_another_model_are_refused() -> None:
    """Head scores: those of other heads, of other weights or of another kind are not used, nor is a broken file."""
    view, table = view_of(model("llama_gqa")), [[0.1, 0.2], [0.3, 0.4]]
    with TemporaryDirectory() as path:
        mine = write(Path(path), "llama_gqa", "retrieval", {"retrieval": table})
        more = write(Path(path), "llama_mha", "retrieval", {"retrieval": [[0.1] * 4] * 2})
        negative = replace(view, layers=tuple(replace(one, output=-one.output) for one in view.layers))  # type: ignore[operator]
        others = write(Path(path), "negative", "retrieval", {"retrieval": table}, negative)
        gates = write(Path(path), "llama_gqa", "gate", {"gate": table})
        broken = Path(path) / "broken.json"
        broken.write_text(mine.read_text(encoding="utf-8").replace("0.4", "7.5"), encoding="utf-8")
        for file, reason in (
            (mine, None),
            (more, "made for another model"),
            (others, "made for other weights: negative"),
            (gates, "holds gate scores; retrieval scores are needed"),
            (broken, "must be numbers between 0 and 1"),
            (Path(path) / "none.json", "cannot be read"),
        ):
            got = strategy("headkv", f"budget.scores='{file}'").unsupported(view, uniform())
            assert (got is None) == (reason is None), got
            assert reason is None or (got and reason in got and "kvbench calibrate retrieval" in got), got


def a_model_without_weights_is_counted(method: str) -> None:
    """Head scores: without weights nothing is looked up, and bytes are what they are with scores, but for metadata."""
    view = view_of(model("llama_mha"))
    bare = replace(
        view,
        layers=tuple(
            replace(one, output=one.output.to("meta") if one.output is not None else None) for one in view.layers
        ),
    )
    made = strategy(method, "budget.scores=/nowhere")
    told = strategy(method, f"budget.scores='{folder()}'")
    assert made.allocated_bytes(bare, uniform()) == pytest.approx(told.allocated_bytes(view, uniform()), rel=0.1)


def missing_scores_are_asked_for(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Head scores: where there are none the reason is the command that makes them, word for word."""
    monkeypatch.setenv("KVBENCH_CACHE", str(path))
    view = replace(view_of(model("llama_mha")), asked="model=mini seed=3")
    for method, kind in (("headkv", "retrieval"), ("duoattention", "gate"), ("razorattention", "repetition")):
        made = strategy(method, "budget.scores=''")
        reason = made.unsupported(view, uniform())
        assert reason is not None
        assert reason.endswith(f"Run once: kvbench calibrate {kind} model=mini seed=3")
        with pytest.raises(ValueError, match="Run once: kvbench calibrate"):
            made.build(view, uniform())
        rng = random.Random(0)
        names = {"retrieval": ("retrieval",), "gate": ("gate",), "repetition": ("echo", "induction")}[kind]
        write(path, "llama_mha", kind, {name: [[rng.random() for _ in range(4)] for _ in range(2)] for name in names})
        assert made.unsupported(view, uniform()) is None
