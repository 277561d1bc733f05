"""The matched family: members differ in what recipes say, and training goes on exactly where it was interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvbench.cli import train as command
from kvbench.configuration.errors import ConfigError
from kvbench.models.load import recurrent
from tests.mutants.core_mutant import Check, Mutant, each_of
from tests.mutants.family import MUTANTS
from tests.support import family


def test_members_have_as_many_parameters_within_a_hundredth() -> None:
    family.members_have_as_many_parameters()


def test_members_read_the_same_tokens() -> None:
    family.members_read_the_same_tokens()


def test_training_goes_on_exactly_where_it_was_interrupted(tmp_path: Path) -> None:
    family.training_goes_on_exactly(tmp_path)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    family.training_lowers_the_loss(tmp_path)


@pytest.mark.parametrize("name", recurrent())
def test_a_recurrent_member_learns(name: str, tmp_path: Path) -> None:
    family.a_recurrent_member_learns(tmp_path, name)


@pytest.mark.parametrize("member", ["cla", "yoco"])
def test_a_member_that_shares_is_loaded_as_one(member: str, tmp_path: Path) -> None:
    family.a_member_that_shares_is_loaded_as_one(member, tmp_path)


@pytest.mark.parametrize("member", family.shipped())
def test_what_is_shipped_is_what_its_card_says(member: str) -> None:
    family.what_is_shipped_is_what_its_card_says(member)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((), r"takes family=, out=, threads= and device=, once each, and from=, .* together; got nothing"),
        (("mha",), r"takes family=, out=, threads= and device=, once each, and .* together; got mha"),
        (("family=mha", "family=gqa"), r"together; got family=mha family=gqa"),
        (("family=mha", "steps=3"), r"together; got family=mha steps=3"),
        (("family=mho",), r"family=mho has no recipe\. Did you mean mha\?|family=mho has no recipe\. .*Families: gqa"),
        (("family=mha", "threads=0"), r"threads=0 must be a number of at least 1"),
        (("family=mha", "device=tpu"), r"device=tpu is not there to train on; set device=cpu"),
    ],
)
def test_what_cannot_be_trained_is_refused(settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        command.main(settings)


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)
