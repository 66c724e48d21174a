"""Segment means, farthest points and graph pooling: the authors' values, and versions with plain loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sohes.backbones.cast.pooling import GraphPooling
from sohes.backbones.cast.sampling import farthest_points
from sohes.backbones.cast.segment_mean import SegmentMean
from sohes.backbones.cast.segments import segment_levels
from tests.backbones.cast.reference import golden, naive_farthest, weights


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels_of(*shape: int, count: int) -> Tensor:
    return torch.randint(0, count, shape, generator=torch.Generator().manual_seed(1))


def test_their_segment_means() -> None:
    values = golden("segment_mean")
    mean = SegmentMean(values["labels"], 16)
    torch.testing.assert_close(mean(values["x"]), values["mean"], atol=1e-6, rtol=0)
    assert torch.equal(mean.empty, values["empty"])


def test_means_by_a_loop() -> None:
    labels, cells = labels_of(2, 6, 9, count=12), random(2, 6, 9, 3)
    labels[labels == 5] = 4
    mean = SegmentMean(labels, 20)  # 12 to 19 belong to another image of a batch
    found = mean(cells)
    for image in range(2):
        for label in range(20):
            inside = labels[image] == label
            assert bool(mean.empty[image, label]) != bool(inside.any())
            expected = cells[image][inside].mean(0) if inside.any() else torch.zeros(3)
            torch.testing.assert_close(found[image, label], expected)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_finer_labels_as_if_the_map_were_interpolated(mode: str) -> None:
    labels, cells = labels_of(2, 24, 40, count=9), random(2, 3, 5, 4).requires_grad_()
    mean = SegmentMean(labels, 9)
    finer = F.interpolate(cells.permute(0, 3, 1, 2), size=(24, 40), mode=mode).permute(0, 2, 3, 1)
    expected = SegmentMean(labels, 9)(finer)
    found = mean(cells, mode)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    wanted = random(2, 9, 4, seed=3)
    gradients = [torch.autograd.grad((one * wanted).sum(), cells, retain_graph=True)[0] for one in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=0)
    torch.testing.assert_close(mean(cells[:1], mode)[1], mean(cells[:1].expand(2, -1, -1, -1), mode)[1])


def test_their_farthest_points() -> None:
    values = golden("farthest_points")
    assert torch.equal(farthest_points(values["tokens"], 8), values["picked"])


@pytest.mark.parametrize("seed", range(3))
def test_farthest_points_by_a_loop(seed: int) -> None:
    tokens = random(4, 17, 5, seed=seed)
    empty = random(4, 17, seed=seed + 10) > 1
    picked = farthest_points(tokens, 9, empty)
    expected = [naive_farthest(*pair) for pair in zip(tokens.double(), [9] * 4, empty, strict=True)]
    assert picked.tolist() == expected


def test_no_token_is_picked_twice_even_if_all_are_equal() -> None:
    assert farthest_points(torch.ones(1, 5, 2), 5).tolist() == [[0, 1, 2, 3, 4]]


def test_too_few_tokens_are_picked_again_and_empty_ones_never() -> None:
    """On a line, and by hand: of 3, 9 and 4, with mean 5 1/3, the farthest is 9, then 3, then 4."""
    tokens = torch.tensor([3.0, 100, 9, 4])[None, :, None]
    assert farthest_points(tokens, 5, tokens[..., 0] == 100).tolist() == [[2, 0, 3, 0, 0]]


def test_what_is_not_finite_is_picked_once() -> None:
    """As of a training that diverges, which the engine names; an index that is none would end it elsewhere."""
    tokens = random(2, 5, 3)
    tokens[1] = math.nan
    picked = farthest_points(tokens, 4)
    assert torch.equal(picked[0], farthest_points(tokens[:1], 4)[0])
    assert sorted(picked[1].tolist()) == [0, 1, 2, 3]


def pooling(mask_empty: bool = False) -> tuple[dict[str, Tensor], GraphPooling]:
    values = golden("graph_pooling")
    layer = GraphPooling(24, 12, mask_empty=mask_empty).eval()
    layer.load_state_dict(weights(values))
    return values, layer


@torch.no_grad()
def test_their_pooling() -> None:
    values, layer = pooling()
    found = layer(values["cls"], values["tokens"], 4, values["empty"])
    assert torch.equal(found.picked, values["picked"])
    for ours, theirs in (("cls", "cls_out"), ("tokens", "pooled"), ("logits", "logits")):
        torch.testing.assert_close(getattr(found, ours), values[theirs], atol=1e-5, rtol=0)
    torch.testing.assert_close(layer.affinity(values["tokens"], None), values["affinity_features"], atol=1e-5, rtol=0)
    found = layer(values["cls"], values["tokens"], 4)
    assert torch.equal(found.picked, values["no_mask_picked"])
    torch.testing.assert_close(found.tokens, values["no_mask_pooled"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_empty_tokens_change_nothing() -> None:
    values, layer = pooling(mask_empty=True)
    empty = torch.zeros(2, 10, dtype=torch.bool)
    empty[:, 7:] = True
    found = layer(values["cls"], values["tokens"], 4, empty)
    expected = layer(values["cls"], values["tokens"][:, :7], 4)
    assert torch.equal(found.picked, expected.picked)
    torch.testing.assert_close(found.tokens, expected.tokens, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.logits[:, :7], expected.logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_pairs_of_equal_affinity_merge() -> None:
    """Each of 6 tokens has a twin: 6 groups are the twins, whose shares are the softmax of 5 cosines."""
    values, layer = pooling()
    tokens = values["tokens"][:, :6].repeat_interleave(2, dim=1)
    found = layer(values["cls"], tokens, 6)
    assert all(len({place // 2 for place in places}) == 6 for places in found.picked.tolist())
    groups = found.logits.argmax(dim=2)
    assert torch.equal(groups[:, 0::2], groups[:, 1::2])
    assert all(len(set(row)) == 6 for row in groups[:, 0::2].tolist())
    torch.testing.assert_close(found.logits.softmax(2).sum(2), torch.ones(2, 12))
    torch.testing.assert_close(found.logits.amax(dim=2), torch.full((2, 12), 5.0))


def test_half_precision_picks_and_groups_as_float32_does() -> None:
    values, layer = pooling()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(values["cls"], values["tokens"], 4, values["empty"])
    assert torch.equal(found.picked, values["picked"])
    assert found.logits.dtype == torch.float32
    torch.testing.assert_close(found.tokens.float(), values["pooled"], atol=0.05, rtol=0)


def test_certainty_is_the_lead_over_the_second_best() -> None:
    """Two superpixels, three groups, then one: worked by hand."""
    first = torch.tensor([[[0.0, 2.0, 1.0], [3.0, -1.0, 3.0]]])
    second = torch.tensor([[[0.5], [0.25], [0.0]]])
    found = segment_levels([first, second], torch.tensor([[0, 1]]))
    assert [labels.tolist() for labels in found.labels] == [[[1, 0]], [[0, 0]]]
    torch.testing.assert_close(found.certainty[0], torch.tensor([[math.e / (1 + math.e), 0.5]]))
    assert found.certainty[1].tolist() == [[1.0, 1.0]]
