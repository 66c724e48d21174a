"""Less memory or less time for the same step, up to rounding."""

from __future__ import annotations

from torch import nn

from sohes.segmenters.model import EntitySegmenter


def accelerate(model: nn.Module, *, recompute: bool, compiled: bool) -> None:
    """Switch on what is asked for, in every segmenter of `model`; call it when the model is complete.

    Args:
        model: a segmenter, or what holds some.
        recompute: see `EntitySegmenter.checkpoint_activations`.
        compiled: see `compile_blocks`.
    """
    for segmenter in [part for part in model.modules() if isinstance(part, EntitySegmenter)]:
        if recompute:
            segmenter.checkpoint_activations()
        if compiled:
            compile_blocks(segmenter)


def compile_blocks(segmenter: EntitySegmenter) -> None:
    """`torch.compile` each block of the ViT in place; the names of the weights stay.

    It pays on GPUs and in long trainings only: the first steps wait for the compiler. On CPUs it needs a C++ compiler.
    """
    for block in segmenter.vit.blocks:
        block.compile()
