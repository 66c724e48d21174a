"""Mask recall against pycocotools on random and adversarial inputs, and against numbers worked by hand."""

import contextlib
import io
import json
import math
import weakref
from collections.abc import Mapping

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sohes.errors import DataError
from sohes.evaluation.evaluate import evaluate_predictions
from sohes.evaluation.mask_recall import evaluate_masks
from sohes.evaluation.predictions import Predictions
from sohes.masks import MaskForest
from sohes.rle import encode_masks, rle_areas
from tests.evaluation.truth import image_set

SIZE = (120, 150)


def forest(masks, scores=None, size=SIZE):
    """Masks without relations: building them is not what is tested here."""
    masks = np.asarray(masks, dtype=bool).reshape(-1, *size)
    count = len(masks)
    return MaskForest(
        size_hw=size,
        rles=encode_masks(masks),
        scores=np.ones(count, np.float32) if scores is None else np.asarray(scores, np.float32),
        ancestor=np.zeros((count, count), bool),
        parent=np.full(count, -1, np.int64),
    )


def box(top, left, height, width, size=SIZE):
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def coco(objects, size=SIZE, **fields):
    """COCO dict of {image_id: [mask or (mask, extra fields)]}."""
    images = [{"id": image_id, "height": size[0], "width": size[1], "file_name": "x"} for image_id in objects]
    annotations = []
    for image_id, members in objects.items():
        for item in members:
            mask, extra = item if isinstance(item, tuple) else (item, {})
            rle = encode_masks(mask[None])[0]
            row = {"id": len(annotations) + 1, "image_id": image_id, "category_id": 1, "segmentation": rle}
            annotations.append(row | {"area": float(mask.sum()), "iscrowd": 0, **extra})
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "entity"}], **fields}


def reference(ground_truth, predictions):
    """The same numbers by pycocotools, summarised by hand from its arrays."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(json.dumps(ground_truth))
        truth.createIndex()
        rows = [
            {"image_id": image_id, "category_id": 1, "segmentation": rle, "score": float(score)}
            for image_id, item in predictions.items()
            for rle, score in zip(item.rles, item.scores, strict=True)
        ]
        found = truth.loadRes(rows) if rows else COCO()
        if not rows:
            found.dataset = {**truth.dataset, "annotations": []}
            found.createIndex()
        evaluator = COCOeval(truth, found, "segm")
        evaluator.params.maxDets = [1, 10, 100, 1000]
        evaluator.evaluate()
        evaluator.accumulate()
    recall, precision = evaluator.eval["recall"][:, 0], evaluator.eval["precision"][:, :, 0]

    def mean(values):
        values = values[values > -1]
        return values.mean() if values.size else math.nan

    expected = {f"mask_ar_{limit}": mean(recall[:, 0, i]) for i, limit in enumerate((1, 10, 100, 1000))}
    expected |= {f"mask_ar_1000_{size}": mean(recall[:, 1 + i, 3]) for i, size in enumerate("sml")}
    expected["mask_ap"] = mean(precision[:, :, 0, 3])
    expected["mask_ap50"] = mean(precision[0, :, 0, 3])
    expected["mask_ap75"] = mean(precision[5, :, 0, 3])
    return expected, [mean(row) for row in recall[:, 0, 3]]


def assert_equals_pycocotools(ground_truth, predictions):
    expected, by_iou = reference(ground_truth, predictions)
    result = evaluate_masks(image_set(ground_truth), predictions)
    for name, value in expected.items():
        assert getattr(result, name) == pytest.approx(value, abs=1e-9, nan_ok=True), name
    assert result.recall_at_iou == pytest.approx(by_iou, abs=1e-9, nan_ok=True)


def random_case(seed, *, images=6, ties=False, crowd=False):
    """Boxes and ellipses of all three size classes; predictions are jittered objects and noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]

    def shape(centre, radius):
        if rng.random() < 0.5:
            return (abs(rows - centre[0]) < radius[0]) & (abs(columns - centre[1]) < radius[1])
        return ((rows - centre[0]) / radius[0]) ** 2 + ((columns - centre[1]) / radius[1]) ** 2 < 1

    objects, predictions = {}, {}
    for image_id in range(10, 10 + images):
        count = rng.integers(0, 8)
        centres = rng.uniform(5, 110, (count, 2))
        radii = rng.uniform(2, 60, (count, 2))
        objects[image_id] = [
            (shape(c, r), {"iscrowd": int(crowd and rng.random() < 0.3)}) for c, r in zip(centres, radii, strict=True)
        ]
        found = [
            shape(c + rng.normal(0, 3, 2), r * rng.uniform(0.7, 1.3, 2)) for c, r in zip(centres, radii, strict=True)
        ]
        found += [shape(rng.uniform(5, 110, 2), rng.uniform(2, 40, 2)) for _ in range(rng.integers(0, 15))]
        if found and rng.random() < 0.8:
            scores = rng.integers(0, 3, len(found)) / 2 if ties else rng.random(len(found))
            predictions[image_id] = forest(np.stack(found), scores)
    return coco(objects), predictions


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", [{}, {"ties": True}, {"crowd": True}, {"ties": True, "crowd": True}])
def test_equals_pycocotools_on_random_images(seed, kind):
    assert_equals_pycocotools(*random_case(seed, **kind))


