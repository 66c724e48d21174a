"""Naming of segments: the arithmetic with colours in CLIP's place, a tiny random CLIP, and the stage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from sohes.data.coco import ImageSet, read_coco
from sohes.data.images import ImageArray, ImageLike, as_image
from sohes.errors import ConfigError, DataError, WeightsError
from sohes.evaluation.clip import ClipNamer
from sohes.evaluation.part_naming import (
    OnSquare,
    Segments,
    Vocabulary,
    evaluate_part_naming,
    image_iou,
    level_segments,
    mask_segments,
    name_segments,
    naming_square,
)
from sohes.evaluation.part_naming_stage import PartNamingConfig, part_naming
from sohes.masks import MaskForest
from sohes.methods.forest import nested_forest
from sohes.rle import BoolArray, encode_masks
from sohes.segmenters import segmenter as segmenters
from sohes.segmenters.segmenter import Segmenter

SIDE = 8
CATEGORIES = [
    {"id": 5, "name": "Car Body", "supercategory": "Car"},
    {"id": 6, "name": "Car Tier", "supercategory": "Car"},
    {"id": 7, "name": "Dog Head", "supercategory": "Dog"},
    {"id": 8, "name": "Car", "supercategory": "Car"},
    {"id": 9, "name": "Dog", "supercategory": "Dog"},
]
CAR, DOG, NOTHING = 0, 1, 2
BODY, TIER, HEAD, NO_PART = 0, 1, 2, 3
COLOURS = {"body": (CAR, BODY), "tier": (CAR, TIER), "head": (DOG, HEAD), "ground": (NOTHING, BODY)}


def box(top: int, left: int, height: int, width: int) -> BoolArray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def painted(**places: BoolArray) -> ImageArray:
    """An image in which each colour says what CLIP would: the whole in red, the part in green."""
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[:] = (20 * NOTHING, 0, 0)
    for name, mask in places.items():
        whole, part = COLOURS[name]
        image[mask] = (20 * whole, 20 * part, 0)
    return image


def by_colour(image: ImageArray, masks: BoolArray) -> NDArray[np.float64]:
    """What most of the pixels of a mask say: (S, 3 + 3)."""
    rows = []
    for mask in masks:
        wholes, parts = (np.bincount(image[mask][:, channel] // 20, minlength=3) for channel in (0, 1))
        rows.append(np.concatenate([wholes, parts]))
    return np.array(rows, float).reshape(-1, 6)


def two_images(folder: Path) -> ImageSet:
    """A car (body 4 x 4, below it a tyre 2 x 4) in the first image, a head in the second; each 8 x 8."""
    masks = {1: [(5, box(0, 0, 4, 4)), (6, box(3, 0, 3, 4))], 2: [(7, box(0, 0, 4, 8)), (9, box(0, 0, 4, 8))]}
    rows: list[dict[str, Any]] = []
    for image_id, own in masks.items():
        for category, mask in own:
            entry = {"id": len(rows) + 1, "image_id": image_id, "category_id": category}
            rows.append(entry | {"segmentation": encode_masks(mask[None])[0]})
    Image.fromarray(painted(body=box(0, 0, 3, 4), tier=box(3, 0, 3, 4))).save(folder / "1.png")
    Image.fromarray(painted(head=box(0, 0, 4, 8))).save(folder / "2.png")
    images = [{"id": i, "file_name": f"{i}.png", "height": SIDE, "width": SIDE} for i in (1, 2)]
    path = folder / "val.json"
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": CATEGORIES}))
    return read_coco(path)


@pytest.fixture
def truth(tmp_path: Path) -> ImageSet:
    return two_images(tmp_path)


def forest(*masks: BoolArray) -> MaskForest:
    return MaskForest.from_masks(np.array(masks))


def test_vocabulary(truth: ImageSet) -> None:
    vocabulary = Vocabulary.of(truth)
    assert vocabulary.names == ("Car", "Dog", "Background", "Car Body", "Car Tier", "Dog Head")
    assert vocabulary.whole_of.tolist() == [CAR, CAR, DOG]
    assert vocabulary.part_of_category == {5: BODY, 6: TIER, 7: HEAD}


def test_scores_by_hand(truth: ImageSet) -> None:
    """The first image is segmented as it is; in the second a half of the head is found, and called so."""
    first = forest(box(0, 0, 3, 4), box(3, 0, 3, 4), box(6, 0, 2, 8))
    scores = evaluate_part_naming(truth, {1: first, 2: forest(box(0, 0, 2, 8))}, by_colour, mask_segments, side_px=SIDE)
    head, ground = 16 / 32, 32 / 48
    assert scores.part_image == pytest.approx((1 + (head + ground) / 2) / 2)
    assert scores.whole_image == pytest.approx((1 + (head + ground) / 2) / 2)
    over_both = (32 + 40) / (48 + 40)  # background: 40 px are right in the first image, 32 of 48 in the second
    assert scores.part == pytest.approx((1 + 1 + head + over_both) / 4)
    assert scores.whole == pytest.approx((1 + head + over_both) / 3)
    assert scores.n_images == 2
    assert scores.metrics()["miou_image_object"] == (pytest.approx(100 * scores.whole_image), "part_naming_whole_v1")
    assert scores.metrics()["miou_dataset_part"] == (pytest.approx(100 * scores.part), "part_naming_part_v1")


def test_an_image_without_predictions_is_background(truth: ImageSet) -> None:
    right = forest(box(0, 0, 3, 4), box(3, 0, 3, 4))
    scores = evaluate_part_naming(truth, {1: right}, by_colour, mask_segments, side_px=SIDE)
    assert scores.part_image == pytest.approx((1 + (0 + 32 / 64) / 2) / 2)


def test_of_overlapping_masks_the_largest_names_the_whole_and_the_smallest_the_part(truth: ImageSet) -> None:
    image = painted(body=box(0, 0, 8, 8), tier=box(0, 0, 2, 2), head=box(4, 4, 2, 2))
    masks = np.array([box(4, 4, 2, 2), box(0, 0, 2, 2), box(0, 0, 8, 6)])
    named = name_segments(image, Segments(masks, masks), by_colour, Vocabulary.of(truth))
    wholes = np.where(masks[2], CAR, NOTHING)
    parts = np.where(masks[2], BODY, NO_PART)
    parts[masks[1]] = TIER
    parts[masks[0]] = BODY  # a head, were it not inside a car: of the parts of a car none has a vote, so the first
    assert np.array_equal(named.wholes, wholes)
    assert np.array_equal(named.parts, parts)


def test_the_first_pixel_tells_the_whole_of_a_part(truth: ImageSet) -> None:
    image = painted(body=box(0, 0, 1, 8), head=box(1, 0, 7, 8))
    wholes = np.array([box(0, 0, 1, 8), box(1, 0, 7, 8)])
    named = name_segments(image, Segments(wholes, box(0, 3, 8, 5)[None]), by_colour, Vocabulary.of(truth))
    assert named.parts[:, 3:].tolist() == [[BODY] * 5] * 8
    assert (named.parts[:, :3] == NO_PART).all()


def test_background_has_no_parts(truth: ImageSet) -> None:
    segments = Segments(box(0, 0, 4, 8)[None], np.array([box(0, 0, 2, 8), box(6, 0, 2, 8)]))
    named = name_segments(painted(), segments, by_colour, Vocabulary.of(truth))
    assert (named.wholes == NOTHING).all()
    assert (named.parts == NO_PART).all()


def test_image_iou_is_over_the_classes_that_are_there() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        annotated, predicted = rng.choice([0, 2, 3], 60), rng.choice([0, 1, 3], 60)
        confusion = np.zeros((6, 6), np.int64)
        np.add.at(confusion, (annotated, predicted), 1)
        each = [
            np.sum((annotated == c) & (predicted == c)) / np.sum((annotated == c) | (predicted == c))
            for c in set(annotated) | set(predicted)
        ]
        assert image_iou(confusion) == pytest.approx(np.mean(each), abs=1e-12)


def test_levels_are_the_label_maps(truth: ImageSet) -> None:
    """Labels in several pieces are one segment; a piece that is all of the one above stands for itself."""
    coarse, fine = np.zeros((SIDE, SIDE), np.int64), np.full((SIDE, SIDE), 10)
    coarse[:, 4:] = 1
    coarse[2:4, :2] = 1
    fine[:4, 4:], fine[4:, 4:] = 11, 12
    fine[2:4, :2] = 11  # the same piece as on the level above, so it is no mask of its own
    fine[:, 3] = 13
    levels = {"level 4": coarse, "level 3": fine}
    found = level_segments("level 4", "level 3")(nested_forest(levels, np.ones((SIDE, SIDE), np.float32), (SIDE, SIDE)))
    assert {mask.tobytes() for mask in found.wholes} == {(coarse == label).tobytes() for label in (0, 1)}
    pieces = [box(2, 0, 2, 2), box(0, 4, 4, 4), fine == 10, fine == 12, fine == 13]
    assert {mask.tobytes() for mask in found.parts} == {piece.tobytes() for piece in pieces}


def test_the_square_is_bicubic() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    whole = np.array(Image.fromarray(image).resize((15, 10), Image.Resampling.BICUBIC))
    assert np.array_equal(naming_square(image, 10), whole[:, 2:12])


def test_what_cannot_be_named(truth: ImageSet) -> None:
    masks = forest(box(0, 0, 2, 2))
    with pytest.raises(DataError, match=r"masks of \(8, 8\) px; predict on the square of 224 px, see OnSquare"):
        evaluate_part_naming(truth, {1: masks}, by_colour, mask_segments)
    with pytest.raises(DataError, match="have no levels; use read_out=masks"):
        evaluate_part_naming(truth, {1: masks}, by_colour, level_segments("level 4", "level 3"), side_px=SIDE)
    labels = {"object": np.zeros((SIDE, SIDE), np.int64)}
    levels = nested_forest(labels, np.ones((SIDE, SIDE), np.float32), (SIDE, SIDE))
    with pytest.raises(DataError, match=r"levels of the masks: object\. Name two of them"):
        evaluate_part_naming(truth, {1: levels}, by_colour, level_segments("level 4", "level 3"), side_px=SIDE)
    nameless = ImageSet(truth.source, truth.items, truth.annotations, [{"id": 1, "name": "entity"}])
    with pytest.raises(DataError, match=r"no parts with the names of their wholes; take partimagenet_hierarchy"):
        Vocabulary.of(nameless)


def tiny_clip(folder: Path) -> Path:
    """A folder as the hub has it, for a CLIP of a few thousand random weights on 16 px."""
    letters = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    vocabulary = {token: place for place, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=32)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": len(letters), "eos_token_id": len(letters) + 1}
    text = {**small, **ends, "vocab_size": len(vocabulary), "max_position_embeddings": 32}
    config = CLIPConfig(text_config=text, vision_config={**small, "image_size": 16, "patch_size": 8}, projection_dim=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(config)
        for parameter in model.parameters():  # or all captions would be nearly alike
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def test_clip_sees_a_segment_alone(clip: Path) -> None:
    """Equal to transformers' own way through processor and model."""
    names = ["Car", "Quadruped Head"]
    namer = ClipNamer(str(clip), names, device="cpu")
    rng = np.random.default_rng(0)
    image, masks = rng.integers(0, 256, (16, 16, 3), np.uint8), rng.random((40, 16, 16)) < 0.5
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), CLIPTokenizer.from_pretrained(clip)
    pixels = CLIPImageProcessor.from_pretrained(clip)(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    alone = pixels.repeat(40, 1, 1, 1)
    alone[~torch.from_numpy(masks)[:, None].expand_as(alone)] = 0.5
    tokens = tokenizer([f"a photo of a {name}" for name in names], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**tokens, pixel_values=alone).logits_per_image / model.logit_scale.exp()
    found = namer(image, masks)
    assert namer.side_px == 16
    assert found.shape == (40, 2)
    np.testing.assert_allclose(found, expected.numpy(), atol=0.02)  # bfloat16 where the processor has it
    assert np.abs(found[:, 0] - found[:, 1]).min() > 1e-4
    assert namer(image, masks[:0]).shape == (0, 2)


def test_clip_is_missing(tmp_path: Path, clip: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"(?s)CLIP cannot be loaded from there.*`hf download openai/clip-vit-base-patch16"
    ):
        ClipNamer(str(tmp_path), ["Car"])


class _Halves(Segmenter):
    """The upper and the lower half, both in quarters."""

    backbone, init, supervision = "none", "none", "none"

    def predict(self, image: ImageLike) -> MaskForest:
        height, width = as_image(image).shape[:2]
        halves = np.broadcast_to((np.arange(height) >= height // 2).astype(np.int64)[:, None], (height, width))
        quarters = 2 + 2 * halves + (np.arange(width) >= width // 2)
        return nested_forest(
            {"level 4": halves, "level 3": quarters}, np.ones((height, width), np.float32), (height, width)
        )


def test_stage(truth: ImageSet, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "segmenter").mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / "segmenter/model.safetensors")
    monkeypatch.setattr(segmenters, "load_segmenter", lambda folder: _Halves())
    config = PartNamingConfig(method="halves", dataset="toys", ground_truth=str(truth.source), clip=str(clip))
    assert config.outside_inputs() == [truth.source, clip]
    result = part_naming(config, {"segmenter": tmp_path / "segmenter"}, tmp_path / "out")
    rows = {row.metric: row for row in result.measurements}
    assert rows.keys() == {"miou_image_object", "miou_image_part", "miou_dataset_object", "miou_dataset_part"}
    assert {(row.method, row.dataset, row.n_images, row.of_images, row.unit) for row in result.measurements} == {
        ("halves", "toys", 2, None, "%")
    }
    namer = ClipNamer(str(clip), Vocabulary.of(truth).names)
    own = OnSquare(_Halves(), 16)
    predictions = {item.id: own.predict(item.path) for item in truth.items}
    scores = evaluate_part_naming(truth, predictions, namer, level_segments("level 4", "level 3"), side_px=16)
    assert rows["miou_image_part"].value == pytest.approx(100 * scores.part_image)
    assert rows["miou_dataset_object"].value == pytest.approx(100 * scores.whole)
    assert result.notes == [f"segments are named by CLIP ({clip.name}), which was trained on captions"]
    with pytest.raises(ConfigError, match="no segmenter: give the setting segmenter=FOLDER, or the input 'segmenter'"):
        part_naming(config, {}, tmp_path / "none")
    named = replace(config, segmenter=str(tmp_path / "segmenter"))
    assert named.outside_inputs() == [truth.source, clip, tmp_path / "segmenter"]
    assert part_naming(named, {}, tmp_path / "out").measurements == result.measurements
