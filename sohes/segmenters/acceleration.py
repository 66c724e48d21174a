"""Less memory or less time for the same step, up to rounding."""

from __future__ import annotations

import warnings

from torch import nn

from sohes.engine.settings import RunSettings
from sohes.segmenters.mask2former import EntitySegmenter


def prepare(model: nn.Module, settings: RunSettings) -> None:
    """Switch on what the settings ask for, in every segmenter of `model` (call it when the model is complete)."""
    for segmenter in [part for part in model.modules() if isinstance(part, EntitySegmenter)]:
        if settings.checkpoint_activations:
            checkpoint_activations(segmenter)
        if settings.compile:
            compile_blocks(segmenter)


def checkpoint_activations(segmenter: EntitySegmenter) -> None:
    """Let the backward pass compute the activations of the ViT's blocks and of the decoder's layers again."""
    segmenter.vit.set_grad_checkpointing(True)
    segmenter.supports_gradient_checkpointing = True  # the layers do; transformers' class does not say so
    with warnings.catch_warnings():
        # newer releases have another name for it, but the older ones that may be installed know only this one
        warnings.simplefilter("ignore", FutureWarning)
        segmenter.gradient_checkpointing_enable({"use_reentrant": False})


def compile_blocks(segmenter: EntitySegmenter) -> None:
    """`torch.compile` each block of the ViT in place; the names of the weights stay.

    It pays on GPUs and in long runs only: the first steps wait for the compiler. Needs a C++ compiler on a CPU.
    """
    for block in segmenter.vit.blocks:
        block.compile()
