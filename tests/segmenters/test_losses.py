"""Matching against all permutations; every loss term against numbers worked by hand or a plain reference."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sohes.segmenters import losses
from sohes.segmenters.losses import Matching, Targets, ancestor_loss, match, segmentation_loss
from sohes.segmenters.mask2former import SegmenterOutput
from sohes.settings import LossSettings

SIZE = 8
SETTINGS = LossSettings(points=SIZE * SIZE)


def grid_points(count: int) -> Tensor:
    """The centres of all pixels, (count, 64, 2), x before y."""
    centres = (torch.arange(SIZE) + 0.5) / SIZE
    rows, columns = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([columns, rows], dim=-1).reshape(1, -1, 2).expand(count, -1, 2)


@pytest.fixture
def full_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pixel is a sampled point, once, so that the terms are sums over pixels."""
    monkeypatch.setattr(losses, "_random_points", lambda keys, use, rows, points, device: grid_points(sum(rows)))
    monkeypatch.setattr(losses, "_uncertain_points", lambda logits, random, settings: grid_points(len(logits)))


def make_output(images: int, queries: int, layers: int = 1, seed: int = 0) -> SegmenterOutput:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (2 * torch.randn(*shape, generator=generator)).requires_grad_()

    return SegmenterOutput(
        entity_logits=[draw(images, queries, 2) for _ in range(layers)],
        mask_logits=[draw(images, queries, SIZE, SIZE) for _ in range(layers)],
        ancestor_logits=draw(images, queries, queries),
    )


def make_targets(counts: list[int], seed: int = 1) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    masks = [torch.randn(count, SIZE, SIZE, generator=generator) > 0.25 for count in counts]
    relations = [torch.zeros(count, count, dtype=torch.bool) for count in counts]
    return Targets.pad(masks, relations)


@torch.no_grad()
def pair_cost(entity: Tensor, mask: Tensor, target: Tensor) -> float:
    """Mask2Former's cost of one query and one target, all pixels."""
    target = target.float()
    probability = mask.sigmoid()
    dice = 1 - (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)
    cross_entropy = F.binary_cross_entropy_with_logits(mask, target)
    return float(5 * cross_entropy + 5 * dice - 2 * entity.softmax(-1)[0])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.usefixtures("full_grid")
def test_matching_is_the_cheapest_of_all(seed: int) -> None:
    output, targets = make_output(2, 5, layers=2, seed=seed), make_targets([3, 2], seed=seed + 10)
    matchings = match(output, targets, SETTINGS)
    assert len(matchings) == 2
    for layer, matching in enumerate(matchings):
        for image, count in enumerate([3, 2]):
            cost = [
                [
                    pair_cost(
                        output.entity_logits[layer][image, query],
                        output.mask_logits[layer][image, query],
                        targets.masks[image, target],
                    )
                    for target in range(count)
                ]
                for query in range(5)
            ]
            best = min(
                itertools.permutations(range(5), count),
                key=lambda queries: sum(cost[q][t] for t, q in enumerate(queries)),
            )
            own = matching.image == image
            found = sorted(zip(matching.target[own].tolist(), matching.query[own].tolist(), strict=True))
            assert found == list(enumerate(best))


def test_more_targets_than_queries() -> None:
    matchings = match(make_output(1, 2), make_targets([4]), SETTINGS)
    assert sorted(matchings[0].query.tolist()) == [0, 1]
    assert len(set(matchings[0].target.tolist())) == 2


def test_matching_survives_numbers_that_are_not() -> None:
    output = make_output(1, 3)
    with torch.no_grad():
        output.mask_logits[0][0, 1] = torch.nan
    (matching,) = match(output, make_targets([2]), SETTINGS)
    assert sorted(matching.query.tolist()) == [0, 2]


def pairs(*rows: tuple[int, int, int]) -> Matching:
    """Of (image, query, target) each."""
    columns = torch.tensor(rows, dtype=torch.long).reshape(-1, 3).unbind(1)
    return Matching(*columns)


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
            logits = output.mask_logits[layer][image, query]
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
    output = SegmenterOutput([torch.zeros(1, 2, 2)], [torch.zeros(1, 2, SIZE, SIZE)], torch.zeros(1, 2, 2))
    found = segmentation_loss(output, targets, [pairs((0, 1, 0))], SETTINGS)
    assert float(found["entity"]) == pytest.approx(2 * math.log(2))
    assert float(found["mask"]) == pytest.approx(5 * math.log(2))
    assert float(found["dice"]) == pytest.approx(5 * (1 - (2 * 8 + 1) / (32 + 16 + 1)))
    assert float(found["ancestor"]) == 0


