"""Models come from where the configuration says, and what cannot be loaded says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from kvbench.api import strategy
from kvbench.bench import PROBE_TOLERANCE, through_cache
from kvbench.cache.doors import ATTENTION
from kvbench.engines.arm import Arm
from kvbench.engines.eager import Eager
from kvbench.models.load import Loaded, ModelError, _tokenizer, load, origin_of, probe, skeleton
from kvbench.models.spec import TINY
from tests.mutants import attention as mutants
from tests.support.small import checkpoint, spec


def head(loaded: Loaded) -> torch.Tensor:
    """Return the weights of the output layer."""
    return loaded.model.get_parameter("lm_head.weight")


def test_random_weights_are_the_same_for_the_same_seed() -> None:
    first, again, other = (head(load(spec(), seed=seed, attention="sdpa")) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_local_folder_gives_its_weights(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    loaded = load(spec(path=str(folder), architecture={}), seed=0, attention="sdpa")
    again = load(spec(path=str(folder), architecture={}), seed=1, attention="sdpa")
    assert loaded.weights == "pretrained"
    assert loaded.tokenizer is None
    assert torch.equal(head(loaded), head(again))


def test_hub_models_fall_back_to_random_weights_where_the_hub_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert origin_of(spec(weights="auto", hub_id="nobody/nothing", revision="main")) == "random"
    with pytest.raises(ModelError, match="nobody/nothing cannot be loaded"):
        load(spec(weights="pretrained", hub_id="nobody/nothing", revision="main"), seed=0, attention="sdpa")


def test_corrupt_weights_are_refused_with_the_folder(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"not readable safetensors.*check model\.path"):
        load(spec(path=str(folder), architecture={}), seed=0, attention="sdpa")


def test_missing_weights_are_refused_with_the_folder(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded as a causal language model"):
        load(spec(path=str(folder), architecture={}), seed=0, attention="sdpa")


def test_a_model_that_is_no_causal_language_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "vocab_size": 10}))
    with pytest.raises(ModelError, match="cannot be loaded as a causal language model"):
        load(spec(path=str(tmp_path), architecture={}), seed=0, attention="sdpa")


def test_a_device_that_is_not_here_is_refused() -> None:
    if torch.backends.mps.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(ModelError, match=r"model\.device=mps is not available here"):
        load(spec(device="mps"), seed=0, attention="sdpa")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "/no/such/folder"}, r"model\.path=/no/such/folder is no folder"),
        ({"weights": "pretrained"}, r"has no pretrained weights; set model\.weights=random"),
        ({"weights": "embedded"}, r"model\.weights=embedded is for model=tiny"),
        ({"architecture": {}}, r"has no architecture"),
    ],
)
def test_specifications_that_cannot_be_name_the_key(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec(**changes)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        spec(path=str(tmp_path))


def test_positions_are_known_before_loading(tmp_path: Path) -> None:
    assert spec().max_positions == 256
    assert spec(architecture={"model_type": "gpt2", "n_positions": 64}).max_positions == 64
    assert spec(path=str(checkpoint(tmp_path / "model")), architecture={}).max_positions == 256


def test_the_skeleton_has_the_shapes_and_no_weights() -> None:
    model = skeleton(spec())
    real = load(spec(), seed=0, attention="sdpa").model
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in real.parameters())
    assert all(p.is_meta for p in model.parameters())


def probed(monkeypatch: pytest.MonkeyPatch | None = None) -> float:
    """Return the difference between the cache's logits and the stock forward's, with scaled queries and keys."""
    loaded = load(spec(), seed=0, attention=ATTENTION)
    for name, parameter in loaded.model.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            parameter.mul_(8)
    arm = Arm(
        name="baseline",
        model=loaded.model,
        view=loaded.view,
        strategy=strategy("baseline"),
        engine=Eager(prefill_chunk=0),
    )
    ids = torch.arange(5, 21)[None]
    with torch.no_grad():
        return probe(loaded.model, "sdpa", ATTENTION, lambda tokens: through_cache(arm, tokens), ids)


def test_probe_passes_where_the_two_forwards_agree() -> None:
    assert probed() < PROBE_TOLERANCE[torch.float32] / 10


def test_probe_catches_an_attention_that_is_not_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvbench.cache.store.attend_one", mutants.without_scale)
    assert probed() > PROBE_TOLERANCE[torch.float32]


def test_a_tokenizer_that_was_made_of_nothing_is_none(tmp_path: Path) -> None:
    AutoConfig.for_model("qwen2").save_pretrained(tmp_path)
    assert _tokenizer(str(tmp_path), spec(path=str(tmp_path))) is None
    assert _tokenizer(str(TINY), spec()) is not None
