"""Who imports whom: data flows one way, so a room imports only what stands left of it. Lazy imports count as well."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOUNDATION = (
    "errors",
    "files",
    "help",
    "progress",
    "records",
    "configuration",
    "settings_table",
    "plotting",
    "installation",
)
ROOMS = (
    *("rle", "masks", "layers", "data", "backbones", "mm", "engine", "segmenters", "evaluation"),
    *("probes", "explore", "instruct", "correct", "methods", "baselines", "doctor", "commands", "cli"),
)
ORDER = [*FOUNDATION, *ROOMS]
SUITE = {  # package outside the library -> what it may import of the others
    "results": set(),
    "slurm": set(),
    "transfer": set(),
    "benchmarks": {"transfer", "slurm", "results"},
}
GALLERY = {"results.report.gallery", "results.report.panels"}  # show forests, so they read label stores
MM = {"mmcv", "mmseg", "mmdet"}  # mmengine is the trainer's, and pure Python
# a forest draws itself when it is asked to, and what draws it opens images
EXCEPTIONS = {("sohes.masks", "sohes.data.show")}
# `sohes tables` runs from a checkout, which it makes sure of before it imports this
TABLES = {("sohes.commands.tables", "results.aggregate")}


def imports(package: str) -> Iterator[tuple[str, str]]:
    """Module and module that it imports, of every file of a package."""
    for file in sorted((ROOT / package).rglob("*.py")):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((module, name.name) for name in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}: relative import"
                assert node.module is not None
                yield from ((module, named(node.module, name.name)) for name in node.names)


def named(package: str, name: str) -> str:
    """What `from package import name` imports: a module of that name, or something out of `package`."""
    module = f"{package}.{name}"
    is_module = (ROOT / module.replace(".", "/")).with_suffix(".py").exists() or package == "sohes"
    return module if is_module else package


def room(module: str) -> str:
    """`sohes.data.coco` is of the room `data`."""
    return module.split(".")[1]


def test_a_room_imports_only_what_stands_left_of_it() -> None:
    inside = [pair for pair in imports("sohes") if pair[1].startswith("sohes.") and pair[0] != "sohes.__init__"]
    assert len(inside) > 300
    wrong = [
        f"{module} imports {other}"
        for module, other in inside
        if other != "sohes.__version__"
        and (module, other) not in EXCEPTIONS
        and ORDER.index(room(other)) > ORDER.index(room(module))
    ]
    assert not wrong


@pytest.mark.parametrize("package", SUITE)
def test_packages_of_the_suite(package: str) -> None:
    others = {other.split(".")[0] for _, other in imports(package)} & set(SUITE) - {package}
    assert others <= SUITE[package]


def test_the_library_knows_nothing_of_the_suite() -> None:
    assert {pair for pair in imports("sohes") if pair[1].split(".")[0] in SUITE} == TABLES


def test_results_imports_the_foundation_alone() -> None:
    found = {(module, room(other)) for module, other in imports("results") if other.startswith("sohes.")}
    assert found
    rooms = {name for module, name in found if module not in GALLERY}
    assert rooms <= set(FOUNDATION)
    assert {name for _, name in found} <= {*FOUNDATION, "rle", "masks", "data"}


def test_mmcv_and_what_needs_it_stay_in_two_places() -> None:
    users = {
        module.rsplit(".", 1)[0]
        for package in ("sohes", "slurm", "results")
        for module, other in imports(package)
        if other.split(".")[0] in MM
    }
    assert users <= {"sohes.mm"}


def test_no_two_classes_have_one_name() -> None:
    places: dict[str, list[str]] = {}
    for package in ("sohes", *SUITE):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    places.setdefault(node.name, []).append(str(file.relative_to(ROOT)))
    assert len(places) > 200
    assert not {name: files for name, files in places.items() if len(files) > 1}