def test_equals_pycocotools_on_more_than_a_thousand_predictions():
    rng = np.random.default_rng(3)
    objects = {1: [box(0, 0, 40, 40), box(50, 60, 12, 20), box(60, 10, 50, 100)], 2: [box(5, 5, 10, 10)]}
    corners = rng.integers(0, 100, (1300, 2))
    many = [box(top, left, *rng.integers(3, 50, 2)) for top, left in corners]
    many[1250], many[20] = box(0, 0, 40, 40), box(50, 60, 12, 20)
    scores = np.linspace(1, 0, 1300)  # the exact hit at rank 1251 is beyond the limit
    assert_equals_pycocotools(coco(objects), {1: forest(many, scores)})
    recall = evaluate_masks(image_set(coco({1: objects[1][:1]})), {1: forest(many[1200:1251] + many[:1000], None)})
    assert recall.mask_ar_1000 > recall.mask_ar_10


ADVERSARIAL = {
    "no prediction at all": (coco({1: [box(0, 0, 10, 10)]}), {}),
    "no object at all": (coco({1: []}), {1: forest([box(0, 0, 9, 9)])}),
    "an image without objects hurts precision only": (
        coco({1: [box(0, 0, 10, 10)], 2: []}),
        {1: forest([box(0, 0, 10, 10)], [0.5]), 2: forest([box(3, 3, 9, 9)], [0.9])},
    ),
    "two predictions for one object": (coco({1: [box(0, 0, 30, 30)]}), {1: forest([box(0, 0, 30, 30)] * 2)}),
    "one prediction between two equal objects": (
        coco({1: [box(0, 0, 30, 30), box(0, 0, 30, 30)]}),
        {1: forest([box(0, 0, 30, 30)])},
    ),
    "area exactly on the class borders": (
        coco({1: [box(0, 0, 32, 32), box(10, 40, 96, 96)]}),
        {1: forest([box(0, 0, 32, 32), box(10, 40, 96, 95)])},
    ),
    "only crowds": (coco({1: [(box(0, 0, 60, 60), {"iscrowd": 1})]}), {1: forest([box(5, 5, 10, 10)])}),
    "a crowd beside an object": (
        coco({1: [(box(0, 0, 60, 60), {"iscrowd": 1}), box(5, 5, 20, 20)]}),
        {1: forest([box(5, 5, 20, 20), box(5, 5, 20, 18), box(30, 30, 10, 10)], [0.2, 0.9, 0.9])},
    ),
    "a data set's own ignore flag is not COCO's": (
        coco({1: [(box(0, 0, 40, 40), {"ignore": 1}), box(50, 50, 20, 20)]}),
        {1: forest([box(0, 0, 40, 40)])},
    ),
    "empty masks": (
        coco({1: [np.zeros(SIZE, bool), box(0, 0, 10, 10)]}),
        {1: forest([np.zeros(SIZE, bool), box(0, 0, 10, 10)])},
    ),
    "image ids far apart and unsorted": (
        coco({900: [box(0, 0, 10, 10)], 7: [box(0, 0, 40, 40)]}),
        {7: forest([box(0, 0, 40, 36)], [0.3]), 900: forest([box(0, 0, 9, 10)], [0.3])},
    ),
}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_equals_pycocotools_on_adversarial_input(name):
    assert_equals_pycocotools(*ADVERSARIAL[name])


