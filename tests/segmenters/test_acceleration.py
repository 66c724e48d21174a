"""Less memory or less time, the same step."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from sohes.engine.optimizer import freeze_blocks
from sohes.segmenters.acceleration import accelerate
from sohes.segmenters.model import EntitySegmenter
from tests.segmenters.tiny import tiny_segmenter

PIXELS = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def step(segmenter: EntitySegmenter) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss over all outputs, and its gradients."""
    output = segmenter.train()(PIXELS)
    masks = [output.mask_logits(layer) for layer in range(len(output.mask_embeddings))]
    loss = sum(part.square().mean() for part in (*output.entity_logits, *masks, output.ancestor_logits))
    assert isinstance(loss, Tensor)
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in segmenter.named_parameters() if p.grad is not None}


def assert_same_step(first: EntitySegmenter, second: EntitySegmenter) -> None:
    assert first.state_dict().keys() == second.state_dict().keys()
    (loss, gradients), (other, others) = step(first), step(second)
    assert torch.allclose(loss, other, rtol=1e-5)
    assert gradients.keys() == others.keys()
    assert [name for name in gradients if not torch.allclose(gradients[name], others[name], rtol=1e-3, atol=1e-6)] == []


@pytest.mark.parametrize("kind", ["pyramid", "eomt"])
@pytest.mark.parametrize("frozen", [0, 1])
def test_checkpointed_activations(frozen: int, kind: str) -> None:
    """Blocks and decoder layers run twice, once more in the backward pass; a frozen start hinders nobody.

    EoMT's queries, which learn, are in both blocks.
    """
    plain, saving = tiny_segmenter(kind), tiny_segmenter(kind)
    accelerate(nn.ModuleList([saving]), recompute=True, compiled=False)
    for segmenter in (plain, saving):
        freeze_blocks(segmenter.vit, frozen)
    calls: dict[int, int] = {}
    watched = [block.mlp for block in saving.vit.blocks]
    if kind == "pyramid":
        watched += [layer.fc1 for layer in saving.model.transformer_module.decoder.layers]
    parts = {id(part): place for place, part in enumerate(watched)}

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if id(module) in parts:
            calls[parts[id(module)]] = calls.get(parts[id(module)], 0) + 1

    handle = register_module_forward_pre_hook(count)
    try:
        assert_same_step(plain, saving)
    finally:
        handle.remove()
    assert calls == {place: 1 if place < frozen and kind != "eomt" else 2 for place in range(len(watched))}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("kind", ["pyramid", "eomt"])
def test_compiled_blocks(kind: str) -> None:
    plain, compiled = tiny_segmenter(kind), tiny_segmenter(kind)
    accelerate(nn.ModuleList([compiled]), recompute=False, compiled=True)
    torch._dynamo.reset()
    assert_same_step(plain, compiled)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
