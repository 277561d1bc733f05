"""A member that begins as another one: as the transform says it, and it goes on exactly; what is asked is checked."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from kvbench.cli import train as command
from kvbench.configuration.errors import ConfigError
from kvbench.train import members
from tests.mutants.core_mutant import Check, Mutant, each_of
from tests.mutants.uptraining import MUTANTS
from tests.support import uptraining

ASKED = {"family": "gqa", "from": "mha", "align": "none", "share": "0.05"}


def test_without_steps_it_is_the_transform(tmp_path: Path) -> None:
    uptraining.without_steps_it_is_the_transform(tmp_path)


def test_uptraining_goes_on_exactly_where_it_was_interrupted(tmp_path: Path) -> None:
    uptraining.uptraining_goes_on_exactly(tmp_path)


def test_a_share_of_the_steps_is_a_whole_training() -> None:
    uptraining.a_share_of_the_steps_is_a_whole_training()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": None}, r"from=, align= and share= go together; give share= as well"),
        ({"from": None, "align": None}, r"give align= and from= as well"),
        ({"from": "mho"}, r"from=mho is not shipped\. Did you mean mha\? Shipped: "),
        ({"align": "svd"}, r"align=svd must be none or procrustes"),
        ({"share": "some"}, r"share=some must be a number from 0 to 1"),
        ({"share": "1.5"}, r"share=1\.5 must be a number from 0 to 1"),
        ({"family": "mha"}, r"family=mha cannot begin as mha: .* fewer KV heads .*\. .*Families: gqa, mqa"),
        ({"family": "cla"}, r"family=cla cannot begin as mha: .*Families: gqa, mqa"),
        ({"family": "rwkv"}, r"family=rwkv cannot begin as mha"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(changes: dict[str, str | None], message: str) -> None:
    asked = {key: value for key, value in {**ASKED, **changes}.items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        command.main([f"{key}={value}" for key, value in asked.items()])


def test_a_folder_of_another_recipe_is_refused(tmp_path: Path) -> None:
    OmegaConf.save(members()["gqa"], tmp_path / "recipe.yaml")
    with pytest.raises(ConfigError, match=r"out=.* holds what another recipe left; choose another folder"):
        command.main([*(f"{key}={value}" for key, value in ASKED.items()), f"out={tmp_path}"])


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)
