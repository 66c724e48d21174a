"""Settings of the probes, without torch, since the launcher reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator

from sohes.configuration import Count, Natural, NonEmpty, NonNegative, Positive, settings
from sohes.data.prepare import resolve_labelled
from sohes.errors import unknown_name
from sohes.probes.registry import probe_names


def _known_probe(name: str) -> str:
    if name not in probe_names():
        raise ValueError(unknown_name("probe", name, probe_names()))
    return name


@settings
class LinearSettings:
    """Linear probe."""

    l2: NonNegative = 1e-4
    """Weight of the squared norm of the weights, halved, in the loss [ours]."""
    max_steps: Count = 300
    """Steps of L-BFGS, at most [ours]."""


@settings
class SgdSettings:
    """Linear probe trained by SGD."""

    sgd_epochs: Count = 25
    """Times that each train image is seen [Leopart]."""
    sgd_batch: Count = 120
    """Images of a step [Leopart: 60 on each of two GPUs]."""
    sgd_lr: Positive = 0.01
    """Learning rate, a tenth of it in the last fifth [Leopart]."""


@settings
class KnnSettings:
    """Label transfer from nearest neighbours."""

    neighbours: Count = 30
    """Train patches whose labels a patch gets, k [Hummingbird]."""
    temperature: Positive = 0.02
    """Of the softmax over their cosines, which weighs them [Hummingbird]."""


@settings
class OverclusterSettings:
    """Over-clustering."""

    clusters: NonEmpty[Count] = (150, 300, 500)
    """Numbers of clusters; as many as there are classes is added [Leopart: 500; ours]."""
    components: Count = 50
    """Principal components of the features that are clustered [Leopart]."""
    restarts: Count = 1
    """Of k-means, the best of which is kept [ours; Leopart: 5]."""


@settings
class ClusterProbeSettings:
    """Cluster probe; it has as many clusters as there are classes."""

    tokens: Count = 500_000
    """Train patches that are clustered, at most, drawn with the probe's seed [ours]."""


@settings
class InContextSettings:
    """In-context retrieval; it shares neighbours and temperature with nearest neighbours."""

    bank_size: Count = 102_400
    """Train patches in the memory bank, at most [Hummingbird: 10,240,000; ours]."""


@settings
class RetrievalSettings:
    """Retrieval of segments."""

    embedding: Literal["features", "projection"] = "features"
    """What segments are compared by: the backbone's features, or what the projector beside it makes of them [CAST]."""


@settings
class FcnSettings:
    """FCN head."""

    fcn_steps: Count | None = None
    """Steps of SGD; null: 30 epochs [Leopart]."""
    fcn_batch: Count = 32
    """Images of a step [Leopart]."""
    fcn_lr: Positive = 0.01
    """Learning rate, a tenth of it in the last third [Leopart]."""
    fcn_px: Count | None = None
    """Side of the square on which the head works, features upsampled; null: the patches' own [Leopart: 100; ours]."""


@settings
class ImageProbeSettings:
    """Probes of whole images; the linear one shares its settings with the linear probe."""

    image_px: Count = 224
    """Side of the square in the middle that is seen, px, rounded to the patch [CAST]."""
    image_neighbours: Count = 20
    """Train images that vote for the class of an image, k [DINO]."""
    image_temperature: Positive = 0.07
    """A vote weighs exp(cosine / temperature) [DINO]."""


@settings
class ProbeConfig(
    LinearSettings,
    SgdSettings,
    KnnSettings,
    OverclusterSettings,
    ClusterProbeSettings,
    InContextSettings,
    RetrievalSettings,
    FcnSettings,
    ImageProbeSettings,
):
    """A probe of frozen features."""

    ADDED: ClassVar[dict[str, Any]] = {
        "embedding": "features",
        "image_px": 224,
        "image_neighbours": 20,
        "image_temperature": 0.07,
    }
    NOT_IN_HASH: ClassVar[frozenset[str]] = frozenset({"arm"})

    probe: Annotated[str, AfterValidator(_known_probe)] = "linear"
    """Name of the probe, see `sohes.probes.registry`."""
    data: str | None = None
    """Labelled data in place of those of the run: see `read_probe_data`."""
    size_px: Count = 448
    """Side to which images are squashed, px, rounded to the patch [Leopart]; the probes cluster, retrieval, and those
    of whole images have their own."""
    score_px: Count | None = None
    """Side of the square on which predictions are scored, px; null: the annotation's own size [ours]; likewise."""
    seeds: Count | None = None
    """Repetitions of a probe that depends on a seed, from 0; null: 3, of the cluster probe 5 [ours]."""
    max_train: Count | None = None
    """Train images at most, drawn with seed 0; null: all."""
    max_val: Count | None = None
    """Val images at most, the first ones; null: all."""
    classes: NonEmpty[str] | None = None
    """Classes over which a second mIoU is the mean; null: none."""
    pictures: Natural = 6
    """Val images that are drawn."""
    arm: Literal["", "start", "trained"] = ""
    """Which backbone it is in a run that compares both; empty, and with a start backbone: both are told apart."""

    def outside_inputs(self) -> list[Path]:
        """Files whose change makes the stage run again.

        Raises:
            DataError: data that are not there.
        """
        return [resolve_labelled(self.data)] if self.data else []
