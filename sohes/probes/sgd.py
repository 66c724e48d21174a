"""Leopart's linear probe: a linear layer trained by SGD on pixels (README §4); and the SGD of both trained probes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from sohes.data.label_maps import IGNORE
from sohes.errors import DataError
from sohes.probes.features import Features
from sohes.probes.scoring import Scored, Task, annotation, score_patches
from sohes.progress import Reporter, track

LOSS_PX = 100  # side of the square on which the loss is computed
_MOMENTUM, _WEIGHT_DECAY = 0.9, 1e-4
_DROP_AT = 0.8  # share of the steps after which the learning rate is a tenth
_AT_ONCE = 16  # images whose scores are upsampled at once

Places = NDArray[np.int64]


def sgd_probe(task: Task, seed: int) -> list[Scored]:
    """A 1x1 convolution trained as Leopart trains its own, but on features that were extracted once, so unaugmented.

    The seed draws its first weights and the order of images.

    Raises:
        DataError: no train image has a label at 100 x 100 px.
    """
    config, device = task.config, task.backbone.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Linear(task.train.dim, len(task.data.classes))
    train_layer(
        layer.to(device),
        task.train,
        train_labels(task),
        epochs=config.sgd_epochs,
        batch=config.sgd_batch,
        lr=config.sgd_lr,
        seed=seed,
    )

    @torch.no_grad()
    def scores(place: int) -> Tensor:
        return layer(torch.tensor(task.val[place]).to(device))

    return [score_patches(task, scores, method="linear probe (SGD)", probe="linear_sgd")]


def train_layer(
    layer: nn.Linear, features: Features, labels: NDArray[np.uint8], *, epochs: int, batch: int, lr: float, seed: int
) -> None:
    """Train a layer in place, by the mean cross-entropy over the labelled pixels of a batch.

    Scores are upsampled bilinearly; of a linear layer that equals upsampling features, and costs a fraction of it.

    Args:
        layer: on the device where it is trained.
        features: of the train images.
        labels: (N, 100, 100) uint8, 255 for none.
        epochs: times that each image is seen; the learning rate is a tenth in the last fifth.
        batch: images of a step.
        lr: learning rate.
        seed: of the order.

    Raises:
        DataError: no label in any image.
    """
    labelled = labelled_images(labels)

    def scores(places: Places) -> Tensor:
        tokens = torch.from_numpy(np.stack([features[place] for place in places]))
        return layer(tokens.to(layer.weight.device)).permute(0, 3, 1, 2)

    descend(
        layer,
        scores,
        labels,
        _batches(labelled, epochs, batch, seed),
        steps=epochs * -(-len(labelled) // batch),
        lr=lr,
        drop_at=_DROP_AT,
        at_once=_AT_ONCE,
        words="linear probe (SGD)",
    )


def descend(
    head: nn.Module,
    scores: Callable[[Places], Tensor],
    labels: NDArray[np.uint8],
    batches: Iterable[Places],
    *,
    steps: int,
    lr: float,
    drop_at: float,
    at_once: int,
    words: str,
    on_step: Callable[[float], None] | None = None,
) -> None:
    """Leopart's SGD: momentum 0.9, weight decay 1e-4, mean cross-entropy over the labelled pixels of a batch.

    Args:
        head: whose parameters are trained, in place.
        scores: gives those of images (B, C, h, w), by their places; they are upsampled bilinearly to the labels' size.
        labels: (N, H, W) uint8, 255 for none; each image that is drawn has one.
        batches: places of the images of each step.
        steps: how many batches there are.
        lr: learning rate.
        drop_at: share of the steps after which it is a tenth.
        at_once: images that go forward and backward together; the gradient is the same.
        words: for the progress.
        on_step: is told the loss of each step.
    """
    optimizer = torch.optim.SGD(head.parameters(), lr=lr, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [round(drop_at * steps)])
    with Reporter(words, steps) as reporter:
        for places in batches:
            pixels = int((labels[places] != IGNORE).sum())
            optimizer.zero_grad()
            total = 0.0
            for first in range(0, len(places), at_once):
                some = places[first : first + at_once]
                maps = scores(some).float()
                maps = interpolate(maps, labels.shape[1:], mode="bilinear", align_corners=False)
                target = torch.from_numpy(labels[some]).long().to(maps.device)
                loss = cross_entropy(maps, target, ignore_index=IGNORE, reduction="sum") / pixels
                loss.backward()
                total += loss.item()
            optimizer.step()
            schedule.step()
            if on_step:
                on_step(total)
            reporter.advance(note=f"loss {total:.3f}")


def train_labels(task: Task) -> NDArray[np.uint8]:
    """Labels of the train images where the loss is computed: (N, 100, 100), 255 for none."""
    items = track(task.data.train, "labels")
    return np.stack([annotation(item, size_px=task.size_px, score_px=LOSS_PX) for item in items])


def labelled_images(labels: NDArray[np.uint8]) -> Places:
    """Places of the images (N, H, W) with a label.

    Raises:
        DataError: there is none.
    """
    found = np.flatnonzero((labels != IGNORE).any(axis=(1, 2)))
    if not len(found):
        raise DataError(f"no train image has a label at {LOSS_PX} x {LOSS_PX} px; label more of them")
    return found


def _batches(places: Places, epochs: int, batch: int, seed: int) -> Iterator[Places]:
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(places)
        yield from (order[first : first + batch] for first in range(0, len(order), batch))
