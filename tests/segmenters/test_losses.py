"""Every loss term against numbers worked by hand or a plain reference."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from sohes.segmenters import losses
from sohes.segmenters.losses import ancestor_loss, segmentation_loss, unlike_targets
from sohes.segmenters.matching import Targets, match
from sohes.segmenters.model import SegmenterOutput
from sohes.segmenters.settings import LossSettings
from tests.segmenters.samples import SETTINGS, SIZE, grid_points, make_output, make_targets, output_of, pairs


@pytest.fixture
def full_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pixel is a sampled point, once, so that the terms are sums over pixels."""
    monkeypatch.setattr(losses, "_uncertain_points", lambda logits, random, settings: grid_points(len(logits)))


@pytest.mark.usefixtures("full_grid")
def test_terms_against_a_plain_reference() -> None:
    output, targets = make_output(2, 4, layers=2), make_targets([3, 1])
    matchings = [pairs((0, 2, 0), (0, 0, 1), (0, 3, 2), (1, 1, 0)), pairs((0, 1, 0), (0, 2, 1), (0, 0, 2), (1, 3, 0))]
    found = segmentation_loss(output, targets, matchings, SETTINGS)

    entity = mask = dice = 0.0
    for layer, matching in enumerate(matchings):
        taken = {
            (int(i), int(q)): int(t) for i, q, t in zip(matching.image, matching.query, matching.target, strict=True)
        }
        total = weights = 0.0
        for image, query in itertools.product(range(2), range(4)):
            logp = output.entity_logits[layer][image, query].log_softmax(-1)
            is_entity = (image, query) in taken
            weight = 1.0 if is_entity else 0.1
            total -= weight * float(logp[0 if is_entity else 1])
            weights += weight
        entity += total / weights
        for (image, query), target in taken.items():
            logits = output.mask_logits(layer)[image, query]
            wanted = targets.masks[image, target].float()
            probability = logits.sigmoid()
            mask += float(-(wanted * logits.sigmoid().log() + (1 - wanted) * (-logits).sigmoid().log()).mean()) / 4
            dice += float(1 - (2 * (probability * wanted).sum() + 1) / (probability.sum() + wanted.sum() + 1)) / 4
    assert float(found["entity"].detach()) == pytest.approx(2 * entity, rel=1e-5)
    assert float(found["mask"].detach()) == pytest.approx(5 * mask, rel=1e-5)
    assert float(found["dice"].detach()) == pytest.approx(5 * dice, rel=1e-5)


@pytest.mark.usefixtures("full_grid")
def test_entity_mask_and_dice_by_hand() -> None:
    """Two queries, one target of 16 pixels; logit 0 everywhere, so every probability is a half."""
    masks = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    masks[0, :2] = True
    targets = Targets.pad([masks], [torch.zeros(1, 1, dtype=torch.bool)])
    output = output_of([torch.zeros(1, 2, 2)], [torch.zeros(1, 2, SIZE, SIZE)], torch.zeros(1, 2, 2))
    found = segmentation_loss(output, targets, [pairs((0, 1, 0))], SETTINGS)
    assert float(found["entity"]) == pytest.approx(2 * math.log(2))
    assert float(found["mask"]) == pytest.approx(5 * math.log(2))
    assert float(found["dice"]) == pytest.approx(5 * (1 - (2 * 8 + 1) / (32 + 16 + 1)))
    assert float(found["ancestor"]) == 0


@pytest.mark.usefixtures("full_grid")
def test_excluded_queries_have_no_no_object_loss() -> None:
    output, targets = make_output(1, 4), make_targets([1])
    matching = pairs((0, 0, 0))
    excluded = torch.tensor([[True, False, True, False]])
    found = segmentation_loss(output, targets, [matching], SETTINGS, excluded=[excluded])["entity"]
    (gradient,) = torch.autograd.grad(found, output.entity_logits[0])
    taught = gradient[0].abs().sum(-1) > 0
    assert taught.tolist() == [True, True, False, True]  # the matched one is taught, excluded or not
    logp = output.entity_logits[0][0].log_softmax(-1)
    expected = -2 * (logp[0, 0] + 0.1 * logp[1, 1] + 0.1 * logp[3, 1]) / 1.2
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_no_targets_at_all() -> None:
    output = make_output(2, 4, layers=2)
    targets = Targets.pad([torch.zeros(0, SIZE, SIZE, dtype=torch.bool)] * 2, [torch.zeros(0, 0, dtype=torch.bool)] * 2)
    assert targets.masks.shape == (2, 1, SIZE, SIZE)
    assert not targets.valid.any()
    matchings = match(output, targets, SETTINGS)
    found = segmentation_loss(output, targets, matchings, SETTINGS)
    assert float(found["entity"].detach()) > 0
    assert [float(found[name].detach()) for name in ("mask", "dice", "ancestor")] == [0, 0, 0]
    everyone = [torch.ones(2, 4, dtype=torch.bool)] * 2
    silent = segmentation_loss(output, targets, matchings, SETTINGS, excluded=everyone)
    assert float(sum(silent.values()).detach()) == 0
    sum(silent.values()).backward()  # the graph must be whole: other processes may have pairs
    assert output.ancestor_logits.grad is not None


