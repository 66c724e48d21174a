"""FCN probe: a small convolutional head, trained on cached features of a frozen backbone.

Leopart's head and schedule (its `experiments/linear_probing`), by the SGD of its linear probe: cross-entropy on
100 x 100 px. Ours: no augmentation, since each image's features are computed once; and the head works on the grid of
patches, its scores upsampled, unless `fcn_px` says otherwise (README §9).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.utils import convert_conv2d_weight_memory_format

from sohes.backbones.precision import autocast
from sohes.probes.features import Features
from sohes.probes.scoring import Scored, Task, score_patches
from sohes.probes.sgd import Places, descend, labelled_images, train_labels

EPOCHS = 30
CHANNELS = 512
DROPOUT = 0.1
_DROP_AT = 2 / 3  # of the steps, where the learning rate falls to a tenth


class FcnHead(nn.Module):
    """Two convolutions, a third over their output beside the input, a classifier; no normalisation.

    Args:
        dim: channels D of the features.
        classes: C.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(dim, CHANNELS, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
            nn.ReLU(),
        )
        self.joined = nn.Sequential(nn.Conv2d(dim + CHANNELS, CHANNELS, 3, padding=1), nn.ReLU())
        self.classifier = nn.Sequential(nn.Dropout2d(DROPOUT), nn.Conv2d(CHANNELS, classes, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Scores (B, C, h, w) of features (B, D, h, w)."""
        return self.classifier(self.joined(torch.cat([features, self.convs(features)], dim=1)))


def fcn_probe(task: Task, seed: int) -> list[Scored]:
    """Train the head on train features; the seed draws its first weights, the order of the images and the dropout.

    Raises:
        DataError: no train image has a label that is left at 100 x 100 px.
    """
    config, device = task.config, task.backbone.device
    labels = train_labels(task)
    steps = config.fcn_steps or EPOCHS * -(-len(labels) // config.fcn_batch)
    head = train_head(
        task.train,
        labels,
        classes=len(task.data.classes),
        steps=steps,
        batch=config.fcn_batch,
        lr=config.fcn_lr,
        grid_px=config.fcn_px,
        seed=seed,
        device=device,
    )
    note = f"FCN probe: {steps} steps of {config.fcn_batch} images"

    @torch.no_grad()
    def scores(place: int) -> Tensor:
        with autocast(device):
            return head(_batch(task.val, [place], config.fcn_px, device))[0].permute(1, 2, 0).float()

    return [score_patches(task, scores, method="FCN probe", probe="fcn", notes=(note,))]


def train_head(
    features: Features,
    labels: NDArray[np.uint8],
    *,
    classes: int,
    steps: int,
    batch: int,
    lr: float,
    grid_px: int | None,
    seed: int,
    device: torch.device,
    on_step: Callable[[float], None] | None = None,
) -> FcnHead:
    """The trained head, in evaluation mode.

    Args:
        features: of the train images.
        labels: (N, 100, 100) uint8, 255 for none.
        classes: number of classes C.
        steps: of SGD.
        batch: images of a step; every image is seen once before any is seen again.
        lr: learning rate, a tenth of it in the last third of the steps.
        grid_px: side to which features are upsampled before the head; None for not.
        seed: of weights, order and dropout.
        device: where it is trained.
        on_step: is told the loss of each step.

    Raises:
        DataError: no label in any image.
    """
    labelled = labelled_images(labels)
    size = min(batch, len(labelled))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        head = FcnHead(features.dim, classes).to(device)
        # as features are kept; faster on a CPU
        convert_conv2d_weight_memory_format(head, torch.channels_last)

        def scores(places: Places) -> Tensor:
            with autocast(device):
                return head(_batch(features, places.tolist(), grid_px, device))

        order = _endless(labelled, np.random.default_rng(seed))
        descend(
            head,
            scores,
            labels,
            (np.array(list(islice(order, size))) for _ in range(steps)),
            steps=steps,
            lr=lr,
            drop_at=_DROP_AT,
            at_once=size,
            words="FCN probe",
            on_step=on_step,
        )
    return head.eval()


def _endless(places: Places, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from rng.permutation(places).tolist()


def _batch(features: Features, places: Sequence[int], grid_px: int | None, device: torch.device) -> Tensor:
    """Features (B, D, h, w) of images, upsampled to `grid_px` where that is given."""
    maps = torch.from_numpy(np.stack([features[place] for place in places])).permute(0, 3, 1, 2).to(device)
    if grid_px is None:
        return maps
    return interpolate(maps, (grid_px, grid_px), mode="bilinear", align_corners=False)
