"""Typed settings: a stage's configuration dataclass, and values for it from recipes, scales and the command line."""

from __future__ import annotations

import dataclasses
import importlib
import math
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from sohes.errors import ConfigError, unknown_name


class _Mismatch(Exception):
    """A value does not fit the type it should have."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; an empty file is an empty mapping.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({error})") from error
    return mapping(value, f"{path}")


def mapping(value: Any, origin: str) -> dict[str, Any]:
    """Check that `value` is a mapping with words as keys; None stands for an empty one."""
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{origin}: expected a mapping of names to values, given {value!r}")
    return value


def check_keys(given: Mapping[str, Any], allowed: typing.Iterable[str], origin: str, kind: str = "key") -> None:
    """Refuse keys that are not in `allowed`, naming the nearest one that is."""
    known = set(allowed)
    for key in given:
        if key not in known:
            raise ConfigError(f"{origin}: {unknown_name(kind, key, known)}")


def load_function(run: str, stage: str) -> Callable[..., Any]:
    """Import a stage function from "module:function".

    Raises:
        ConfigError: the module cannot be imported or has no such function.
    """
    module_name, _, function_name = run.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"stage {stage}: cannot import {module_name} ({error}); see `sohes doctor`") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"stage {stage}: {module_name} has no function '{function_name}' (given as '{run}')")
    return typing.cast(Callable[..., Any], function)


def config_class(function: Callable[..., Any], stage: str) -> type[Any]:
    """The dataclass that annotates the `config` parameter of a stage function."""
    found = typing.get_type_hints(function).get("config")
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ConfigError(f"stage {stage}: parameter 'config' of its function is not annotated with a dataclass")
    return found


def describe(expected: Any) -> str:
    """A type in words, for messages.

    >>> describe(tuple[float, ...]), describe(int | None)
    ('list of float', 'int or null')
    """
    if expected is type(None):
        return "null"
    if typing.get_origin(expected) in (typing.Union, types.UnionType):
        return " or ".join(describe(part) for part in typing.get_args(expected))
    if typing.get_origin(expected) is tuple:
        parts = typing.get_args(expected)
        if parts[-1] is Ellipsis:
            return f"list of {describe(parts[0])}"
        return f"[{', '.join(describe(part) for part in parts)}]"
    return str(expected.__name__)


def coerce(value: Any, expected: Any) -> Any:
    """`value` as the type `expected`: int, float, str, bool, a tuple of those, or a union.

    An int fits a float field, and so does a word that reads as a number, because YAML takes 1e-4 for a word.
    """
    origin, parts = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        for part in parts:
            try:
                return coerce(value, part)
            except _Mismatch:
                continue
    elif origin is tuple and isinstance(value, list | tuple):
        if parts[-1] is Ellipsis:
            return tuple(coerce(item, parts[0]) for item in value)
        if len(parts) == len(value):
            return tuple(coerce(item, part) for item, part in zip(value, parts, strict=True))
    elif expected is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            raise _Mismatch from None
        if math.isfinite(number):
            return number
    elif expected is type(None) and value is None:
        return None
    elif expected in (int, str, bool) and type(value) is expected:
        return value
    raise _Mismatch


class Settings:
    """Values for the fields of a dataclass, given in layers; each layer overrides the one before."""

    def __init__(self, cls: type[Any], name: str) -> None:
        self.cls, self.name = cls, name
        hints = typing.get_type_hints(cls)
        self.types = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
        self.presets: Mapping[str, Mapping[str, Any]] = getattr(cls, "PRESETS", {})
        self.values: dict[str, Any] = {}

    def takes(self, key: str) -> bool:
        """Whether `key` is a field, or "preset" where the class has presets."""
        return key in self.types or (key == "preset" and bool(self.presets))

    def update(self, values: Mapping[str, Any], origin: str) -> None:
        """Take `values` from a file or another program; `origin` names it in messages.

        A key "preset" stands for all values of a preset of the class; the other values override those.

        Raises:
            ConfigError: an unknown key, or a value of the wrong type.
        """
        if self.takes("preset") and "preset" in values:
            self._take_preset(values["preset"], origin)
            values = {key: value for key, value in values.items() if key != "preset"}
        check_keys(values, self.types, origin, f"key of {self.name}")
        for key, value in values.items():
            try:
                self.values[key] = coerce(value, self.types[key])
            except _Mismatch:
                raise self._mismatch(key, value, origin) from None

    def update_text(self, key: str, text: str, origin: str) -> None:
        """Take one value typed on the command line: read as YAML, or as it stands where the field is a word."""
        if self.takes("preset") and key == "preset":
            return self._take_preset(text, origin)
        check_keys({key: text}, self.types, origin, f"key of {self.name}")
        try:
            candidates = [yaml.safe_load(text), text]
        except yaml.YAMLError:
            candidates = [text]
        for value in candidates:
            try:
                self.values[key] = coerce(value, self.types[key])
                return
            except _Mismatch:
                continue
        raise self._mismatch(key, text, origin)

    def build(self) -> Any:
        """The dataclass instance.

        Raises:
            ConfigError: the class refuses the values.
        """
        try:
            return self.cls(**self.values)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.name}: {error}") from error

    def _take_preset(self, name: Any, origin: str) -> None:
        if name not in self.presets:
            raise ConfigError(f"{origin}: {unknown_name(f'preset of {self.name}', name, self.presets)}")
        self.values |= self.presets[name]

    def _mismatch(self, key: str, value: Any, origin: str) -> ConfigError:
        expected = describe(self.types[key])
        return ConfigError(f"{origin}: {self.name}.{key} must be {expected}, given {value!r}")