def test_sampled_points_are_the_uncertain_ones() -> None:
    """Logits rise from left to right and are 0 in the middle: three quarters of the points lie near it."""
    ramp = torch.linspace(-8, 8, 64).expand(1, 1, 64, 64)
    settings = replace(SETTINGS, points=400)
    random = torch.rand(1, 1300, 2, generator=torch.Generator().manual_seed(0))
    points = losses._uncertain_points(ramp, random, settings)
    assert points.shape == (1, 400, 2)
    near = (points[0, :, 0] - 0.5).abs() < 0.2
    assert 0.75 <= float(near.float().mean()) <= 0.92  # the other quarter is spread evenly: two fifths of it are near
    spread = points[0, 300:]
    assert float(spread.min()) < 0.05
    assert float(spread.max()) > 0.95


def three_targets(positives: list[tuple[int, int]]) -> Targets:
    relation = torch.zeros(3, 3, dtype=torch.bool)
    for ancestor, descendant in positives:
        relation[ancestor, descendant] = True
    return Targets.pad([torch.ones(3, 2, 2, dtype=torch.bool)], [relation])


# queries 4, 0 and 2 stand for targets 0, 1 and 2
MATCHED = pairs((0, 4, 0), (0, 0, 1), (0, 2, 2))


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def test_ancestor_loss_by_hand() -> None:
    logits = torch.full((1, 5, 5), 99.0)  # what is not matched, and the diagonal, must not count
    logits[0, 4, 0], logits[0, 4, 2], logits[0, 0, 2] = 2.0, -1.0, 0.5  # 0 above 1, 0 above 2, 1 above 2
    logits[0, 0, 4], logits[0, 2, 4], logits[0, 2, 0] = -3.0, 1.0, 0.0  # and the other way round
    found = ancestor_loss(logits, three_targets([(0, 1), (0, 2)]), MATCHED)
    positive = softplus(-2.0) + softplus(1.0)
    negative = softplus(0.5) + softplus(-3.0) + softplus(1.0) + softplus(0.0)
    assert float(found) == pytest.approx((positive + negative) / 6, rel=1e-5)


