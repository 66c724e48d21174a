"""Messages name the nearest thing that exists."""

from __future__ import annotations

import doctest

import pytest

from sohes import errors
from sohes.errors import ConfigError, DataError, SohesError, WeightsError, unknown_name


@pytest.mark.parametrize("kind", [ConfigError, DataError, WeightsError])
def test_every_error_is_caught_as_one(kind: type[SohesError]) -> None:
    with pytest.raises(SohesError, match="what to do"):
        raise kind("what to do")


def test_the_nearest_name_and_all_names() -> None:
    message = unknown_name("stage", "exlpore", ["instruct", "explore"])
    assert message == "unknown stage 'exlpore'; did you mean 'explore'? Known: explore, instruct"


def test_nothing_near() -> None:
    assert unknown_name("stage", "xyz", ["explore"]) == "unknown stage 'xyz'. Known: explore"


def test_a_long_list_is_not_printed() -> None:
    names = [f"vit_{index}" for index in range(31)]
    assert unknown_name("model", "vit_30x", names) == "unknown model 'vit_30x'; did you mean 'vit_30'?"
    assert "Known: " in unknown_name("model", "vit_30x", names[:30])


def test_examples_in_the_documentation() -> None:
    result = doctest.testmod(errors)
    assert result.attempted
    assert not result.failed
