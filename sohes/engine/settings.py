"""Settings of a training: its optimiser, and how it is run and watched."""

from __future__ import annotations

from dataclasses import fields
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from sohes.configuration import Count, Natural, NonNegative, Positive, PositiveShare, settings

Schedule = Literal["step", "cosine"]


@settings
class OptimSettings:
    """Optimiser of phases 2 and 3 (§3.6 of the method notes)."""

    batch_size: Count = 16
    """Images of a step, over all processes and micro-batches [UnSAM]."""
    accumulate: Count = 1
    """Micro-batches of a step, one after another; each is normalised by its own targets [ours]."""
    lr: Positive = 5e-5
    """Learning rate, for 16 images a step [UnSAM]."""
    backbone_lr_factor: NonNegative = 0.1
    """Learning rate of the ViT over that of the rest [UnSAM]."""
    layer_decay: PositiveShare = 1.0
    """Further factor per block of the ViT, from its last block towards the input [ours]."""
    weight_decay: NonNegative = 0.05
    """Of AdamW, none on norms, biases and embeddings [UnSAM]."""
    clip_norm: Positive = 0.01
    """Norm of the gradient at most [UnSAM]."""
    warmup: Natural = 0
    """Steps in which the learning rate rises [ours]."""
    schedule: Schedule = "step"
    """Learning rate: x0.1 at 90 % and 95 % of the steps, or a cosine down to 0 [ours]."""

    @model_validator(mode="after")
    def _micro_batches_are_equal(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size={self.batch_size} is not a multiple of accumulate={self.accumulate}")
        return self


@settings
class RunSettings:
    """How a training of phase 2 or 3 is run and watched; nothing here changes what it learns, up to rounding."""

    NOT_IN_HASH: ClassVar[frozenset[str]] = frozenset()  # all fields, see below

    workers: Natural = 8
    """Processes that load data; 0: the training's own [ours]."""
    checkpoint_every: Count = 500
    """Steps between checkpoints [ours]."""
    keep_checkpoints: Count = 2
    """Checkpoints kept, the last ones [ours]."""
    watch_every: Natural = 500
    """Steps between looks at held-out images; 0: never [ours]."""
    watch_images: Count = 8
    """Held-out images that are watched [ours]."""
    checkpoint_activations: bool = False
    """Compute activations again instead of keeping them: less memory, more time [ours]."""
    compile: bool = False
    """Compile the ViT's blocks; pays on GPUs and in long runs only [ours]."""


# a run may be resumed under others
RunSettings.NOT_IN_HASH = frozenset(field.name for field in fields(RunSettings))
