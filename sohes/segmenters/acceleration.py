"""Less memory or less time for the same step, up to rounding."""

from __future__ import annotations

import warnings

from torch import nn

from sohes.segmenters.mask2former import EntitySegmenter


def accelerate(model: nn.Module, *, recompute: bool, compiled: bool) -> None:
    """Switch on what is asked for, in every segmenter of `model`; call it when the model is complete.

    Args:
        model: a segmenter, or what holds some.
        recompute: see `checkpoint_activations`.
        compiled: see `compile_blocks`.
    """
    for segmenter in [part for part in model.modules() if isinstance(part, EntitySegmenter)]:
        if recompute:
            checkpoint_activations(segmenter)
        if compiled:
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

    It pays on GPUs and in long trainings only: the first steps wait for the compiler. On CPUs it needs a C++ compiler.
    """
    for block in segmenter.vit.blocks:
        block.compile()
