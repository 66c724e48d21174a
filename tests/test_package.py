"""What `pip install` brings and `import sohes` costs."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import yaml

import sohes

ROOT = Path(__file__).parents[1]


def test_importing_loads_no_library() -> None:
    heavy = (
        "torch",
        "numpy",
        "timm",
        "transformers",
        "huggingface_hub",
        "PIL",
        "matplotlib",
        "cv2",
        "importlib.metadata",
    )
    code = f"import sys, sohes; sohes.__version__; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_type_checkers_are_told_every_public_name_and_where_it_is() -> None:
    tree = ast.parse((ROOT / "sohes" / "__init__.py").read_text())
    told: dict[str, str] = {}
    for block in (node for node in tree.body if isinstance(node, ast.If)):
        for line in (node for node in block.body if isinstance(node, ast.ImportFrom)):
            for name in line.names:
                assert name.asname == name.name, "a strict checker takes only `x as x` for public"
                told[name.name] = str(line.module)
    assert told == sohes._PUBLIC


def test_the_wheel_holds_the_library_alone(tmp_path: Path) -> None:
    """`results`, `slurm` and others are names that different distributions own."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("sohes", "benchmarks", "results", "slurm", "transfer", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "records", "demo"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    command += ["--wheel-dir", str(tmp_path / "wheels"), str(tmp_path)]
    subprocess.run(command, check=True)
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    assert wheel.name == f"sohes-{sohes.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names} == {"sohes", f"sohes-{sohes.__version__}.dist-info"}
    wanted = ["sohes/py.typed", *(str(path.relative_to(ROOT)) for path in (ROOT / "sohes").rglob("README.md"))]
    assert names >= {*wanted, *(str(path.relative_to(ROOT)) for path in (ROOT / "sohes").rglob("*.py"))}


def test_the_citation_is_of_this_version() -> None:
    """Field names as in version 1.2.0 of the Citation File Format, those that are used here."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    required = {"cff-version", "message", "title", "authors"}
    assert required <= set(citation) <= required | {
        "type", "abstract", "version", "license", "keywords", "preferred-citation"
    }  # fmt: skip
    assert citation["version"] == sohes.__version__
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors"} <= set(paper) <= {
        "type", "title", "authors", "collection-title", "year", "url", "identifiers"
    }  # fmt: skip
    assert [author["family-names"] for author in paper["authors"]] == (
        ["Cao", "Gu", "Kuen", "Tan", "Zhang", "Zhao", "Nenkova", "Gui", "Sun", "Wang"]
    )


def test_hooks_before_a_commit_use_the_same_ruff() -> None:
    pinned = re.search(r"^ruff==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert pinned is not None
    assert [repo["rev"] for repo in hooks if "ruff" in repo["repo"]] == [f"v{pinned[1]}"]
