"""What phases 2 and 3 start from, tiny, made once; and a way to stop them at a step."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sohes.backbones.timm_folder import save_backbone_folder
from sohes.correct.stage import CorrectConfig, correct
from sohes.data.coco import read_coco
from sohes.data.label_store import LabelWriter
from sohes.data.scenes.scene import write_scenes
from sohes.engine.hooks import SeedHook
from sohes.instruct.stage import InstructConfig, instruct
from sohes.segmenters.entity import save_segmenter
from tests.segmenters.tiny import PROVENANCE, tiny_segmenter

STEPS = 6
COMMON: dict[str, Any] = {
    "iterations": STEPS,
    "batch_size": 2,
    "crop_px": 64,
    "scale_min": 0.8,
    "scale_max": 1.2,
    "min_area_px": 8,
    "points": 32,
    "clip_norm": 1.0,
    "lr": 1e-3,
    "warmup": 2,
    "checkpoint_every": 2,
    "watch_every": 3,
    "workers": 0,
    "bf16": False,  # some tests compare up to rounding, and that of bfloat16 is coarse
}
INSTRUCT: dict[str, Any] = {"queries": 6, "hidden_dim": 32, "encoder_layers": 1, "decoder_layers": 1}
CORRECT: dict[str, Any] = {
    "tau_init": 0.1,
    "tau_min": 0.0,
    "teacher_min_area_px": 1,
    "teacher_warmup": 2,
    "tau_every": 2,
}


def prepare(folder: Path) -> Path:
    """Three scenes of 64 px and two held-out ones with their forests as labels, a backbone and a segmenter."""
    write_scenes(folder / "images", train=3, val=2, size=64)
    for split, name in (("train", "labels"), ("val", "watch")):
        images = read_coco(folder / "images" / f"{split}.json")
        with LabelWriter(folder / name, header={}) as writer:
            for item in images.items:
                forest = images.forest(item.id)
                forest.attributes.clear()
                writer.add(item.id, str(item.path), forest)
    torch.manual_seed(0)
    model = tiny_segmenter()
    save_backbone_folder(folder / "backbone", model.vit, PROVENANCE)
    save_segmenter(folder / "segmenter", model, PROVENANCE)
    return folder


def run(phase: str, start: Path, out: Path, **changes: Any) -> None:
    """Phase 2 ("instruct") or 3 ("correct") from what `prepare` made."""
    inputs = {name: start / name for name in ("images", "labels", "watch", "backbone", "segmenter")}
    if phase == "instruct":
        instruct(InstructConfig(**COMMON | INSTRUCT | changes), inputs, out)
    else:
        correct(CorrectConfig(**COMMON | CORRECT | changes), inputs, out)


def stop_at(step: int, how: Callable[[], None]) -> Callable[..., None]:
    """A replacement of the seed hook's `before_train_iter` that does `how` at the start of that step, once."""
    real = SeedHook.before_train_iter
    done = []

    def before_train_iter(self: SeedHook, run: Any, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        if batch_idx == step and not done:
            done.append(step)
            how()
        real(self, run, batch_idx, *args, **kwargs)

    return before_train_iter


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def results(out: Path) -> dict[str, Tensor]:
    """All weights that a phase leaves."""
    found = {}
    for folder in ("segmenter", "student"):
        path = out / folder / "model.safetensors"
        if path.exists():
            found |= {f"{folder}.{name}": value for name, value in load_file(path).items()}
    return found


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both phases start from."""
    return prepare(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="session")
def undisturbed(start: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each phase after a run without interruption."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for phase in ("instruct", "correct"):
        run(phase, start, folder / phase)
    return {phase: folder / phase for phase in ("instruct", "correct")}
