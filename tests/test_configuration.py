"""Values for configuration dataclasses: types, messages, layers."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from sohes.configuration import Settings, describe
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


def test_types_in_words() -> None:
    assert describe(tuple[float, ...]) == "list of float"
    assert describe(str | None) == "str or null"
