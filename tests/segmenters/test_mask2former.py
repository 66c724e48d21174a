"""Mask2Former: masks and attention against the library's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers.models.mask2former.modeling_mask2former import Mask2FormerAttention, Mask2FormerMaskPredictor

from sohes.segmenters.mask2former import Mask2FormerSegmenter, attend_heads
from sohes.segmenters.model import mask_logits
from tests.segmenters.tiny import tiny_segmenter


@pytest.fixture(scope="module")
def model() -> Mask2FormerSegmenter:
    """One tiny model for all tests here; nobody changes it."""
    return tiny_segmenter().eval()


@torch.no_grad()
@pytest.mark.parametrize("size", [(2, 3), (16, 24)])
def test_masks_and_attention_masks_are_those_of_the_library(model: Mask2FormerSegmenter, size: tuple[int, int]) -> None:
    ours = model.model.transformer_module.decoder.mask_predictor
    library = Mask2FormerMaskPredictor(ours.hidden_size, ours.num_heads, ours.hidden_size)
    library.load_state_dict(ours.state_dict())
    queries, pixels = torch.randn(8, 2, ours.hidden_size), torch.randn(2, ours.hidden_size, 16, 24)
    embeddings, attention_mask = ours(queries, pixels, size)
    masks, expected = library(queries, pixels, size)
    torch.testing.assert_close(mask_logits(embeddings, pixels), masks)
    assert torch.equal(attention_mask.repeat_interleave(ours.num_heads, dim=0), expected)


def test_attention_is_that_of_the_library(model: Mask2FormerSegmenter) -> None:
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
