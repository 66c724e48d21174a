"""Settings of Leopart's training. [code] is the authors' release, github.com/MkuuWaUjinga/leopart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sohes.configuration import Count, Natural, NonNegative, Positive, PositiveShare, Share, settings
from sohes.engine.settings import OptimSettings, RunSettings
from sohes.errors import ConfigError

GLOBAL_PX, LOCAL_PX = 224, 96  # crops of the authors; ours are the nearest multiples of the patch
MIN_GRID = 4  # patches along a global crop that the blur of its attention needs

Epsilon = Annotated[float, Field(ge=0.025)]  # below, exp(logits / epsilon) leaves the range of float32


@settings
class CropSettings:
    """Two global crops of an image and some local ones (README §2)."""

    global_px: Count | None = None
    """Side of a global crop, px; null: the multiple of the patch that is nearest to 224 [code]."""
    local_px: Count | None = None
    """Side of a local crop, px; null: the multiple of the patch that is nearest to 96 [code]."""
    local_crops: Natural = 4
    """Local crops beside the two global ones [code]."""
    global_area_min: PositiveShare = 0.25
    """Share of the image that a global crop shows, at least [code]."""
    global_area_max: PositiveShare = 1.0
    """The same, at most [code]."""
    local_area_min: PositiveShare = 0.05
    """Share of the image that a local crop shows, at least [code]."""
    local_area_max: PositiveShare = 0.25
    """The same, at most [code]."""
    min_overlap: Share = 0.01
    """Share of the image that a crop has in common with each global one; twice that for two global ones [code]."""

    @model_validator(mode="after")
    def _areas_rise(self) -> Self:
        for kind in ("global", "local"):
            low, high = getattr(self, f"{kind}_area_min"), getattr(self, f"{kind}_area_max")
            if low > high:
                raise ValueError(f"{kind}_area_min={low} is above {kind}_area_max={high}")
        return self


@settings
class ClusterSettings:
    """Heads, teacher, assignment and loss (README §3 to §6)."""

    hidden_dim: Count = 2048
    """Width of the projection head's two hidden layers [code]."""
    projection_dim: Count = 256
    """Width of the embeddings that are clustered [code]."""
    prototypes: Annotated[int, Field(ge=2)] = 300
    """Clusters [code]."""
    temperature: Positive = 0.1
    """Of the student's softmax over prototypes [code]."""
    epsilon: Epsilon = 0.05
    """Entropy of the Sinkhorn assignment: the higher, the softer [code]."""
    sinkhorn_iterations: Natural = 3
    """Iterations of the assignment [code]."""
    aligned_cells: Count = 7
    """Side of the grid that both views of a region are brought to [code]."""
    mask: Literal["fg", "bg", "all"] = "fg"
    """Cells that count: foreground by the teacher's attention, background, or all [code]."""
    whole_cell: PositiveShare = 0.999
    """Share of foreground from which a cell counts; the code asks for 1, which rounding misses now and then [ours]."""
    foreground_mass: PositiveShare = 0.6
    """Share of the attention that the foreground holds [code]."""
    queue: Natural = 8192
    """Embeddings of earlier steps that take part in the assignment, for each global crop, over all processes; 0: none
    [code]."""
    queue_per_image: Count = 10
    """Embeddings that join the queue in a step, per image [code]."""
    queue_prototypes: Literal["student", "teacher"] = "student"
    """Whose prototypes score the queue; the current embeddings are always scored by the teacher's [code]."""
    use_teacher: bool = True
    """Targets from the student's moving average; false: from the student itself [code]."""
    teacher_head: Literal["copy", "independent"] = "copy"
    """Teacher's head and prototypes at the start: the student's, or other random ones as in the code [ours]."""
    momentum: Share = 0.9995
    """Of the teacher at the start [code]."""
    momentum_end: Share = 1.0
    """The same at the end, after half a cosine [code]."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Stochastic depth of the student's last block, rising evenly from 0 in its first [code]."""


@settings
class LeopartConfig(CropSettings, ClusterSettings, OptimSettings, RunSettings):
    """Leopart's training at paper scale (README §7)."""

    seed: Natural = 0
    """Of weights, samples and their order."""
    iterations: Count = 92_400
    """Steps: 50 epochs of the 118,287 images of COCO train2017 [code]."""
    batch_size: Count = 64
    """Images of a step, over all processes and micro-batches [code]."""
    lr: Positive = 1e-4
    """Learning rate of head and prototypes, for 64 images per step; a cosine to 0 [code]."""
    backbone_lr_factor: NonNegative = 0.1
    """Learning rate of the ViT over that of the heads [code]."""
    weight_decay: Positive = 0.04
    """Of AdamW at the start, none on norms and biases [code]."""
    weight_decay_end: Positive = 0.5
    """The same at the end, after half a cosine [code]."""
    bf16: bool = True
    """Heavy products in bfloat16, where the device has it; false: all in float32, as in the code [ours]."""

    def check_beside(self, others: Iterable[Any]) -> None:
        """Check against the configurations of the stages before: what they say of the ViT's patch.

        Raises:
            ConfigError: see `sides`.
        """
        for other in others:
            if patch_px := getattr(other, "patch_px", None):
                self.sides(patch_px)

    def sides(self, patch_px: int) -> tuple[int, int]:
        """Sides of global and local crops, px, for a ViT of this patch.

        Raises:
            ConfigError: it cannot cut the crops into patches, or a batch has fewer patches than there are prototypes.
        """
        found = crop_sides(self, patch_px)
        patches = self.batch_size // self.accumulate * (found[0] // patch_px) ** 2
        if self.prototypes > patches:
            raise ConfigError(
                f"prototypes={self.prototypes} cannot get equal shares of the {patches} patches of a batch; raise "
                f"batch_size or set prototypes to at most {patches}"
            )
        return found


def crop_sides(settings: CropSettings, patch_px: int) -> tuple[int, int]:
    """Sides of global and local crops, px, for a ViT of this patch.

    Raises:
        ConfigError: a side is not a multiple of the patch, or leaves too few patches.

    >>> crop_sides(CropSettings(), 14), crop_sides(CropSettings(), 8)
    ((224, 98), (224, 96))
    """
    return (
        _side(settings.global_px, "global_px", GLOBAL_PX, patch_px, MIN_GRID),
        _side(settings.local_px, "local_px", LOCAL_PX, patch_px, 1),
    )


def _side(given: int | None, name: str, published: int, patch_px: int, least: int) -> int:
    near = max(least, round((given or published) / patch_px)) * patch_px
    if given is not None and given != near:
        raise ConfigError(
            f"{name}={given} is not a multiple of the backbone's {patch_px} px patches with at least {least} of them "
            f"along a side; try {near}"
        )
    return near
