"""Settings of CAST's trainings. [CAST] is the authors' release, github.com/twke18/CAST."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from sohes.configuration import Count, Natural, NonNegative, Positive, PositiveShare, Share, settings
from sohes.engine.settings import OptimSettings, RunSettings
from sohes.errors import ConfigError


@settings
class CastCropSettings:
    """Crops of an image, and the superpixels of each where the backbone takes them (README §2)."""

    view_px: Count = 224
    """Side of a crop, px [CAST]."""
    area_min: PositiveShare = 0.08
    """Share of the image that a crop shows, at least [CAST]."""
    superpixels: Literal["seeds", "slic", "graph", "grid"] = "seeds"
    """How superpixels are found [CAST]."""
    superpixel_px: Annotated[int, Field(ge=4)] = 16
    """One superpixel for so many px squared [CAST]."""
    superpixel_bins: Annotated[int, Field(ge=2, le=64)] = 15
    """Of a colour histogram of SEEDS, along each channel; 5 in classification [CAST]."""
    superpixel_iterations: Natural = 20
    """Rounds of SEEDS over all pixels; 15 in classification [CAST]."""

    def check_view(self, patch_px: int, *, superpixels: bool = False) -> None:
        """Check that a crop has whole patches, and where the backbone takes them equally many superpixels in each.

        Raises:
            ConfigError: its side is no multiple of the patch or of `superpixel_px`, or too small for superpixels.
        """
        steps = {f"the backbone's {patch_px} px patches": patch_px}
        if superpixels:
            from sohes.data.superpixels.grid import LEAST_PX

            steps[f"superpixel_px={self.superpixel_px}"] = self.superpixel_px
            if self.view_px < LEAST_PX:
                raise ConfigError(f"view_px={self.view_px} is too small for superpixels; set it to at least {LEAST_PX}")
        for name, step in steps.items():
            if self.view_px % step:
                near = max(1, round(self.view_px / step)) * step
                raise ConfigError(f"view_px={self.view_px} is not a multiple of {name}; try {near}")


@settings
class ContrastSettings:
    """Heads, loss and key encoder of MoCo-v3 (README §3 and §4)."""

    hidden_dim: Count = 4096
    """Width of the hidden layers of projector and predictor [CAST]."""
    projection_dim: Count = 256
    """Width of queries and keys [CAST]."""
    temperature: Positive = 0.2
    """Of the softmax over keys [CAST]."""
    momentum: Share = 0.99
    """Of the key encoder at the start; 1 at the end, after half a cosine [CAST]."""


@settings
class ClassifySettings:
    """Of classification alone (README §7)."""

    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Stochastic depth of the last block, rising evenly from 0 in the first [CAST]."""
    average_momentum: Share = 0.99996
    """Of the moving average of the weights that is left beside them [CAST]."""


@settings
class CastConfig(CastCropSettings, ContrastSettings, ClassifySettings, OptimSettings, RunSettings):
    """MoCo-v3 on ImageNet-1k as CAST trains it; presets: its other data (README §5), its supervised training (§7)."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "moco": {},
        "imagenet100": {"iterations": 98_800, "warmup": 9_880},  # 200 epochs, 20
        "coco": {"iterations": 184_800, "warmup": 18_480},  # 400 epochs, 40; of the fusion form
        "classify": {
            "objective": "classify",
            "iterations": 375_300,  # 300 epochs
            "warmup": 6_255,  # 5 epochs
            "batch_size": 1024,
            "lr": 1e-3,
            "weight_decay": 0.05,
            "superpixel_bins": 5,
            "superpixel_iterations": 15,
        },
    }
    ONLY_WITH: ClassVar[Mapping[str, tuple[str, Any]]] = {
        **dict.fromkeys(("hidden_dim", "projection_dim", "temperature", "momentum"), ("objective", "moco")),
        **dict.fromkeys(("drop_path", "average_momentum"), ("objective", "classify")),
        **dict.fromkeys(("superpixel_bins", "superpixel_iterations"), ("superpixels", "seeds")),
    }

    objective: Literal["moco", "classify"] = "moco"
    """MoCo-v3 of images alone, or classification by the folders that they lie in [CAST]."""
    seed: Natural = 0
    """Of weights, samples and their order."""
    iterations: Count = 500_400
    """Steps: 100 epochs of ImageNet-1k, without the rest of each that fills no batch [CAST]."""
    batch_size: Count = 256
    """Images of a step, over all processes and micro-batches; a query is compared with the keys of its micro-batch
    [CAST]."""
    lr: Positive = 1.5e-4
    """Learning rate of all parameters, for 256 images per step [CAST]."""
    weight_decay: NonNegative = 0.1
    """Of AdamW; in MoCo-v3 on all parameters, norms and biases as well [CAST]."""
    warmup: Natural = 50_040
    """Steps in which the learning rate rises: 10 epochs [CAST]."""
    bf16: bool = True
    """Heavy products in bfloat16, where the device has it; float16 in the code [ours]."""

    def check_beside(self, others: Iterable[Any]) -> None:
        """Check against the configurations of the stages before: what they say of a ViT's patch.

        Raises:
            ConfigError: see `check_view`.
        """
        for other in others:
            if patch_px := getattr(other, "patch_px", None):
                self.check_view(patch_px)

    def chosen_superpixels(self) -> list[str]:
        """Settings of superpixels other than the objective's own, as "name=value"."""
        usual = vars(type(self)(**self.PRESETS[self.objective]))
        return [f"{key}={of}" for key, of in vars(self).items() if key.startswith("superpixel") and of != usual[key]]
