"""Two processes on one machine: the same losses as one with the whole batch, and the same weights on both."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.multiprocessing as mp
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch import Tensor

from sohes.correct.module import CorrectModule, TeacherHook
from sohes.correct.thresholds import SizeThresholds
from sohes.segmenters import losses
from sohes.segmenters.losses import Matching, Targets, segmentation_loss
from sohes.segmenters.mask2former import SegmenterOutput
from sohes.settings import LossSettings, TeacherSettings, ThresholdSettings
from tests.segmenters.tiny import LOSSES, tiny_segmenter

COUNTS = (5, 1)  # targets of the two images


def mask_terms(images: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Mask and Dice terms of some images, and the gradient of their sum; the points are the same in each process."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 8, 8, generator=generator)[images].requires_grad_()
    masks = [(torch.randn(count, 8, 8, generator=generator) > 0) for count in COUNTS][images]
    points = torch.rand(1, 40, 2, generator=generator)
    losses._uncertain_points = lambda maps, random, settings: points.expand(len(maps), -1, -1)  # type: ignore[assignment]
    targets = Targets.pad(masks, [torch.zeros(len(mask), len(mask), dtype=torch.bool) for mask in masks])
    columns = [(image, target, target) for image, mask in enumerate(masks) for target in range(len(mask))]
    matching = Matching(*torch.tensor(columns).unbind(1))
    output = SegmenterOutput([torch.zeros(len(masks), 6, 2)], [logits], torch.zeros(len(masks), 6, 6))
    terms = segmentation_loss(output, targets, [matching], LossSettings(points=40))
    (terms["mask"] + terms["dice"]).backward()
    assert logits.grad is not None
    return terms["mask"].detach(), terms["dice"].detach(), logits.grad


def thresholds(rank: int, world: int) -> dict[str, Tensor]:
    """State after three batches of four images, of which a process sees its share."""
    generator = torch.Generator().manual_seed(0)
    learnt = SizeThresholds(ThresholdSettings(tau_momentum=0.5))
    share = slice(rank * 4 // world, (rank + 1) * 4 // world)
    for _ in range(3):
        counts = torch.randint(0, 5, (4, 3), generator=generator)
        scores = [torch.rand(10, generator=generator) for _ in range(4)]
        classes = [torch.randint(0, 3, (10,), generator=generator) for _ in range(4)]
        learnt.observe(counts[share], scores[share], classes[share])
        learnt.update(0.5)
    return learnt.state_dict()


def batch(rank: int) -> dict[str, Tensor]:
    """One image with one mask; the pixels differ between processes."""
    generator = torch.Generator().manual_seed(rank)
    masks = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    masks[..., : 20 + 20 * rank, :30] = True
    return {
        "pixel_values": torch.randn(1, 3, 64, 64, generator=generator),
        "noisy_values": torch.randn(1, 3, 64, 64, generator=generator),
        "masks": masks,
        "valid": torch.ones(1, 1, dtype=torch.bool),
        "ancestor": torch.zeros(1, 1, 1, dtype=torch.bool),
        "content_hw": torch.tensor([[64, 64]]),
        "key": torch.tensor([rank]),
    }


def train_phase3(rank: int) -> dict[str, Tensor]:
    """Three steps as mmengine's wrapper does them; on the second it would notice a parameter without gradient."""
    settings = TeacherSettings(tau_init=0.3, teacher_warmup=0, tau_every=1, teacher_min_area_px=1)
    module = CorrectModule(tiny_segmenter(), LOSSES, settings, iterations=10)
    wrapped = MMDistributedDataParallel(module)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-3)
    torch.manual_seed(rank)
    for step in range(3):
        outputs = wrapped.train_step(batch(rank), OptimWrapper(optimizer))
        TeacherHook().after_train_iter(SimpleNamespace(model=wrapped), step, outputs=outputs)  # type: ignore[arg-type]
    return module.state_dict()


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    terms = mask_terms(slice(rank, rank + 1))
    found = {"terms": terms, "thresholds": thresholds(rank, 2), "state": train_phase3(rank)}
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    mp.start_processes(worker, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))

    real = losses._uncertain_points
    try:
        mask, dice, gradient = mask_terms(slice(0, 2))
    finally:
        losses._uncertain_points = real
    for place, whole in enumerate((mask, dice)):  # a distributed step averages over the processes
        assert torch.allclose((first["terms"][place] + second["terms"][place]) / 2, whole, rtol=1e-5)
    shares = torch.cat([first["terms"][2], second["terms"][2]]) / 2
    assert torch.allclose(shares, gradient, atol=1e-7)

    for name, value in thresholds(0, 1).items():
        assert torch.allclose(first["thresholds"][name], value), name
        assert torch.equal(first["thresholds"][name], second["thresholds"][name]), name

    assert all(torch.equal(value, second["state"][name]) for name, value in first["state"].items())
    start = tiny_segmenter().class_predictor.weight
    assert int(first["state"]["step"]) == 3
    assert not torch.equal(first["state"]["student.class_predictor.weight"], start)
    assert not torch.equal(first["state"]["teacher.class_predictor.weight"], start)
    assert int(first["state"]["thresholds.seen"]) == 6
