"""`kvbench calibrate`: files of head scores and of channel maxima, and the methods that need them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from omegaconf import OmegaConf

from kvbench.cache.codecs.bits import BitErrors
from kvbench.cache.codecs.codebooks import Codebooks
from kvbench.cache.codecs.moments import Moments
from kvbench.calibrated import Calibrated, fingerprint
from kvbench.cli import calibrate, main
from kvbench.configuration import build_group, check, compose, resolved
from kvbench.configuration.composing import search_path
from kvbench.models.load import load
from kvbench.models.spec import TINY
from kvbench.strategies.base import CacheStrategy
from kvbench.strategies.budget.scores import HeadScores
from kvbench.strategies.transform.maxima import ChannelMaxima
from kvbench.train import RECIPE, read_corpus
from kvbench.types import ModelView, RunShape

RUN = RunShape(prompt_lengths=(600,), new_tokens=8)
LONG = pytest.mark.shipped
KINDS = {"headkv": "retrieval", "duoattention": "gate", "razorattention": "repetition"}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Keep scores in a folder of the test's own, which is empty."""
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def strategy(*overrides: str) -> CacheStrategy:
    """Return a strategy as a run would make it."""
    made = build_group(resolved(compose(overrides))["strategy"], "strategy")
    assert isinstance(made, CacheStrategy)
    return made


def view_of(*overrides: str, config_dir: Path | None = None) -> ModelView:
    """Return the view of a model as a run would load it."""
    checked = check(compose([*overrides, *search_path(None if config_dir is None else str(config_dir))]))
    return load(checked.model, seed=checked.seed, attention="sdpa").view


