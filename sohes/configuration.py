"""Typed settings: configuration classes, and values for them from recipes, scales and the command line.

A configuration class is a dataclass under `@settings`: pydantic checks types, bounds and what belongs together. The
text below a field says what it means and, in brackets at its end, where its default comes from.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen, MultipleOf
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated
from pydantic_core import ErrorDetails

from sohes.errors import ConfigError, unknown_name

T = TypeVar("T")

# an int fits a float; beyond that nothing is converted
_STRICT = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Cover = Annotated[float, Field(gt=0.5, le=1)]  # a lower one would let two masks be parts of each other
NonEmpty = Annotated[tuple[T, ...], Field(min_length=1, strict=False)]  # lists are taken as well


@typing.dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass whose values are checked when it is built.

    Raises:
        ConfigError: on construction, for a value of the wrong type, out of bounds, or at odds with another.
    """
    made: Any = validated(cls, frozen=True, kw_only=True, config=_STRICT)
    init = made.__init__

    @functools.wraps(init)
    def checked(self: Any, **values: Any) -> None:
        try:
            init(self, **values)
        except ValidationError as error:
            raise ConfigError(_complaint(made, values, error)) from None

    made.__init__ = checked
    return typing.cast(type[T], made)


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


@functools.cache
def field_types(cls: Any) -> dict[str, Any]:
    """Annotation of each field, bounds included."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def field_docs(cls: type[Any]) -> dict[str, str]:
    """What each field means: the text below it, in the class or a base of it."""
    found: dict[str, str] = {}
    for base in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for statement, below in zip(body.body, body.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                match below:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        found[statement.target.id] = " ".join(text.split())
    return found


def describe(expected: Any) -> str:
    """A type with its bounds in words, for messages.

    >>> describe(NonEmpty[Share]), describe(Count | None), describe(Positive)
    ('non-empty list of float in [0, 1]', 'int of at least 1 or null', 'float above 0')
    """
    if expected is type(None):
        return "null"
    origin, parts = typing.get_origin(expected), typing.get_args(expected)
    if origin is Annotated:
        return _bounded(describe(parts[0]), parts[1:])
    if origin is Literal:
        return " or ".join(map(str, parts))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(part) for part in parts)
    if origin is tuple:
        if parts[-1] is Ellipsis:
            return f"list of {describe(parts[0])}"
        return f"[{', '.join(describe(part) for part in parts)}]"
    return str(expected.__name__)


def _bounded(name: str, extras: Iterable[Any]) -> str:
    """A type's name with the bounds that it is annotated with."""
    words: dict[type[Any], str] = {}
    for limit in (limit for extra in extras for limit in getattr(extra, "metadata", [extra])):
        match limit:
            case Ge(ge=low):
                words[Ge] = f"[{low}"
            case Gt(gt=low):
                words[Gt] = f"({low}"
            case Le(le=high):
                words[Le] = f"{high}]"
            case Lt(lt=high):
                words[Lt] = f"{high})"
            case MultipleOf(multiple_of=step):
                words[MultipleOf] = f", a multiple of {step}"
            case MinLen():
                name = f"non-empty {name}"
    start, end = words.get(Ge) or words.get(Gt), words.get(Le) or words.get(Lt)
    if start and end:
        name += f" in {start}, {end}"
    elif start:
        name += f" {'of at least' if Ge in words else 'above'} {start[1:]}"
    return name + words.get(MultipleOf, "")


def _choices(expected: Any) -> list[str]:
    """All words that a type allows by name."""
    if typing.get_origin(expected) is Literal:
        return [part for part in typing.get_args(expected) if isinstance(part, str)]
    return [word for part in typing.get_args(expected) for word in _choices(part)]


def _complaint(cls: Any, values: Mapping[str, Any], error: ValidationError) -> str:
    """What is wrong with the values of a class; one thing of several."""
    errors = error.errors(include_url=False)
    first, expected = errors[0], field_types(cls)
    if not first["loc"]:
        return _own_words(first)
    key = str(first["loc"][0])
    if first["type"] == "missing":
        return f"'{key}' is not set, and has no default"
    if key not in expected:
        return unknown_name("key", key, expected)
    return _field_complaint(key, expected[key], values.get(key), [one for one in errors if one["loc"][0] == key])


def _field_complaint(key: str, expected: Any, given: Any, errors: Sequence[ErrorDetails]) -> str:
    for error in errors:
        if error["type"] == "literal_error" and isinstance(error["input"], str):
            return unknown_name(key, error["input"], _choices(expected))
        if error["type"] == "value_error":
            return _own_words(error)
    return f"{key} must be {describe(expected)}, given {given!r}"