def test_pairs_across_images_do_not_count() -> None:
    targets = make_targets([1, 1])
    logits = torch.randn(2, 5, 5).requires_grad_()
    found = ancestor_loss(logits, targets, pairs((0, 1, 0), (1, 2, 0)))
    assert float(found.detach()) == 0
    found.backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_means_run_over_the_whole_batch() -> None:
    """Six pairs in the first image, two in the second: each pair weighs the same."""
    relation = torch.zeros(3, 3, dtype=torch.bool)
    relation[0, 1] = True
    small = torch.zeros(2, 2, dtype=torch.bool)
    small[0, 1] = True
    targets = Targets.pad(
        [torch.ones(3, 2, 2, dtype=torch.bool), torch.ones(2, 2, 2, dtype=torch.bool)], [relation, small]
    )
    logits = torch.zeros(2, 3, 3)
    logits[1, 0, 1], logits[1, 1, 0] = 3.0, 3.0
    matching = pairs((0, 0, 0), (0, 1, 1), (0, 2, 2), (1, 0, 0), (1, 1, 1))
    expected = (6 * math.log(2) + softplus(-3.0) + softplus(3.0)) / 8
    assert float(ancestor_loss(logits, targets, matching)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("full_grid")
def test_only_matched_maps_get_gradients() -> None:
    output, targets = make_output(2, 4), make_targets([2, 1])
    output.mask_embeddings[0].retain_grad()
    found = segmentation_loss(output, targets, [pairs((0, 3, 0), (0, 0, 1), (1, 2, 0))], SETTINGS)
    (found["mask"] + found["dice"]).backward()
    gradient = output.mask_embeddings[0].grad
    assert gradient is not None
    assert gradient.abs().sum(-1).nonzero().tolist() == [[0, 0], [0, 3], [1, 2]]


def test_the_loss_does_not_depend_on_how_a_batch_is_spread() -> None:
    """Mask terms of two images are the sums of each alone, at its own random points."""
    output, targets = make_output(2, 6, layers=2), make_targets([3, 2])
    settings = replace(SETTINGS, points=20)

    def terms(images: slice) -> list[float]:
        part = SegmenterOutput(
            [x[images] for x in output.entity_logits],
            [x[images] for x in output.mask_embeddings],
            [x[images] for x in output.pixel_features],
            output.ancestor_logits[images],
        )
        theirs = Targets(*(x[images] for x in (targets.masks, targets.valid, targets.ancestor, targets.keys)))
        found = segmentation_loss(part, theirs, match(part, theirs, settings), settings)
        count = float(theirs.valid.sum())
        return [float(found[name].detach()) * count for name in ("mask", "dice")]

    both, first, second = terms(slice(0, 2)), terms(slice(0, 1)), terms(slice(1, 2))
    assert both == pytest.approx([a + b for a, b in zip(first, second, strict=True)], rel=1e-5)


def stripes(*rows: slice) -> torch.Tensor:
    """Masks (len(rows), 16, 16), true in some rows."""
    masks = torch.zeros(len(rows), 16, 16, dtype=torch.bool)
    for mask, own in zip(masks, rows, strict=True):
        mask[own] = True
    return masks


def test_queries_unlike_every_target() -> None:
    """Predictions of 8 x 8 against targets of 16 x 16; a row of the prediction is two of the target."""
    targets = Targets.pad(
        [stripes(slice(0, 4), slice(4, 8)), stripes(slice(0, 16))],
        [torch.zeros(2, 2, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.bool)],
    )
    logits = torch.full((2, 4, SIZE, SIZE), -3.0)
    logits[0, 0, 3:] = 1.0  # one row in common with the second target: IoU 8 / 48
    logits[0, 1, 4:] = 1.0  # none
    logits[0, 2, :2] = 1.0  # the first target; the fourth query predicts nothing
    logits[1, 0, 0, 0] = 1.0  # 1 of 64 pixels: IoU 0.016
    output = output_of([torch.zeros(2, 4, 2)], [logits], torch.zeros(2, 4, 4))
    (unlike,) = unlike_targets(output, targets)
    assert unlike.tolist() == [[False, True, False, True], [False, True, True, True]]


def test_the_bound_of_unlike() -> None:
    """An IoU of 1 / 100 is like the target, one of 0 is not."""
    target = torch.zeros(1, 10, 10, dtype=torch.bool)
    target[0, 0, 0] = True
    logits = torch.ones(1, 2, 10, 10)
    logits[0, 1, 0, 0] = -1.0
    targets = Targets.pad([target], [torch.zeros(1, 1, dtype=torch.bool)])
    (unlike,) = unlike_targets(output_of([torch.zeros(1, 2, 2)], [logits], torch.zeros(1, 2, 2)), targets)
    assert unlike.tolist() == [[False, True]]


def test_soft_no_object_excludes_the_unlike_beside_what_the_caller_excludes() -> None:
    targets = Targets.pad([stripes(slice(0, 8))], [torch.zeros(1, 1, dtype=torch.bool)])
    logits = torch.full((1, 4, SIZE, SIZE), -3.0)
    logits[0, [0, 1], :4] = 3.0  # a duplicate of the matched query
    logits[0, 2, 6:] = 3.0  # something that no target shows
    logits[0, 3, :2] = 3.0
    output = output_of(make_output(1, 4).entity_logits, [logits], torch.zeros(1, 4, 4))
    matching, soft = pairs((0, 0, 0)), replace(SETTINGS, soft_no_object=True)

    def taught(settings: LossSettings, excluded: list[torch.Tensor] | None) -> list[bool]:
        loss = segmentation_loss(output, targets, [matching], settings, excluded=excluded)["entity"]
        (gradient,) = torch.autograd.grad(loss, output.entity_logits[0])
        return (gradient[0].abs().sum(-1) > 0).tolist()

    assert taught(SETTINGS, None) == [True, True, True, True]
    assert taught(soft, None) == [True, True, False, True]
    assert taught(soft, [torch.tensor([[True, False, False, True]])]) == [True, True, False, False]