def test_by_hand():
    # object 10 x 10; the prediction covers 72 of its pixels and nothing else: IoU 0.72, found at 0.50 ... 0.70
    ground_truth = coco({1: [box(0, 0, 10, 10)], 2: [box(0, 0, 50, 50)]})
    result = evaluate_masks(image_set(ground_truth), {1: forest([box(0, 0, 9, 8)]), 2: forest([box(0, 0, 50, 50)])})
    assert result.mask_ar_1000_s == pytest.approx(5 / 10)
    assert result.mask_ar_1000_m == 1.0
    assert math.isnan(result.mask_ar_1000_l)
    assert result.mask_ar_1000 == pytest.approx((5 * 1.0 + 5 * 0.5) / 10)
    assert result.recall_at_iou == pytest.approx([1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert (result.n_images, result.n_objects, result.n_predictions) == (2, 2, 2)


def same(one, other):
    """Equal, with NaN equal to itself."""
    return repr(one) == repr(other)


def test_categories_do_not_matter():
    ground_truth, predictions = random_case(1)
    merged = evaluate_masks(image_set(ground_truth), predictions)
    for index, annotation in enumerate(ground_truth["annotations"]):
        annotation["category_id"] = 1 + index % 3
    assert same(evaluate_masks(image_set(ground_truth), predictions), merged)


def test_size_class_comes_from_the_mask():
    # a thin diagonal: 100 pixels in a box of 10,000; box and `area` field would call it large
    diagonal = np.eye(*SIZE, dtype=bool)
    ground_truth = coco({1: [(diagonal, {"area": 14400.0, "bbox": [0, 0, 120, 120]})]})
    result = evaluate_masks(image_set(ground_truth), {1: forest([diagonal])})
    assert result.mask_ar_1000_s == 1.0
    assert math.isnan(result.mask_ar_1000_l)


def test_polygons_and_uncompressed_rle_are_read():
    ground_truth = coco({1: [box(0, 0, 10, 10), box(20, 20, 10, 10)]})
    ground_truth["annotations"][0]["segmentation"] = [[0, 0, 10, 0, 10, 10, 0, 10]]
    column = box(20, 20, 10, 10).T.reshape(-1).astype(int)
    edges = np.flatnonzero(np.diff(column)) + 1
    counts = np.diff(np.concatenate([[0], edges, [column.size]])).tolist()
    ground_truth["annotations"][1]["segmentation"] = {"size": list(SIZE), "counts": counts}
    predictions = {1: forest([box(0, 0, 10, 10), box(20, 20, 10, 10)])}
    assert evaluate_masks(image_set(ground_truth), predictions).mask_ar_1000 == 1.0


def test_measurements_are_percent_and_leave_out_what_is_undefined():
    found = Predictions([1], {1: forest([box(0, 0, 9, 8)])}.__getitem__, backbone="vit", init="random")
    result = evaluate_predictions(image_set(coco({1: [box(0, 0, 10, 10)]})), found)
    rows = result.measurements(found, method="SOHES phase 2", dataset="scenes", split="val", of_images=7, arm="phase 2")
    values = {row.metric: row.value for row in rows}
    assert values["mask_ar_1000"] == pytest.approx(50.0)
    assert values["mask_ar_1000_s"] == pytest.approx(50.0)
    assert "mask_ar_1000_m" not in values
    assert values["mask_recall_iou70"] == 100.0
    assert values["mask_recall_iou75"] == 0.0
    # of one image there is no interval
    assert {row.protocol for row in rows} == {
        *("mask_ar1000_v1", "forest_depth_v1", "best_overlap_v1", "mask_count_v1")
    }
    assert {(row.unit, row.n_images, row.of_images, row.method) for row in rows} == {
        (unit, 1, 7, "SOHES phase 2") for unit in ("%", "masks")
    }
    assert {(row.dataset, row.split, row.arm) for row in rows} == {("scenes", "val", "phase 2")}
    assert {(row.backbone, row.init, row.supervision) for row in rows} == {("vit", "random", "not stated")}


def test_a_file_gives_the_same_as_what_was_read_from_it(tmp_path):
    ground_truth, predictions = random_case(2)
    path = tmp_path / "val.json"
    path.write_text(json.dumps(ground_truth))
    assert same(evaluate_masks(path, predictions), evaluate_masks(image_set(ground_truth), predictions))


def test_what_does_not_fit_is_refused():
    ground_truth = coco({1: [box(0, 0, 10, 10)]})
    small = forest([np.ones((60, 75), bool)], size=(60, 75))
    with pytest.raises(DataError, match=r"image 1 .*size \(height, width\) \(60, 75\).*\(120, 150\)"):
        evaluate_masks(image_set(ground_truth), {1: small})
    with pytest.raises(DataError, match="id 5, are not in"):
        evaluate_masks(image_set(ground_truth), {5: forest([box(0, 0, 10, 10)])})
    with pytest.raises(DataError, match="not finite"):
        evaluate_masks(image_set(ground_truth), {1: forest([box(0, 0, 10, 10)], [np.nan])})
    with pytest.raises(DataError, match="belongs to image 1, but 'images' has no such id"):
        image_set({**ground_truth, "images": []})
    with pytest.raises(DataError, match="field 'images' must be a list"):
        image_set({"annotations": []})
    ground_truth["images"][0]["height"] = 121
    with pytest.raises(DataError, match=r"RLE size \[120, 150\] differs from the image's .* \[121, 150\]"):
        image_set(ground_truth)


def test_without_annotations_nothing_is_measured():
    images_alone = coco({1: []})
    del images_alone["annotations"]
    result = evaluate_masks(image_set(images_alone), {1: forest([box(0, 0, 9, 9)])})
    assert (result.n_images, result.n_objects, result.n_predictions) == (1, 0, 1)
    assert np.isnan([value for value, _ in result.metrics().values()]).all()


def test_recall_at_every_count():
    # one object per image, found by the third of image 1 and the first of image 2
    ground_truth = coco({1: [box(0, 0, 40, 40)], 2: [box(0, 0, 40, 40)]})
    miss, hit = box(60, 60, 20, 20), box(0, 0, 40, 40)
    predictions = {1: forest([miss, miss, hit], [0.9, 0.8, 0.1]), 2: forest([miss, hit], [0.1, 0.9])}
    result = evaluate_masks(image_set(ground_truth), predictions)
    assert result.recall_at_count[:4] == (0.5, 0.5, 1.0, 1.0)
    assert len(result.recall_at_count) == 1000
    assert result.recall_at_count[-1] == 1.0
    assert result.mask_ar_1 == 0.5


@pytest.mark.parametrize("seed", range(3))
def test_each_image_alone(seed):
    """`by_image` is what an evaluation of that image alone gives; so are the limits on the curve."""
    ground_truth, predictions = random_case(seed, crowd=True)
    result = evaluate_masks(image_set(ground_truth), predictions)
    for image in ground_truth["images"]:
        own = [row for row in ground_truth["annotations"] if row["image_id"] == image["id"]]
        alone = {**ground_truth, "images": [image], "annotations": own}
        expected, _ = reference(alone, {i: f for i, f in predictions.items() if i == image["id"]})
        assert result.by_image.get(image["id"], math.nan) == pytest.approx(
            expected["mask_ar_1000"], abs=1e-9, nan_ok=True
        )
    for limit in (1, 10, 100, 1000):
        assert result.recall_at_count[limit - 1] == getattr(result, f"mask_ar_{limit}")


def test_interval_equals_resampling_whole_images():
    ground_truth, predictions = random_case(4, images=5)
    result = evaluate_masks(image_set(ground_truth), predictions)
    ids = sorted(image["id"] for image in ground_truth["images"])
    objects = {i: sum(row["image_id"] == i for row in ground_truth["annotations"]) for i in ids}
    found = {i: result.by_image.get(i, 0.0) * objects[i] for i in ids}
    rng, values = np.random.default_rng(0), []
    for _ in range(1000):
        drawn = [ids[place] for place in rng.integers(5, size=5)]
        total = sum(objects[i] for i in drawn)
        if total:
            values.append(sum(found[i] for i in drawn) / total)
    values.sort()

    def percentile(share):
        place = share * (len(values) - 1)
        below = int(place)
        return values[below] + (place - below) * (values[below + 1] - values[below])

    low, high = result.intervals["mask_ar_1000"]
    assert low == pytest.approx(percentile(0.025))
    assert high == pytest.approx(percentile(0.975))
    assert low < result.mask_ar_1000 < high
    assert repr(evaluate_masks(image_set(ground_truth), predictions)) == repr(result)  # seeded


def test_interval_among_the_metrics():
    ground_truth = coco({i: [box(0, 0, 10, 10)] for i in (1, 2, 3)})
    result = evaluate_masks(image_set(ground_truth), {i: forest([box(0, 0, 9, 8)]) for i in (1, 2, 3)})
    assert result.intervals["mask_ar_1000"] == pytest.approx((0.5, 0.5))  # all images alike
    assert np.isnan(result.intervals["mask_ar_1000_l"]).all()
    metrics = result.metrics()
    assert metrics["mask_ar_1000_s_low"] == (pytest.approx(50.0), "mask_ar1000_bootstrap_v1")
    assert np.isnan(metrics["mask_ar_1000_l_high"][0])
    assert metrics["mask_ar_1000"][1] == "mask_ar1000_v1"


def test_images_and_depths_by_hand():
    """One of two objects at 3 of the ten thresholds (IoU 0.64), its parts at none; a whole, a part and a subpart."""
    ground_truth = coco({1: [box(0, 0, 10, 10), box(50, 50, 40, 40)], 2: []})
    nested = [box(0, 0, 8, 8), box(0, 0, 6, 8), box(0, 0, 4, 4), box(90, 90, 5, 5)]
    predictions = {1: MaskForest.from_masks(np.array(nested)), 2: MaskForest.from_masks(np.array(nested[3:]))}
    result = evaluate_predictions(image_set(ground_truth), predictions)
    assert result.masks.images.loc[1].to_dict() == {
        **{"objects": 2, "objects_s": 1, "objects_m": 1, "objects_l": 0},
        **{"found_1000": 3, "found_1000_s": 3, "found_1000_m": 0, "found_1000_l": 0, "found_100": 3},
    }
    assert result.masks.images.loc[2].sum() == 0
    assert result.depths == (1.5, 0.5, 0.5, 0, 0, 0, 0, 0)
    assert result.metrics()["masks_depth_1"] == (0.5, "forest_depth_v1")
    assert {f"mask_ar_{count}" for count in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)} < set(result.metrics())


class OneAtATime(Mapping):
    """Makes each forest when it is asked for, and checks that the ones before are gone."""

    def __init__(self, ids):
        self.ids, self.made, self.most = ids, [], 0

    def __iter__(self):
        return iter(self.ids)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, image_id):
        made = forest([box(0, 0, 9, 8)])
        self.made.append(weakref.ref(made))
        self.most = max(self.most, sum(reference() is not None for reference in self.made))
        return made


