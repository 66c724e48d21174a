"""The values of the authors' own code; `golden/README.md` says how they were made and how exact they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sohes.data.views import View
from sohes.engine.schedules import cosine
from sohes.methods.leopart.alignment import align
from sohes.methods.leopart.assignment import sinkhorn
from sohes.methods.leopart.foreground import blurred, foreground_mask
from sohes.methods.leopart.losses import SharedBoxes, spatial_loss
from sohes.methods.leopart.settings import LeopartConfig
from sohes.methods.leopart.views import shared_boxes

CROPS, IMAGES, PATCH_PX = 6, 2, 16


def golden(name: str) -> dict[str, Any]:
    with np.load(Path(__file__).parent / "golden" / f"{name}.npz") as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}


@pytest.mark.parametrize(
    ("case", "iterations"),
    [("small", 3), ("medium", 3), ("skewed", 3), ("small_q_0_iterations", 0), ("small_q_10_iterations", 10)],
)
def test_sinkhorn(case: str, iterations: int) -> None:
    values = golden("sinkhorn")
    logits, expected = values[f"{case.split('_')[0]}_logits"], values[case if "_q_" in case else f"{case}_q"]
    found = sinkhorn(logits, epsilon=float(values["epsilon"]), iterations=iterations)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_crop_boxes() -> None:
    values = golden("crop_boxes")
    for image, rectangles in enumerate(values["crop_boxes"].double().tolist()):
        sides = [224] * 2 + [96] * 4
        views = [
            View(x0, y0, x1 - x0, y1 - y0, (side, side), False)
            for (x0, y0, x1, y1), side in zip(rectangles, sides, strict=True)
        ]
        in_global, in_all = shared_boxes(views)
        torch.testing.assert_close(in_global, values["gc"][image], atol=1e-4, rtol=0)
        torch.testing.assert_close(in_all, values["all"][image], atol=1e-4, rtol=0)


@pytest.mark.parametrize("percent", [40, 60, 65])
def test_attention_mask(percent: int) -> None:
    values = golden("attention_mask")
    attention = values["attention"][:, None]
    torch.testing.assert_close(blurred(attention), values["blurred"], atol=1e-6, rtol=0)
    assert torch.equal(foreground_mask(attention, percent / 100), values[f"mask_{percent}"])


def test_schedules() -> None:
    """With our defaults."""
    values, defaults = golden("schedules"), LeopartConfig()
    for name, start, end in (
        ("momentum", defaults.momentum, defaults.momentum_end),
        ("weight_decay", defaults.weight_decay, defaults.weight_decay_end),
    ):
        found = [cosine(start, end, step, 20) for step in range(20)]
        np.testing.assert_allclose(found, values[name].numpy(), atol=1e-12, rtol=0)


@pytest.fixture(scope="module")
def step() -> dict[str, Any]:
    return golden("spatial_loss")


def maps(rows: Tensor, side: int) -> Tensor:
    """(V, B, C, h, w) of rows (V · B · h · w, C)."""
    return rows.reshape(-1, IMAGES, side, side, rows.shape[1]).permute(0, 1, 4, 2, 3)


def assigned(step: dict[str, Any], queue: Tensor | None = None) -> Tensor:
    """Our assignments (2, B, K, 14, 14) of the teacher's logits, beside the student's logits of a queue (2, Q, d)."""
    found = []
    for crop, logits in enumerate(step["teacher_logits"].chunk(2)):
        before = logits[:0] if queue is None else queue[crop] @ step["student_prototypes"].T
        plan = sinkhorn(torch.cat([before, logits]), epsilon=0.05, iterations=3)[-len(logits) :]
        if queue is None:
            torch.testing.assert_close(plan, step[f"q_{crop}"], atol=1e-6, rtol=0)
        found.append(maps(plan, 14)[0])
    return torch.stack(found)


@pytest.mark.parametrize("mode", ["all", "fg", "bg", "fg_with_queue"])
def test_spatial_loss(step: dict[str, Any], mode: str) -> None:
    mask = step["mask"].reshape(2, IMAGES, 1, 14, 14)
    found = spatial_loss(
        assigned(step, step["queue"] if "queue" in mode else None),
        maps(step["student_global_logits"], 14),
        maps(step["student_local_logits"], 6),
        SharedBoxes(step["boxes_gc"], step["boxes_all"]),
        {"all": None, "bg": 1 - mask}.get(mode, mask),
        patch_px=PATCH_PX,
        cells=7,
        whole_cell=1.0,
        temperature=0.1,
    )
    assert float(found.loss) == pytest.approx(float(step[f"loss_{mode}"]), abs=2e-6)


@pytest.mark.parametrize("crop", [0, 1])
def test_aligned_assignments_and_masks(step: dict[str, Any], crop: int) -> None:
    boxes = step["boxes_gc"][:, crop].reshape(-1, 4)  # image b, crop v at 6 b + v
    places = torch.arange(IMAGES).repeat_interleave(CROPS)
    aligned = align(assigned(step)[crop], boxes, places, patch_px=PATCH_PX, cells=7)
    torch.testing.assert_close(aligned, step[f"aligned_q_{crop}"], atol=2e-6, rtol=0)
    mask = step["mask"].reshape(2, IMAGES, 1, 14, 14)[crop]
    wholly = align(mask, boxes, places, patch_px=PATCH_PX, cells=7)
    torch.testing.assert_close(wholly, step[f"aligned_mask_{crop}"], atol=2e-6, rtol=0)
