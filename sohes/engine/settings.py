"""Settings of any training: how its steps are made, and how it is run. A method's own settings derive from them."""

from __future__ import annotations

import importlib.util
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from sohes.configuration import Count, Natural, Positive, settings

Schedule = Literal["step", "cosine"]
Tracker = Literal["tensorboard", "wandb", "mlflow"]


@settings
class OptimSettings:
    """How many steps a training has, and how they are made."""

    iterations: Count = 40_000
    """Steps [ours]."""
    batch_size: Count = 16
    """Images of a step, over all processes and micro-batches [ours]."""
    accumulate: Count = 1
    """Micro-batches of a step, one after another; each is normalised by itself [ours]."""
    clip_norm: Positive | None = None
    """Norm of the gradient at most; null: not clipped [ours]."""
    warmup: Natural = 0
    """Steps in which the learning rate rises [ours]."""
    schedule: Schedule = "cosine"
    """Learning rate: x0.1 at 90 % and 95 % of the steps, or a cosine down to 0 [ours]."""

    @model_validator(mode="after")
    def _micro_batches_are_equal(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size={self.batch_size} is not a multiple of accumulate={self.accumulate}")
        return self

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        if self.warmup >= self.iterations:
            raise ValueError(f"warmup={self.warmup} leaves none of iterations={self.iterations}")
        return self


@settings
class RunSettings:
    """How a training is run. Nothing here changes what it learns, up to rounding, so it may be resumed under others."""

    NOT_IN_HASH: ClassVar[frozenset[str]] = frozenset({"workers", "checkpoint_every", "keep_checkpoints", "tracker"})

    workers: Natural = 8
    """Processes that load data; 0: the training's own [ours]."""
    checkpoint_every: Count = 500
    """Steps between checkpoints [ours]."""
    keep_checkpoints: Count = 2
    """Checkpoints kept, the last ones [ours]."""
    tracker: Tracker = "tensorboard"
    """Where the training can be watched; wandb and mlflow are extras of the installation [ours]."""

    @model_validator(mode="after")
    def _tracker_is_installed(self) -> Self:
        found = importlib.util.find_spec(self.tracker)
        if found is None or found.origin is None:  # the latter a folder of that name, as wandb leaves them
            raise ValueError(
                f"tracker={self.tracker} needs the package {self.tracker}: pip install 'sohes[{self.tracker}]'"
            )
        return self