def test_forests_are_not_kept():
    predictions = OneAtATime(range(1, 21))
    result = evaluate_masks(image_set(coco({i: [box(0, 0, 10, 10)] for i in range(1, 21)})), predictions)
    assert result.mask_ar_1000 == pytest.approx(0.5)
    assert predictions.most <= 2


@pytest.mark.assets
@pytest.mark.parametrize("name", ["bsds500/val", "coco_panoptic/instances", "pascal_part/instances"])
def test_equals_pycocotools_on_photographs(assets, name):
    """Real objects against the same objects moved a little, and some of them twice."""
    path = assets / "data" / f"{name}.json"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    ground_truth = json.loads(path.read_text())
    ground_truth["images"] = ground_truth["images"][:12]
    ids = {image["id"] for image in ground_truth["images"]}
    ground_truth["annotations"] = [row for row in ground_truth["annotations"] if row["image_id"] in ids]
    truth, rng, predictions = image_set(ground_truth), np.random.default_rng(0), {}
    areas = {
        row.id: rle_areas([row.rle(truth.item(i).size_hw)])[0] for i in ids for row in truth.annotations.get(i, [])
    }
    for row in ground_truth["annotations"]:
        row |= {"category_id": 1, "area": float(areas[row["id"]]), "iscrowd": row.get("iscrowd", 0)}
    ground_truth["categories"] = [{"id": 1, "name": "entity"}]
    for item in truth.items:
        masks = truth.forest(item.id).masks
        found = [np.roll(mask, tuple(rng.integers(-6, 7, 2)), (0, 1)) for mask in [*masks, *masks[::3]]]
        scores = np.round(rng.random(len(found)), 1)
        predictions[item.id] = forest(np.array(found).reshape(-1, *item.size_hw), scores, item.size_hw)
    assert_equals_pycocotools(ground_truth, predictions)
