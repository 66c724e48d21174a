"""Values for configuration dataclasses: types, messages, layers."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, asdict, dataclass, replace
from typing import Any, Literal, Self

import pytest
from pydantic import model_validator

from sohes.configuration import Count, Natural, NonEmpty, Settings, Share, describe, field_docs, settings
from sohes.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 1
    rate: float = 0.1
    name: str = "a"
    fast: bool = False
    sizes: tuple[int, ...] = ()
    pair: tuple[int, float] = (1, 0.5)
    limit: int | None = 5
    folder: str | None = None

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError("steps must not be negative")


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("steps", "20", 20),
        ("rate", "1e-4", 1e-4),  # a word to YAML
        ("rate", "3", 3.0),
        ("name", "2024", "2024"),  # a number to YAML
        ("name", "yes", "yes"),  # a truth value to YAML
        ("name", "a: b: c", "a: b: c"),  # not YAML
        ("fast", "true", True),
        ("sizes", "[1, 2, 3]", (1, 2, 3)),
        ("sizes", "[]", ()),
        ("pair", "[3, 1]", (3, 1.0)),
        ("limit", "null", None),
        ("limit", "7", 7),
        ("folder", "null", None),
        ("folder", "007", "007"),
    ],
)
def test_typed_on_the_command_line(key: str, text: str, expected: object) -> None:
    settings = Settings(Config, "stage")
    settings.update_text(key, text, "override")
    value = getattr(settings.build(), key)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("key", "text", "wanted"),
    [
        ("steps", "2.5", "int"),
        ("steps", "true", "int"),
        ("rate", "fast", "float"),
        ("rate", "nan", "float"),
        ("fast", "1", "bool"),
        ("sizes", "[1, x]", "list of int"),
        ("pair", "[1]", "[int, float]"),
        ("limit", "x", "int or null"),
    ],
)
def test_wrong_type_names_key_given_and_expected(key: str, text: str, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(Config, "stage").update_text(key, text, "override")
    assert str(caught.value) == f"override: stage.{key} must be {wanted}, given {text!r}"


def test_a_file_is_held_to_the_types_more_strictly_than_the_command_line() -> None:
    with pytest.raises(ConfigError, match=r"recipe\.yaml: stage\.name must be str, given 2024"):
        Settings(Config, "stage").update({"name": 2024}, "recipe.yaml")


def test_later_layers_win_and_defaults_stay() -> None:
    settings = Settings(Config, "stage")
    settings.update({"steps": 2, "rate": 0.5}, "recipe")
    settings.update({"steps": 3}, "scale")
    assert settings.build() == Config(steps=3, rate=0.5)


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown key of stage 'stepps'; did you mean 'steps'"):
        Settings(Config, "stage").update({"stepps": 2}, "recipe")


def test_a_value_that_the_class_refuses() -> None:
    settings = Settings(Config, "stage")
    settings.update({"steps": -1}, "recipe")
    with pytest.raises(ConfigError, match="stage: steps must not be negative"):
        settings.build()


@settings
class Base:
    kind: Literal["near", "far"] = "near"
    """Which [ours]."""
    share: Share = 0.5
    """How much, on
    two lines [paper]."""
    low: Natural = 0
    """At least."""


@settings
class Checked(Base):
    high: Natural = 9
    """At most."""
    steps: NonEmpty[Count] | None = None
    name: str

    @model_validator(mode="after")
    def _rise(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}")
        return self


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "fra"}, "unknown kind 'fra'; did you mean 'far'? Known: far, near"),
        ({"kind": 3}, "kind must be near or far, given 3"),
        ({"share": 1.5}, "share must be float in [0, 1], given 1.5"),
        ({"share": True}, "share must be float in [0, 1], given True"),
        ({"share": float("inf")}, "share must be float in [0, 1], given inf"),
        ({"low": 1.0}, "low must be int of at least 0, given 1.0"),
        ({"steps": [3, 0]}, "steps must be non-empty list of int of at least 1 or null, given [3, 0]"),
        ({"steps": ()}, "steps must be non-empty list of int of at least 1 or null, given ()"),
        ({"low": 3, "high": 2}, "low=3 is above high=2"),
        ({"shar": 0.1}, "unknown key 'shar'; did you mean 'share'? Known: high, kind, low, name, share, steps"),
    ],
)
def test_a_class_refuses_what_makes_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Checked(name="a", **values)
    assert str(caught.value) == message
    with pytest.raises(ConfigError, match="'name' is not set, and has no default"):
        Checked()  # type: ignore[call-arg]


def test_a_class_is_a_frozen_dataclass() -> None:
    made = Checked(name="a", share=1, steps=[2, 3])  # type: ignore[arg-type]
    assert asdict(made) == {"kind": "near", "share": 1.0, "low": 0, "high": 9, "steps": (2, 3), "name": "a"}
    assert type(made.share) is float
    assert pickle.loads(pickle.dumps(made)) == made == replace(made, low=0)
    with pytest.raises(ConfigError, match="low=10 is above"):
        replace(made, low=10)
    with pytest.raises(FrozenInstanceError):
        made.low = 1  # type: ignore[misc]


def test_what_belongs_together_names_the_layers() -> None:
    given = Settings(Checked, "stage")
    given.update({"name": "a", "low": 8}, "a/recipe.yaml", layer="recipe")
    given.update_text("high", "5", "stage.high=5", layer="override")
    with pytest.raises(ConfigError) as caught:
        given.build()
    assert str(caught.value) == "stage: low=8 is above high=5 (low: recipe; high: override)"
    assert given.origins == {"name": "recipe", "low": "recipe", "high": "override"}


def test_a_word_that_is_not_known_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"scale\.yaml: stage: unknown kind 'farr'; did you mean 'far'"):
        Settings(Checked, "stage").update({"kind": "farr"}, "scale.yaml")


def test_numbers_that_yaml_takes_for_words() -> None:
    given = Settings(Checked, "stage")
    given.update({"share": "1e-3", "name": "1e-3"}, "recipe")
    assert given.values == {"share": 1e-3, "name": "1e-3"}


def test_meaning_of_fields() -> None:
    assert field_docs(Checked) == {
        "kind": "Which [ours].",
        "share": "How much, on two lines [paper].",
        "low": "At least.",
        "high": "At most.",
    }


def test_types_in_words() -> None:
    assert describe(tuple[float, ...]) == "list of float"
    assert describe(str | None) == "str or null"