@pytest.mark.usefixtures("full_grid")
def test_excused_queries_are_not_taught_nothing() -> None:
    output, targets = make_output(1, 4), make_targets([1])
    matching = pairs((0, 0, 0))
    excused = torch.tensor([[True, False, True, False]])
    found = segmentation_loss(output, targets, [matching], SETTINGS, excused=[excused])["entity"]
    (gradient,) = torch.autograd.grad(found, output.entity_logits[0])
    taught = gradient[0].abs().sum(-1) > 0
    assert taught.tolist() == [True, True, False, True]  # the matched one is taught, excused or not
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
    silent = segmentation_loss(output, targets, matchings, SETTINGS, excused=everyone)
    assert float(sum(silent.values()).detach()) == 0
    sum(silent.values()).backward()  # the graph of a distributed run must be whole
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


def test_points_read_pixel_centres_and_lie_between() -> None:
    maps = torch.arange(4.0).reshape(1, 1, 2, 2)
    points = torch.tensor([[[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.5, 0.5]]])
    assert losses.sample_points(maps, points)[0, 0].tolist() == pytest.approx([0, 1, 2, 1.5])


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
    positive = (softplus(-2.0) + softplus(1.0)) / 2
    negative = (softplus(0.5) + softplus(-3.0) + softplus(1.0) + softplus(0.0)) / 4
    assert float(found) == pytest.approx(0.5 * positive + 0.5 * negative, rel=1e-5)


@pytest.mark.parametrize(("positives", "share"), [([], 0.5), ([(i, j) for i in range(3) for j in range(3)], 0.5)])
def test_a_missing_side_counts_nothing(positives: list[tuple[int, int]], share: float) -> None:
    found = ancestor_loss(torch.zeros(1, 5, 5), three_targets(positives), MATCHED)
    assert float(found) == pytest.approx(share * math.log(2))


def test_pairs_across_images_do_not_count() -> None:
    targets = make_targets([1, 1])
    logits = torch.randn(2, 5, 5).requires_grad_()
    found = ancestor_loss(logits, targets, pairs((0, 1, 0), (1, 2, 0)))
    assert float(found.detach()) == 0
    found.backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_means_run_over_the_whole_batch() -> None:
    """One positive pair in the first image, one in the second; the first has far more negatives."""
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
    positive = (math.log(2) + softplus(-3.0)) / 2
    negative = (5 * math.log(2) + softplus(3.0)) / 6
    assert float(ancestor_loss(logits, targets, matching)) == pytest.approx(0.5 * (positive + negative), rel=1e-5)


def test_padding_of_targets() -> None:
    masks = [torch.rand(count, 4, 6) > 0.5 for count in (2, 0, 3)]
    relations = [torch.rand(count, count) > 0.5 for count in (2, 0, 3)]
    targets = Targets.pad(masks, relations)
    assert targets.valid.tolist() == [[True, True, False], [False] * 3, [True] * 3]
    assert torch.equal(targets.masks[0, :2], masks[0])
    assert torch.equal(targets.masks[2], masks[2])
    assert torch.equal(targets.ancestor[0, :2, :2], relations[0])
    assert torch.equal(targets.ancestor[2], relations[2])
    assert not targets.masks[0, 2].any()
    assert not targets.ancestor[0, 2].any()
    assert not targets.ancestor[0, :, 2].any()


def test_points_belong_to_the_image_wherever_it_is_computed() -> None:
    keys, cpu = torch.tensor([7, 3]), torch.device("cpu")
    both = losses._random_points(keys, 1, [2, 3], 5, cpu)
    assert torch.equal(both[2:], losses._random_points(keys[1:], 1, [3], 5, cpu))
    assert not torch.equal(both[2:4], both[:2])
    assert not torch.equal(both, losses._random_points(keys, 2, [2, 3], 5, cpu))
