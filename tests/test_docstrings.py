"""The examples in docstrings give what they say, and the notes that docstrings cite are there."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("sohes", "slurm", "results", "benchmarks", "transfer")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.transfer if name.startswith("transfer") else ()) for name in MODULES]
)
def test_examples(name: str) -> None:
    if name.startswith("transfer"):
        pytest.importorskip("mmcv")
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0


PACKAGES = ("sohes", "slurm", "results", "benchmarks", "transfer")
CITED = re.compile(r"(?:([\w/]+/)?README(?:\.md)?) §(\d+)(?:(?:,| and| to) §?(\d+))*(?: of `(\w+)`)?")


def test_cited_sections_exist() -> None:
    missing, count = [], 0
    for path in (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))):
        for found in CITED.finditer(" ".join(path.read_text(encoding="utf-8").split())):
            folder, *numbers, room = found.groups()
            if folder or room:
                readme = ROOT / (folder or f"sohes/{room}") / "README.md"
            else:  # of the room that the module is in
                readme = next(up / "README.md" for up in path.parents if (up / "README.md").exists())
            text = readme.read_text(encoding="utf-8")
            count += 1
            missing += [
                f"{path.relative_to(ROOT)} cites {found[0]}"
                for number in filter(None, numbers)
                if not re.search(rf"^## {number}\. ", text, flags=re.MULTILINE)
            ]
    assert count > 50
    assert not missing
