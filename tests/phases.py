"""Phases 2 and 3, tiny: what they start from, how they are run, and what their ends have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sohes.backbones.timm_folder import save_backbone_folder
from sohes.correct.stage import CorrectConfig, correct
from sohes.data.coco import read_coco
from sohes.data.label_store import LabelWriter
from sohes.data.scenes.scene import write_scenes
from sohes.instruct.stage import InstructConfig, instruct
from sohes.segmenters.entity import save_segmenter
from sohes.segmenters.segmenter import segmenter_kind
from tests.engine.toy import assert_equal, curves, end
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


TINY = {"mask2former": "pyramid", "eomt": "eomt"}  # the setting `segmenter`, and a tiny one of the kind


def prepare(folder: Path, segmenter: str = "mask2former") -> Path:
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
    model = tiny_segmenter(TINY[segmenter])
    save_backbone_folder(folder / "backbone", model.vit, PROVENANCE)
    save_segmenter(folder / "segmenter", model, PROVENANCE)
    return folder


def instruct_config(start: Path, **changes: Any) -> InstructConfig:
    """Phase 2 of the kind of segmenter that `prepare` made."""
    kind = "eomt" if "eomt" in segmenter_kind(start / "segmenter") else "mask2former"
    return InstructConfig(**COMMON | INSTRUCT | {"segmenter": kind} | changes)


def run(phase: str, start: Path, out: Path, **changes: Any) -> Path:
    """Phase 2 ("instruct") or 3 ("correct") from what `prepare` made, of the same kind; returns `out`."""
    inputs = {name: start / name for name in ("images", "labels", "watch", "backbone", "segmenter")}
    if phase == "instruct":
        instruct(instruct_config(start, **changes), inputs, out)
    else:
        correct(CorrectConfig(**COMMON | CORRECT | changes), inputs, out)
    return out


def results(out: Path) -> dict[str, Tensor]:
    """All weights that a phase leaves."""
    found = {}
    for folder in ("segmenter", "student"):
        path = out / folder / "model.safetensors"
        if path.exists():
            found |= {f"{folder}.{name}": value for name, value in load_file(path).items()}
    return found


def assert_same_end(out: Path, expected: Path) -> None:
    """Weights, checkpoint, history and pictures are equal to the bit."""
    found, wanted = results(out), results(expected)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    assert_equal(end(out), end(expected))
    assert curves(out) == curves(expected)
    assert _pictures(out) == _pictures(expected)
    assert (out / "curves.png").stat().st_size > 1000


def _pictures(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "watch").iterdir()}
