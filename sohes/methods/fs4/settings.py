"""Settings of FS4's training (reconstruction). [PiCIE] is its released code, github.com/janghyuncho/PiCIE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from sohes.configuration import Count, Natural, NonNegative, Positive, PositiveShare, settings
from sohes.engine.settings import OptimSettings, RunSettings
from sohes.errors import ConfigError
from sohes.methods.fs4.context_settings import ContextSettings
from sohes.methods.fs4.pyramid_settings import PyramidSettings

_RESNET: Mapping[str, Any] = {
    "backbone_lr_factor": 1.0,
    "weight_decay": 0.0,
    "batch_size": 128,
    "iterations": 3_870,  # 10 epochs of 49,629 images
}
_PICIE: Mapping[str, Any] = {"pgg": False, "cae": "none", "rounds": 1, "temperature": 1.0, "class_weight": "freq"}

MOST_CLUSTERS = 2**16  # that a label of 16 bits tells apart


@settings
class ViewSettings:
    """Two views of an image, brought to one grid of embeddings (README §2)."""

    base_px: Count = 640
    """Side of the square that both views are made of, px: the short side scaled to it, the middle cut out [PiCIE]."""
    view_px: Count = 320
    """Side of what the network sees, px [PiCIE]."""
    embedding_side: Count = 80
    """Side of the grid of embeddings and labels, cells [PiCIE]."""
    crop_min: PositiveShare = 0.5
    """Side of view 1 over that of the square, at least; 1 at most [PiCIE]."""

    def check_views(self, patch_px: int) -> None:
        """Check against the patch of a ViT.

        Raises:
            ConfigError: it does not divide the views.
        """
        if self.view_px % patch_px:
            near = max(1, round(self.view_px / patch_px)) * patch_px
            raise ConfigError(
                f"view_px={self.view_px} is not a multiple of the backbone's {patch_px} px patches; try {near}"
            )


@settings
class PixelSettings:
    """Embeddings of pixels, their clusters, and the loss between the views (README §3 to §5)."""

    embedding_dim: Annotated[int, Field(ge=8, multiple_of=8)] = 128
    """Width of an embedding; 256 in PiCIE's larger ResNets [PiCIE]."""
    clusters: Annotated[int, Field(ge=2, le=MOST_CLUSTERS)] = 27
    """Clusters of pixels in each view, K [PiCIE]."""
    cluster_batch: Count = 256
    """Images at most that move the centroids at a time, over all processes [PiCIE]."""
    init_batches: Count = 20
    """Batches that give the first centroids [PiCIE]."""
    kmeans_iterations: Count = 20
    """Iterations of the k-means that gives them [PiCIE]."""
    class_weight: Literal["none", "freq", "inverse_sqrt"] = "none"
    """Weight of a cluster in the loss: all alike, its share of the pixels as in PiCIE, or one over the root of that
    share [ours]."""
    temperature: Positive = 0.1
    """Of the softmax over clusters; 1 in PiCIE, which leaves it almost flat [ours]."""
    mse: bool = False
    """Average the loss with the squared difference of the two views' embeddings [PiCIE]."""


@settings
class Fs4Config(ViewSettings, PixelSettings, PyramidSettings, ContextSettings, OptimSettings, RunSettings):
    """FS4's training at paper scale (README §3)."""

    # each for a backbone that `weights` brings; picie_sup is PiCIE itself, from a ResNet-18 with ImageNet's labels
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "vits16": {},
        "r18_picie": _RESNET,
        "r50": {**_RESNET, "embedding_dim": 256},
        "picie_sup": {**_RESNET, **_PICIE},
    }

    seed: Natural = 0
    """Of weights, samples, their order and the clusters."""
    rounds: Count = 2
    """Trainings one after another, each from the weights of the one before [ours]."""
    iterations: Count = 3_875
    """Steps of a round: 5 epochs of PiCIE's 49,629 images of COCO [ours]."""
    batch_size: Count = 64
    """Images of a step, over all processes and micro-batches; 128 in PiCIE [ours]."""
    lr: Positive = 1e-4
    """Learning rate of the decoder, for 64 images per step [PiCIE]."""
    backbone_lr_factor: NonNegative = 0.1
    """Learning rate of the ViT over that of the decoder; 1 in PiCIE, for its ResNet [ours]."""
    weight_decay: NonNegative = 0.05
    """Of AdamW, none on norms and biases; 0 in PiCIE [ours]."""
    warmup: Natural = 500
    """Steps of a round in which the learning rate rises [ours]."""
    strict: bool = False
    """Refuse start weights to which people gave anything, or nobody knows what [ours]."""
    bf16: bool = True
    """Heavy products in bfloat16, where the device has it, but for clusters and losses [ours]."""

    def check_beside(self, others: Iterable[Any]) -> None:
        """Check against the configurations of the stages before: what they say of the ViT's patch.

        Raises:
            ConfigError: see `check_patch`.
        """
        for other in others:
            if patch_px := getattr(other, "patch_px", None):
                self.check_patch(patch_px)

    def check_patch(self, patch_px: int) -> None:
        """Check all sides against the patch of a ViT.

        Raises:
            ConfigError: one is no multiple of it.
        """
        self.check_views(patch_px)
        if self.pgg:
            self.check_regions(patch_px)
