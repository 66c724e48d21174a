"""Help pages: each ends with an example, and the examples work."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from results import aggregate
from slurm import launch
from sohes import cli
from sohes.backbones.weights import PACKAGED
from sohes.data.scenes.scene import write_scenes


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser and those of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


COMMANDS = {
    "sohes": cli.make_parser(),
    "python slurm/launch.py": launch.make_parser(),
    "python -m results.aggregate": aggregate.make_parser(),
}
PAGES = {page.prog: page for command in COMMANDS.values() for page in parsers(command)}


def example(page: argparse.ArgumentParser) -> tuple[str, list[str]]:
    """The command of a page's example, and its arguments."""
    text = page.format_help().rstrip().splitlines()
    assert text[-2] == "example:", page.prog
    line = text[-1].strip()
    command = next(name for name in COMMANDS if line.startswith(f"{name} "))
    return command, shlex.split(line.removeprefix(command))


def test_all_pages_are_looked_at() -> None:
    assert {"sohes", "sohes explore", "sohes labels export", "sohes data prepare", "sohes doctor"} < set(PAGES)
    assert {"launch.py", "python -m results.aggregate"} < set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_every_page_ends_with_an_example_that_parses(name: str) -> None:
    command, arguments = example(PAGES[name])
    assert name.split()[-1] in [*arguments, *command.split(), "launch.py", "sohes"]
    if "--help" in arguments:
        with pytest.raises(SystemExit, match="0"):
            COMMANDS[command].parse_args(arguments)
    else:
        assert COMMANDS[command].parse_args(arguments)


def test_examples_on_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order in which people come to them, as printed but for the weights."""
    monkeypatch.chdir(tmp_path)
    write_scenes(tmp_path, train=3, val=1, size=64, seed=0)
    (tmp_path / "train").rename("photos")
    truth = json.loads((tmp_path / "train.json").read_text().replace("train/", "photos/"))
    (tmp_path / "coco.json").write_text(json.dumps(truth))
    assert PACKAGED in example(PAGES["sohes explore"])[1]
    for name in ("explore", "labels", "labels summary", "labels export", "labels show", "evaluate", "data list"):
        arguments = ["random:test_vit" if word == PACKAGED else word for word in example(PAGES[f"sohes {name}"])[1]]
        assert cli.main(arguments) == 0, name
    assert {path.name for path in tmp_path.iterdir()} >= {"labels", "labels.json", "overlays", "scores"}
    assert launch.main(example(PAGES["launch.py"])[1]) == 0