@pytest.mark.parametrize("method", KINDS)
def test_the_command_that_a_refusal_names_makes_the_method_run(
    method: str, outside: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    view, made = view_of("model=mini", "seed=5", config_dir=outside), strategy(f"strategy={method}")
    run = RunShape(prompt_lengths=(200,), new_tokens=8)
    reason = made.unsupported(view, run)
    assert reason is not None
    asked = reason.partition("Run once: kvbench ")[2]
    assert asked == f"calibrate {KINDS[method]} model=mini model.weights=random seed=5"
    fewer = ["--samples", "2", "--tokens", "256"]
    assert main([*asked.split(), "--config-dir", str(outside), *fewer]) == 0
    out = capsys.readouterr().out.splitlines()
    (file,) = own_cache.iterdir()
    assert out[-1] == f"scores: {file}"
    assert out[0].split()[:3] == [{"repetition": "echo"}.get(KINDS[method], KINDS[method]), "layer", "0"]
    assert made.unsupported(view, run) is None
    found = json.loads(file.read_text(encoding="utf-8"))
    told = {key: found[key] for key in ("kind", "model", "revision", "seed", "samples", "tokens")}
    want = {"kind": KINDS[method], "model": "mini", "revision": "seed-5", "seed": 5, "samples": 2, "tokens": 256}
    assert told == want
    assert found["weights"] == fingerprint(view)
    other = view_of("model=mini", "seed=6", config_dir=outside)
    assert made.unsupported(other, run) is not None, "scores of other weights were taken"


def test_scores_go_where_they_are_asked_to_and_are_the_same_again(outside: Path, tmp_path: Path) -> None:
    line = ["calibrate", "razorattention", "model=mini", "--config-dir", str(outside), "--samples", "1"]
    assert main([*line, "--out", str(tmp_path / "mine.json")]) == 0
    assert main([*line, "--out", str(tmp_path / "folder")]) == 0
    (again,) = (tmp_path / "folder").iterdir()
    assert again.name.startswith("head_scores_repetition_mini_")
    assert again.read_bytes() == (tmp_path / "mine.json").read_bytes()
    view = view_of("model=mini", config_dir=outside)
    for where in (tmp_path / "mine.json", tmp_path / "folder"):
        made = strategy("strategy=razorattention", f"strategy.budget.scores='{where}'")
        assert made.unsupported(view, RunShape(prompt_lengths=(64,), new_tokens=8)) is None


@pytest.mark.parametrize("method", KINDS)
def test_the_embedded_model_needs_no_command(method: str) -> None:
    view, made = view_of("model=tiny"), strategy(f"strategy={method}")
    assert made.unsupported(view, RUN) is None
    (file,) = TINY.glob(f"head_scores_{KINDS[method]}_*.json")
    assert json.loads(file.read_text(encoding="utf-8"))["weights"] == fingerprint(view)
    assert file.stat().st_size < 2000


@pytest.mark.parametrize("kind", [*(pytest.param(each, marks=LONG) for each in ("retrieval", "gate")), "repetition"])
def test_what_is_shipped_is_what_the_command_makes(kind: str, tmp_path: Path) -> None:
    assert main(["calibrate", kind, "model=tiny", "model.device=cpu", "--out", str(tmp_path)]) == 0
    (made,) = tmp_path.glob("head_scores_*.json")
    got, want = (json.loads(file.read_text(encoding="utf-8")) for file in (made, TINY / made.name))
    for name, table in want.pop("scores").items():
        for layer, scores in zip(got["scores"][name], table, strict=True):
            assert layer == pytest.approx(scores, rel=0, abs=1e-4)
    del got["scores"]
    assert got == want


class Kind(NamedTuple):
    """What is measured of a model's channels, numbers or layers."""

    name: str  # as the command calls it
    what: type[Calibrated]
    methods: tuple[str, ...]  # that need it
    tokens: int  # enough of a text
    lines: Callable[[ModelView], int]  # that are printed
    most: int  # bytes of the file that comes with the embedded model


MEASURED = (
    Kind(
        "smooth",
        ChannelMaxima,
        ("smoothquant", "smoothquant_05", "smoothquant_08"),
        32,
        lambda view: len(view.norms),
        20_000,
    ),
    Kind(
        "codebooks",
        Codebooks,
        ("kvquant2", "kvquant3", "kvquant4"),
        32,
        lambda view: 2 * 3 * len(view.layers),
        10_000,
    ),
    Kind("bits", BitErrors, ("kvtuner",), 160, lambda view: 3 * len(view.layers), 2_000),
    Kind(
        "moments",
        Moments,
        ("palu", "palu_fp16", "eigen_attention", "rotatekv", "skvq", "qoq_kv4"),
        32,
        lambda view: len(view.layers),
        200_000,
    ),
)
SHIPPED = [(kind, "tiny") for kind in MEASURED] + [(MEASURED[0], "tiny-mha")]
of_each_kind = pytest.mark.parametrize("kind", MEASURED, ids=[kind.name for kind in MEASURED])
of_what_is_shipped = pytest.mark.parametrize(
    ("kind", "model"), SHIPPED, ids=[f"{k.name}-{model}" for k, model in SHIPPED]
)


@of_each_kind
@pytest.mark.parametrize("by_method", [False, True])
def test_the_command_that_a_method_names_makes_what_it_needs(
    kind: Kind, by_method: bool, outside: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    view, made = view_of("model=mini", "seed=5", config_dir=outside), strategy(f"strategy={kind.methods[-1]}")
    run = RunShape(prompt_lengths=(200,), new_tokens=8)
    reason = made.unsupported(view, run)
    assert reason is not None
    assert reason.endswith(f"Run once: kvbench calibrate {kind.name} model=mini model.weights=random seed=5")
    rest = [*reason.partition(f"calibrate {kind.name} ")[2].split(), "--config-dir", str(outside)]
    asked = kind.methods[0] if by_method else kind.name
    assert main(["calibrate", asked, *rest, "--samples", "2", "--tokens", str(kind.tokens)]) == 0
    out = capsys.readouterr().out.splitlines()
    (file,) = own_cache.iterdir()
    assert out[-1] == f"scores: {file}"
    assert len(out) == 1 + kind.lines(view)
    assert made.unsupported(view, run) is None
    want = {"model": "mini", "revision": "seed-5", "weights": fingerprint(view), "seed": 5, "samples": 2}
    assert about(kind.what.read(file)) == {**want, "tokens": kind.tokens}
    assert file.name == f"{kind.what.stem(kind.name)}_mini_{fingerprint(view)}{kind.what.suffix}"
    other = view_of("model=mini", "seed=6", config_dir=outside)
    assert made.unsupported(other, run) is not None, "what was measured on other weights was taken"


@of_what_is_shipped
def test_the_embedded_models_have_what_methods_need(kind: Kind, model: str) -> None:
    view = view_of(f"model={model}")
    for method in kind.methods:
        assert strategy(f"strategy={method}").unsupported(view, RUN) is None
    (file,) = TINY.glob(f"{kind.what.stem(kind.name)}_{model}_*")
    assert kind.what.read(file).weights == fingerprint(view)
    assert file.stat().st_size < kind.most


def about(found: Calibrated) -> dict[str, object]:
    """Return what a file says of the model and of the texts."""
    return {field.name: getattr(found, field.name) for field in fields(Calibrated)}


def numbers_in(found: Any) -> list[float]:
    """Return the numbers of tables in tables, in order."""
    if isinstance(found, Mapping):
        return [number for _, value in sorted(found.items()) for number in numbers_in(value)]
    if isinstance(found, torch.Tensor):
        return found.flatten().tolist()
    if isinstance(found, list | tuple):
        return [number for each in found for number in numbers_in(each)]
    return [found] if isinstance(found, int | float) else []


@LONG
@of_what_is_shipped
def test_what_is_shipped_for_methods_is_what_the_command_makes_of_the_training_text(
    kind: Kind, model: str, tmp_path: Path
) -> None:
    recipe = OmegaConf.load(RECIPE)
    corpus = read_corpus(recipe.data.held_out_every, list(recipe.data.skip_folders))
    if corpus.hashes() != json.loads((TINY / "corpus.json").read_text(encoding="utf-8")):
        pytest.skip("the embedded model was trained on the text of another version of Python")
    (tmp_path / "text").write_text("\n\n".join(corpus.train.values()), encoding="utf-8")
    line = [f"model={model}", "model.device=cpu", "workload=text", f"workload.path={tmp_path / 'text'}"]
    assert main(["calibrate", kind.name, *line, "--out", str(tmp_path)]) == 0
    (made,) = tmp_path.glob(f"{kind.what.stem(kind.name)}_*")
    got, want = (kind.what.read(file) for file in (made, TINY / made.name))
    assert len(numbers_in(vars(want))) > len(about(want))
    assert numbers_in(vars(got)) == pytest.approx(numbers_in(vars(want)), rel=1e-3, abs=1e-4)
    assert about(got) == about(want)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("calibrate headkw", "nothing called headkw is measured. Did you mean headkv"),
        (
            "calibrate h2o",
            "strategy=h2o needs nothing measured. Kinds: retrieval, gate, repetition, smooth, codebooks, bits, moments",
        ),
        (
            "calibrate bits --tokens 100",
            "--tokens from 160 to what the model reads, 2048; got 3 and 100",
        ),
        ("calibrate codebooks --tokens 6", "--tokens from 7 to what the model reads, 2048; got 16 and 6"),
        ("calibrate smooth --tokens 4000", "what the model reads, 2048; got 64 and 4000"),
        ("calibrate moments --tokens 1", "moments need --samples of at least 1 and --tokens from 2"),
        ("calibrate gate model=tinny", "Did you mean model=tiny"),
        ("calibrate gate --samples -1", "--samples of at least 1"),
        ("calibrate gate --tokens 4000", "what the model reads, 2048; got 50 and 4000"),
        ("calibrate retrieval --tokens 20", "--tokens from 256"),
    ],
)
def test_wrong_input_gives_one_message_and_status_2(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    assert message in capsys.readouterr().err


def test_gates_of_a_model_that_does_not_rotate_are_refused(outside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learned = MINI_GPT2
    (outside / "model" / "learned.yaml").write_text(learned, encoding="utf-8")
    assert main(["calibrate", "gate", "model=learned", "--config-dir", str(outside), "--tokens", "32"]) == 2
    assert "keys of this model are not rotated" in capsys.readouterr().err


def test_maxima_of_norms_that_cannot_be_told_are_refused(outside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = MINI_GPT2.replace("architecture: {model_type: gpt2", "architecture: {model_type: gpt_neox, hidden_size: 32")
    renamed = other.replace("n_embd: 32, n_head: 2, n_layer: 2, n_positions: 256", NEOX).replace("learned", "neox")
    (outside / "model" / "neox.yaml").write_text(renamed, encoding="utf-8")
    assert main(["calibrate", "smooth", "model=neox", "--config-dir", str(outside), "--tokens", "32"]) == 2
    assert "which norms of neox only linear layers read cannot be told" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_a_message(
    outside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("", encoding="utf-8")
    line = ["calibrate", "repetition", "model=mini", "--config-dir", str(outside), "--samples", "1"]
    assert main([*line, "--out", str(tmp_path / "taken" / "file.json")]) == 1
    assert "kvbench: " in capsys.readouterr().err


def test_names_of_models_make_names_of_files() -> None:
    made = HeadScores(
        kind="gate", model="a/b c", revision="", weights="12", seed=0, samples=1, tokens=1, scores={"gate": ((0.5,),)}
    )
    assert made.file_name("gate") == "head_scores_gate_a-b-c_12.json"
    assert calibrate.place("gate", made, "there") == Path("there") / made.file_name("gate")


NEOX = "intermediate_size: 48, num_attention_heads: 2, num_hidden_layers: 2, max_position_embeddings: 256"
MINI_GPT2 = """\
# Two layers of random weights with learned positions.
_target_: kvbench.models.spec.ModelSpec
name: learned
path: ""
weights: random
hub_id: ""
revision: ""
dtype: float32
device: cpu
device_map: none
architecture: {model_type: gpt2, vocab_size: 64, n_embd: 32, n_head: 2, n_layer: 2, n_positions: 256}
matched: {mha: "", mamba: "", rwkv: ""}
"""


def test_a_recurrent_model_has_nothing_to_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "retrieval", "model=tiny-rwkv", "model.device=cpu"]) != 0
    assert "model=tiny-rwkv is recurrent: it has no heads" in capsys.readouterr().err
