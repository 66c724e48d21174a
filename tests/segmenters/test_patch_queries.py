"""Queries that start as patches: their places, first masks, and how a segmenter predicts before it has learnt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sohes.errors import ConfigError
from sohes.instruct.stage import InstructConfig
from sohes.segmenters.patch_queries import SHARPNESS, THRESHOLDS, PatchQueries
from tests.segmenters.tiny import tiny_segmenter


def test_a_first_mask_holds_the_patches_alike() -> None:
    """Against the definition in NumPy: two places of four patches each, in a map of 2 x 4 patches of three channels."""
    patches = np.random.default_rng(0).normal(size=(3, 2, 4))
    queries, first = PatchQueries(3)(torch.from_numpy(patches).float()[None])
    assert queries.shape == (1, 4, 3)
    logits = torch.einsum("bnc,bchw->bnhw", first.embeddings, first.features)[0].detach().numpy()
    centred = patches - patches.mean((1, 2), keepdims=True)
    for place in range(2):
        mean = centred[:, :, 2 * place : 2 * place + 2].mean((1, 2))
        for kind, threshold in enumerate(THRESHOLDS):
            for row, column in np.ndindex(2, 4):
                patch = centred[:, row, column]
                cosine = patch @ mean / np.linalg.norm(patch) / np.linalg.norm(mean)
                wanted = SHARPNESS * (cosine - threshold)
                assert logits[2 * place + kind, row, column] == pytest.approx(wanted, abs=1e-4)


def test_a_query_starts_as_the_mean_of_its_patches() -> None:
    module = PatchQueries(2)
    patches = torch.arange(2 * 3 * 5.0).view(1, 2, 3, 5)  # the last row and column have no place
    queries, _ = module(patches)
    means = [[[0, 1, 5, 6], [2, 3, 7, 8]], [[15, 16, 20, 21], [17, 18, 22, 23]]]
    for place in range(2):
        for kind in range(len(THRESHOLDS)):
            wanted = torch.tensor([np.mean(channel[place]) for channel in means]) + module.offsets.weight[kind]
            torch.testing.assert_close(queries[0, 2 * place + kind], wanted.float())


@pytest.mark.parametrize(("rows", "columns", "places"), [(1, 1, 1), (1, 5, 5), (2, 2, 1), (7, 4, 6)])
def test_their_number_follows_the_image(rows: int, columns: int, places: int) -> None:
    queries, first = PatchQueries(4)(torch.randn(1, 4, rows, columns))
    assert queries.shape[1] == first.embeddings.shape[1] == len(THRESHOLDS) * places


@torch.no_grad()
def test_before_training_a_segmenter_predicts_the_first_masks_alone() -> None:
    """After every layer, those of the tokens where the queries join: before the first of both blocks."""
    model, pixels = tiny_segmenter("patches").train(), torch.randn(1, 3, 64, 96)
    vit = model.vit
    tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(pixels)))
    _, first = model.queries(tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 6)))
    masks = torch.einsum("bnc,bchw->bnhw", first.embeddings, F.interpolate(first.features, (16, 24), mode="bilinear"))
    output = model(pixels)
    assert output.entity_logits[0].shape == (1, 12, 2)
    for layer in range(3):
        torch.testing.assert_close(output.mask_logits(layer), masks, atol=1e-4, rtol=1e-4)


def test_mask2former_has_none() -> None:
    with pytest.raises(ConfigError, match="query_start=patches is for segmenter=eomt, not mask2former"):
        InstructConfig(query_start="patches")
