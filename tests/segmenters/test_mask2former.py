"""The model: what it gives, attention against the library's, and the ancestor head at its start."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from transformers.models.mask2former.modeling_mask2former import Mask2FormerAttention, Mask2FormerMaskPredictor

from sohes.masks import pairwise_coverage
from sohes.rle import encode_masks
from sohes.segmenters.mask2former import (
    AncestorHead,
    EntitySegmenter,
    attend_heads,
    coverage,
    mask_logits,
)
from tests.segmenters.tiny import tiny_segmenter


@pytest.fixture(scope="module")
def model() -> EntitySegmenter:
    """One tiny model for all tests here; nobody changes it."""
    return tiny_segmenter().eval()


def test_same_seed_same_model(model: EntitySegmenter) -> None:
    torch.manual_seed(123)  # what was drawn before must not matter, nor what is drawn afterwards
    before = torch.random.get_rng_state()
    twin, other = tiny_segmenter(), tiny_segmenter(seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), model.parameters(), strict=True))
    assert not torch.equal(other.class_predictor.weight, model.class_predictor.weight)


def test_outputs_of_every_layer(model: EntitySegmenter) -> None:
    with torch.no_grad():
        output = model(torch.randn(2, 3, 64, 96))
    assert [tuple(x.shape) for x in output.entity_logits] == [(2, 8, 2)] * 3  # learned queries and two layers
    assert [tuple(output.mask_logits(layer).shape) for layer in range(3)] == [(2, 8, 16, 24)] * 3
    assert output.ancestor_logits.shape == (2, 8, 8)


@torch.no_grad()
@pytest.mark.parametrize("size", [(2, 3), (16, 24)])
def test_masks_and_attention_masks_are_those_of_the_library(model: EntitySegmenter, size: tuple[int, int]) -> None:
    ours = model.model.transformer_module.decoder.mask_predictor
    library = Mask2FormerMaskPredictor(ours.hidden_size, ours.num_heads, ours.hidden_size)
    library.load_state_dict(ours.state_dict())
    queries, pixels = torch.randn(8, 2, ours.hidden_size), torch.randn(2, ours.hidden_size, 16, 24)
    embeddings, attention_mask = ours(queries, pixels, size)
    masks, expected = library(queries, pixels, size)
    torch.testing.assert_close(mask_logits(embeddings, pixels), masks)
    assert torch.equal(attention_mask.repeat_interleave(ours.num_heads, dim=0), expected)


def test_attention_is_that_of_the_library(model: EntitySegmenter) -> None:
    layer = copy.deepcopy(model.model.transformer_module.decoder.layers[0]).double()
    dim, heads = layer.self_attn.embed_dim, layer.self_attn.num_heads
    library_self, library_cross = Mask2FormerAttention(dim, heads).double(), nn.MultiheadAttention(dim, heads).double()
    library_self.load_state_dict(layer.self_attn.state_dict())
    library_cross.load_state_dict(layer.cross_attn.state_dict())
    queries, places, tokens, upstream = (10 * torch.randn(n, 2, dim, dtype=torch.float64) for n in (7, 7, 11, 7))
    outside = torch.rand(2, 7, 11) < 0.5
    outside[..., 0] = False
    by_head = outside.repeat_interleave(heads, dim=0)

    def output_and_gradient(attention: nn.Module, *inputs: Tensor, **others: Tensor) -> tuple[Tensor, Tensor]:
        query = queries.clone().requires_grad_()
        found, _ = attention(query, *inputs, **others)
        return found.detach(), torch.autograd.grad(found, query, upstream)[0]

    for ours, library in (
        [output_and_gradient(attend, position_embeddings=places) for attend in (layer.self_attn, library_self)],
        [
            output_and_gradient(layer.cross_attn, tokens, tokens, attn_mask=outside),
            output_and_gradient(library_cross, tokens, tokens, attn_mask=by_head),
        ],
    ):
        torch.testing.assert_close(ours, library)


def test_scores_of_attention_are_not_rounded_to_bfloat16() -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(5, 1, 32, generator=generator).bfloat16()
    keys = (3 * queries[:1] + 0.2 * torch.randn(40, 1, 32, generator=generator)).bfloat16()  # scores of about 17
    values = torch.randn(40, 1, 32, generator=generator).bfloat16()
    found = attend_heads(queries, keys, values, heads=1, dropout=0.0).double()
    q, k, v = (tensor[:, 0].double() for tensor in (queries, keys, values))
    expected = (q @ k.T / 32**0.5).softmax(-1) @ v
    rounded = (q @ k.T / 32**0.5).bfloat16().double().softmax(-1) @ v
    assert (found[:, 0] - expected).abs().max() < 0.5 * (rounded - expected).abs().max()


@torch.no_grad()
def test_under_autocast_logits_come_in_float32(model: EntitySegmenter) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(torch.randn(1, 3, 64, 64))
    assert output.mask_embeddings[0].dtype == output.pixel_features.dtype == torch.bfloat16
    assert output.mask_logits().dtype == output.entity_logits[0].dtype == output.ancestor_logits.dtype == torch.float32


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("neck", ["pyramid", "adapter"])
def test_on_a_gpu_no_devices_are_mixed_and_nothing_is_waited_for(neck: str, training: bool) -> None:
    """On tensors that have a shape and a device only, whose values nobody can ask for."""
    model = tiny_segmenter(neck=neck).train(training)
    shapes = {name: value.shape for name, value in (*model.named_parameters(), *model.named_buffers())}
    with FakeTensorMode():
        state = {name: torch.empty(shape, device="cuda") for name, shape in shapes.items()}
        output = functional_call(model, state, torch.empty(2, 3, 96, 64, device="cuda"))
        assert output.mask_logits().shape == (2, 8, 24, 16)
        assert {value.device.type for value in (output.mask_logits(), output.ancestor_logits)} == {"cuda"}


def rectangles(count: int) -> Tensor:
    """Mask logits (1, `count`, 24, 24) of random rectangles."""
    rng = np.random.default_rng(0)
    logits = torch.full((1, count, 24, 24), -1.0)
    for mask in logits[0]:
        top, left, bottom, right = (*rng.integers(0, 12, 2), *rng.integers(13, 25, 2))
        mask[top:bottom, left:right] = 1.0
    return logits


def test_ancestor_head_starts_as_the_coverage_rule() -> None:
    masks = rectangles(40)
    head = AncestorHead(8, 4)
    with torch.no_grad():
        said = head(torch.zeros(1, 40, 8), masks)[0] > 0
    covered = pairwise_coverage(encode_masks((masks[0] > 0).numpy()))
    rule = (covered >= 0.9) & ~(covered >= 0.9).T
    decided = np.abs(covered - 0.9) > 0.01  # the queries move the threshold a little
    decided &= decided.T
    assert rule.sum() > 20
    assert np.array_equal(said.numpy()[decided], rule[decided])


def test_coverage_is_exact_in_half_precision() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(coverage(rectangles(6)).diagonal(dim1=1, dim2=2), torch.ones(1, 6))


def test_ancestor_head_tells_the_direction() -> None:
    """The formula, and that it is not symmetric."""
    torch.manual_seed(0)
    head, masks = AncestorHead(8, 4), torch.full((1, 5, 4, 4), -1.0)
    queries = torch.randn(1, 5, 8)
    masks[0, 1] = 1.0
    masks[0, 3, :2] = 1.0  # half of mask 1
    with torch.no_grad():
        logits = head(queries, masks)[0]
        above, below = head.as_ancestor(queries)[0], head.as_descendant(queries)[0]
        product = float(above[1] @ below[3]) / 4**0.5
    rule = min(math.log(99) - math.log(9), math.log(9) - 0)  # log-odds of 0.99 for a whole, of 0.5 for a half
    assert float(logits[1, 3]) == pytest.approx(2 * rule + product, rel=1e-4)
    assert float(logits[3, 1]) < -4


def test_ancestor_head_without_the_rule_sees_queries_alone() -> None:
    torch.manual_seed(0)
    head, queries = AncestorHead(8, 4, rule=False), torch.randn(1, 5, 8)
    with torch.no_grad():
        logits = head(queries, rectangles(5))
        above, below = head.as_ancestor(queries)[0], head.as_descendant(queries)[0]
        silent = head(torch.zeros(1, 5, 8), rectangles(5)).sigmoid() - 0.05
        assert torch.equal(logits, head(queries, -rectangles(5)))
    assert float(logits[0, 1, 3]) == pytest.approx(float(above[1] @ below[3]) / 4**0.5 - math.log(19), rel=1e-4)
    assert silent.abs().max() < 0.02  # one pair in twenty, but for the biases of the embeddings


@pytest.mark.parametrize("rule", [True, False])
def test_ancestor_head_can_learn_a_chain(rule: bool) -> None:
    """Any order of four queries is within its reach, whatever their masks say."""
    torch.manual_seed(0)
    head, queries, masks = AncestorHead(8, 4, rule=rule), torch.randn(1, 4, 8), torch.ones(1, 4, 2, 2)
    wanted = torch.triu(torch.ones(4, 4), 1)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(150):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(head(queries, masks)[0], wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(head(queries, masks)[0] > 0, wanted.bool())
