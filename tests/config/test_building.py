"""Every value is held to its field's annotation; what is wrong is said in one line."""

from __future__ import annotations

import re
from typing import Any

import pytest

from kvbench.configuration import ConfigError, building
from kvbench.configuration.building import build
from tests.config.parts import HERE, Circle, Drawing, Pen, node
from tests.mutants import configuration as mutants

PREFIXES = (f"{HERE}.",)


def made(changes: dict[str, Any]) -> Any:
    """Return the drawing of a node with dotted keys changed; `...` deletes one."""
    whole = node()
    for key, value in changes.items():
        *above, last = key.split(".")
        inner = whole
        for part in above:
            inner = inner[part]
        if value is ...:
            del inner[last]
        else:
            inner[last] = value
    return build(whole, object, "drawing", PREFIXES)


def test_a_right_node_becomes_its_dataclass() -> None:
    pen = Pen(colour="blue", widths=(1, 2), label=None, extra={"depth": {"a": 1}})
    want = Drawing(shape=Circle(radius=2.0), pen=pen, copies=3, is_signed=True, title="one")  # type: ignore[arg-type]
    got = made({})
    assert got == want
    assert isinstance(got.shape.radius, float)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("copies", "3", 'drawing.copies must be a whole number; got "3".'),
        ("copies", 1.5, "drawing.copies must be a whole number; got 1.5."),
        ("copies", True, "drawing.copies must be a whole number; got true."),
        ("is_signed", "yes", 'drawing.is_signed must be true or false; got "yes".'),
        ("is_signed", 1, "drawing.is_signed must be true or false; got 1."),
        ("title", 7, "drawing.title must be text; got 7. Quote it: drawing.title='\"7\"'."),
        ("title", None, "drawing.title must be text; got null."),
        ("shape.radius", "wide", 'drawing.shape.radius must be a number; got "wide".'),
        ("shape.radius", -1, "drawing.shape: a radius is above 0; got -1.0."),
        (
            "shape",
            "circle",
            'drawing.shape must be a group of settings; got "circle". To choose one write drawing/shape=circle',
        ),
        ("shape", 5, "drawing.shape must be a group of settings; got 5."),
        ("pen.colour", "blu", 'drawing.pen.colour cannot be "blu". Did you mean blue? Choices: black, blue.'),
        ("pen.widths", 1, "drawing.pen.widths must be a list such as [1,2]; got 1."),
        ("pen.widths", [1, "a"], 'drawing.pen.widths[1] must be a whole number; got "a".'),
        ("pen.label", 1, "drawing.pen.label must be text; got 1."),
        ("pen.extra", [1], "drawing.pen.extra must be a group of settings; got [1]."),
        ("pen", 1, "drawing.pen must be a group of settings; got 1."),
        ("pen.color", "blue", "drawing.pen (Pen) has no setting 'color'. Did you mean drawing.pen.colour?"),
        ("copies", ..., "drawing (Drawing) lacks copies: its yaml has to give every setting."),
        ("shape._target_", f"{HERE}.Circl", "is no dataclass of tests.config.parts. Did you mean Circle?"),
        (
            "shape._target_",
            f"{HERE}.Shape",
            "is no dataclass of tests.config.parts. Choices: Circle, Drawing, Line",
        ),
        (
            "shape._target_",
            "tests.config.part.Circle",
            "allowed are tests.config.parts.*. Did you mean",
        ),
        ("shape._target_", f"{HERE}.Pen", "drawing.shape: Pen lacks area of tests.config.parts.Shape. Write it, or"),
        (
            "shape._target_",
            f"{HERE}.Line",
            "drawing.shape: Line lacks area of tests.config.parts.Shape. It has aera for area; is that what was meant?",
        ),
        ("shape._target_", f"{HERE}.no.Circle", "cannot be imported: No module named 'tests.config.parts.no'"),
    ],
)
def test_a_wrong_value_is_named_with_its_full_key_and_what_would_be_right(
    key: str, value: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        made({key: value})


def test_a_misspelt_package_is_told_from_one_that_was_not_allowed() -> None:
    with pytest.raises(ConfigError, match=re.escape("allowed are kvbench.*, mine.*. Did you mean mine?")):
        build({"_target_": "mnie.Circle"}, object, "node", ("kvbench.", "mine."))


def check_prefixes() -> None:
    """Fail unless only allowed packages are imported from."""
    for target in ("os.system", "pathlib.Path", f"{HERE}x.Circle", "fractions.Fraction"):
        refused = False
        try:
            build({"_target_": target}, object, "node", PREFIXES)
        except ConfigError as error:
            refused = "is not allowed; allowed are tests.config.parts.*" in str(error)
        except (TypeError, ImportError, AttributeError):  # it was imported, or called
            pass
        assert refused, target


def test_nothing_outside_the_allowed_packages_is_imported() -> None:
    check_prefixes()


def test_the_check_of_prefixes_catches_a_builder_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "_locate", mutants.locate_anything)
    with pytest.raises(AssertionError):
        check_prefixes()