def _own_words(error: ErrorDetails) -> str:
    """The message of a check of ours, or pydantic's."""
    return str(error.get("ctx", {}).get("error", error["msg"]))


@functools.cache
def _adapter(cls: Any, key: str) -> TypeAdapter[Any]:
    return TypeAdapter(field_types(cls)[key], config=_STRICT)


def _forms(value: Any) -> tuple[Any, Any]:
    """A value with lists as tuples, and that with words that read as numbers as those: YAML takes 1e-4 for a word."""
    if isinstance(value, list | tuple):
        items = [_forms(item) for item in value]
        return tuple(plain for plain, _ in items), tuple(number for _, number in items)
    try:
        return value, float(value) if isinstance(value, str) else value
    except ValueError:
        return value, value


class Settings:
    """Values for the fields of a dataclass, given in layers; each layer overrides the one before.

    Attributes:
        values: of the fields that are set.
        origins: for each of them the layer that set it last.
    """

    def __init__(self, cls: Any, name: str) -> None:
        self.cls, self.name = cls, name
        self.types = field_types(cls)
        self.presets: Mapping[str, Mapping[str, Any]] = getattr(cls, "PRESETS", {})
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self._typed: set[str] = set()

    def takes(self, key: str) -> bool:
        """Whether `key` is a field, or "preset" where the class has presets."""
        return key in self.types or (key == "preset" and bool(self.presets))

    def update(self, values: Mapping[str, Any], origin: str, *, layer: str = "") -> None:
        """Take `values` from a file or another program.

        A key "preset" stands for all values of a preset of the class; the other values override those.

        Args:
            origin: where they come from, for messages.
            layer: the same, short, for `origins`; `origin` if empty.

        Raises:
            ConfigError: an unknown key, or a value of the wrong type or out of bounds.
        """
        check_keys({key: value for key, value in values.items() if not self.takes(key)}, self.types, origin, self._kind)
        for key in sorted(values, key=lambda key: key != "preset"):
            self._take(key, values[key], [values[key]], origin, layer)

    def update_text(self, key: str, text: str, origin: str, *, layer: str = "") -> None:
        """Take one value typed on the command line: read as YAML, or as it stands where the field is a word."""
        if not self.takes(key):
            check_keys({key: text}, self.types, origin, self._kind)
        try:
            candidates = [yaml.safe_load(text), text]
        except yaml.YAMLError:
            candidates = [text]
        self._take(key, text, candidates, origin, layer)
        self._typed.add(key)

    def build(self) -> Any:
        """The dataclass instance.

        Raises:
            ConfigError: the class refuses the values; what the message names is followed by what set it. Or a value was
                typed that has no effect beside the others, by the ONLY_WITH of the class: field to (other field, its
                value). In a file it may stand, for other values of the other field.
        """
        try:
            built = self.cls(**self.values)
        except (TypeError, ValueError, ConfigError) as error:
            named = [key for key in self.origins if re.search(rf"\b{key}\b", str(error))]
            origins = "; ".join(f"{key}: {self.origins[key]}" for key in named)
            raise ConfigError(f"{self.name}: {error}" + (f" ({origins})" if origins else "")) from error
        for key, (other, value) in getattr(self.cls, "ONLY_WITH", {}).items():
            given = getattr(built, other)
            if key in self._typed and given != value and self.values[key] != getattr(self.cls, key):
                raise ConfigError(
                    f"{self.name}.{key} has no effect with {other}={given}, only with {other}={value}; leave one away"
                )
        return built

    @property
    def _kind(self) -> str:
        return f"key of {self.name}"

    def _take(self, key: str, given: Any, candidates: Sequence[Any], origin: str, layer: str) -> None:
        """Set a field to the first candidate that fits."""
        if key not in self.types:
            return self._take_preset(given, origin, layer)
        complaint = ""
        for value in (form for candidate in candidates for form in _forms(candidate)):
            try:
                self.values[key] = _adapter(self.cls, key).validate_python(value)
                self.origins[key] = layer or origin
                return
            except ValidationError as error:
                errors = error.errors(include_url=False)
                complaint = complaint or _field_complaint(key, self.types[key], given, errors)
        raise ConfigError(f"{origin}: {self.name}{'.' if complaint.startswith(f'{key} ') else ': '}{complaint}")

    def _take_preset(self, name: Any, origin: str, layer: str) -> None:
        if name not in self.presets:
            raise ConfigError(f"{origin}: {unknown_name(f'preset of {self.name}', str(name), self.presets)}")
        self.values |= self.presets[name]
        self.origins |= dict.fromkeys(self.presets[name], f"{layer or origin}, preset {name}")
