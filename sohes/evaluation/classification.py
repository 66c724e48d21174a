"""How many images get the right class (README §12)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sohes.errors import DataError
from sohes.evaluation.bootstrap import PERCENTILES, RESAMPLES, SEED
from sohes.evaluation.protocols import Protocol
from sohes.evaluation.semantic import Difference
from sohes.rle import BoolArray

METHOD = "image probe"


def image_protocol(probe: str, *, size_px: int) -> Protocol:
    """The protocol of a probe of whole images: its id names the side of what is seen.

    Args:
        probe: short name, "linear".
        size_px: that side.

    >>> image_protocol("knn", size_px=224).id
    'probe_image_knn_224_v1'
    """
    return Protocol(
        id=f"probe_image_{probe}_{size_px}_v1",
        data="every val image of a class that train has",
        resize=f"images: short side to 8/7 of {size_px} px (bicubic), then the centre square of {size_px} px",
        limit="one class for each image",
        averaging="share of the images whose class is right",
        source=f"sohes.probes, image_{probe}",
    )


def class_accuracy(right: BoolArray, labels: NDArray[np.integer], *, classes: int) -> NDArray[np.float64]:
    """Share of the images of each class that are right: (C,), NaN for a class without images.

    Args:
        right: (N,) whether an image got its class.
        labels: (N,) classes in [0, C).
        classes: number of classes C.
    """
    images = np.bincount(labels, minlength=classes)
    found = np.bincount(labels, weights=right, minlength=classes)
    return np.divide(found, images, out=np.full(classes, np.nan), where=images > 0)


def accuracy_difference(ours: BoolArray, theirs: BoolArray) -> Difference:
    """Accuracy of `ours` less that of `theirs`, with the 95 % percentile interval of a paired bootstrap over images.

    Args:
        ours, theirs: (N,) which of the same images are right.

    Raises:
        DataError: not as many.
    """
    if ours.shape != theirs.shape:
        raise DataError(f"{len(ours)} and {len(theirs)} scored images are not the same images")
    gains = ours.astype(np.float64) - theirs
    if len(gains) < 2:
        return Difference(value=float(gains.mean()), low=np.nan, high=np.nan)
    rng = np.random.default_rng(SEED)
    drawn = [gains[rng.integers(len(gains), size=len(gains))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(drawn, PERCENTILES)
    return Difference(value=float(gains.mean()), low=float(low), high=float(high))
