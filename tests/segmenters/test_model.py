"""What holds for every model of entities."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from sohes.segmenters.model import EntitySegmenter
from tests.segmenters.tiny import KINDS, tiny_segmenter


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each in turn."""
    return request.param


@pytest.fixture(scope="module")
def model(kind: str) -> EntitySegmenter:
    """One tiny model of the kind; in training mode, and nobody changes it."""
    return tiny_segmenter(kind).train()


def test_same_seed_same_model(kind: str, model: EntitySegmenter) -> None:
    torch.manual_seed(123)  # what was drawn before must not matter, nor what is drawn afterwards
    before = torch.random.get_rng_state()
    twin, other = tiny_segmenter(kind), tiny_segmenter(kind, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), model.parameters(), strict=True))
    assert not torch.equal(other.class_predictor.weight, model.class_predictor.weight)


def test_outputs_of_every_layer(kind: str, model: EntitySegmenter) -> None:
    with torch.no_grad():
        output = model(torch.randn(2, 3, 64, 96))
    count = 2 * 2 * 3 if kind == "patches" else 8  # two at every second of 4 x 6 patches
    assert [tuple(x.shape) for x in output.entity_logits] == [(2, count, 2)] * 3  # as the queries start, and two layers
    assert [tuple(output.mask_logits(layer).shape) for layer in range(3)] == [(2, count, 16, 24)] * 3
    assert output.ancestor_logits.shape == (2, count, count)


@torch.no_grad()
def test_under_autocast_logits_come_in_float32(model: EntitySegmenter) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(torch.randn(1, 3, 64, 64))
    assert output.mask_embeddings[0].dtype == output.pixel_features[0].dtype == torch.bfloat16
    assert output.mask_logits().dtype == output.entity_logits[0].dtype == output.ancestor_logits.dtype == torch.float32


@pytest.mark.parametrize("training", [True, False])
def test_on_a_gpu_no_devices_are_mixed_and_nothing_is_waited_for(kind: str, training: bool) -> None:
    """On tensors that have a shape and a device only, whose values nobody can ask for."""
    model = tiny_segmenter(kind).train(training)
    shapes = {name: value.shape for name, value in (*model.named_parameters(), *model.named_buffers())}
    with FakeTensorMode():
        if kind == "eomt":
            model.masked = [torch.empty(8, device="cuda", dtype=torch.bool)] * 2
        state = {name: torch.empty(shape, device="cuda") for name, shape in shapes.items()}
        output = functional_call(model, state, torch.empty(2, 3, 96, 64, device="cuda"))
        assert output.mask_logits().shape == (2, 12 if kind == "patches" else 8, 24, 16)
        assert {value.device.type for value in (output.mask_logits(), output.ancestor_logits)} == {"cuda"}
