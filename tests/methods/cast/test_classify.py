"""Classification by folders: samples, mixing, the moving average, and what the stage leaves."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sohes.backbones.timm_folder import build_vit, load_backbone_folder
from sohes.configuration import Settings
from sohes.data.coco import ImageItem, read_coco
from sohes.data.stage import ImagesConfig, images
from sohes.errors import ConfigError, DataError
from sohes.files import read_json
from sohes.methods.cast import classes as classes_module
from sohes.methods.cast.classes import ClassSamples, EvaluatedImages, MixedBatches, class_names, of_known_classes
from sohes.methods.cast.classify import ClassifyModule, top1
from sohes.methods.cast.settings import CastConfig, CastCropSettings
from sohes.methods.cast.stage import cast
from tests.engine.toy import assert_equal, curves, end
from tests.methods.cast.tiny import TINY, VIT, SegmentMeans, squares

COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (200, 50, 40)}
SMALL = CastCropSettings(view_px=32, superpixel_px=8)
CLASSIFY: dict[str, Any] = {**TINY, "objective": "classify", "drop_path": 0.0, "average_momentum": 0.5}


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder `images` as the stage of images leaves it, of photographs of one colour each, and `backbone`."""
    folder = tmp_path_factory.mktemp("classes")
    for place, (name, colour) in enumerate(COLOURS.items()):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(8):
            noise = np.random.default_rng([place, number]).integers(-30, 31, (40, 48, 3))
            Image.fromarray((np.array(colour) + noise).astype(np.uint8)).save(
                folder / "photos" / name / f"{number}.png"
            )
    images(ImagesConfig(folder=str(folder / "photos"), val_fraction=0.25), {}, folder / "images")
    return folder


@pytest.fixture(scope="module")
def items(classes: Path) -> list[ImageItem]:
    return read_coco(classes / "images" / "train.json").items


def samples(items: list[ImageItem], **changes: Any) -> ClassSamples:
    options: dict[str, Any] = {"seed": 0, "superpixels": squares, "mean": (0.5,) * 3, "std": (0.5,) * 3} | changes
    return ClassSamples(items, list(COLOURS), SMALL, **options)


def test_classes_are_folders(items: list[ImageItem], tmp_path: Path) -> None:
    assert class_names(items, tmp_path) == ["blue", "green", "red"]
    assert {item.path.parent.name for item in of_known_classes(items, ["red"])} == {"red"}
    with pytest.raises(DataError, match=r"all \d+ images lie in a folder 'red'; to classify, give a folder with"):
        class_names(of_known_classes(items, ["red"]), tmp_path)


def test_samples_repeat_and_leave_no_trace(items: list[ImageItem]) -> None:
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    expected = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    one = samples(items)[7]
    found = random.getstate(), np.random.get_state()[1], torch.get_rng_state()  # noqa: NPY002
    assert found[0] == expected[0]
    assert np.array_equal(found[1], expected[1])
    assert torch.equal(found[2], expected[2])
    random.seed(6)
    again = samples(items)[7]
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["images"], samples(items, seed=1)[7]["images"])
    assert (one["images"].shape, one["superpixels"].shape) == ((3, 32, 32), (32, 32))
    assert one["superpixels"].dtype == torch.int16
    assert samples(items, superpixels=None)[7].keys() == {"images", "label", "key"}


def test_the_strongest_distortion_is_none_that_pillow_refuses() -> None:
    """With magnitudes drawn so wide that many would be 10, where posterising keeps no bit of a colour."""
    distort = classes_module._randaugment(32, (0.5, 0.5, 0.5))
    assert len(distort.ops) > 10
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    random.seed(0)
    for operation in distort.ops:
        operation.prob, operation.magnitude_std = 1.0, 5.0
        for _ in range(20):
            assert operation(image).size == (32, 32)


def test_labels_go_with_their_images(items: list[ImageItem]) -> None:
    made = samples(items)
    counts = np.bincount([int(made[position]["label"]) for position in range(len(items))], minlength=3)
    assert counts.tolist() == [sum(item.path.parent.name == name for item in items) for name in COLOURS]
    evaluated = EvaluatedImages(items, list(COLOURS), view_px=32, superpixels=squares)
    for one in evaluated:
        assert COLOURS[list(COLOURS)[int(one["label"])]][one["images"].flatten(1).float().mean(1).argmax()] >= 180
        assert one["images"].dtype == torch.uint8


def test_images_are_mixed_in_pairs_and_targets_with_them() -> None:
    """Constant images give away how much of each is in a mix."""
    kinds = set()
    for key in range(40):
        batch = MixedBatches(3)(
            [
                {"images": torch.full((3, 8, 8), float(value)), "label": torch.tensor(value), "key": torch.tensor(key)}
                for value in (0, 1)
            ]
        )
        share = batch["images"][0].mean()  # of image 1
        assert batch.keys() == {"images", "targets"}
        smooth = 0.1 / 3
        expected = torch.tensor([(1 - share) * 0.9 + smooth, share * 0.9 + smooth, smooth])
        torch.testing.assert_close(batch["targets"][0], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(batch["targets"][1], expected[[1, 0, 2]], atol=1e-5, rtol=0)
        kinds.add("blended" if len(batch["images"][0].unique()) == 1 else "pasted")
    assert kinds == {"blended", "pasted"}


def test_superpixels_are_those_before_mixing(items: list[ImageItem]) -> None:
    made = samples(items)
    batch = MixedBatches(3)([made[0], made[1]])
    assert torch.equal(batch["superpixels"], torch.stack([made[0]["superpixels"], made[1]["superpixels"]]))


def test_the_average_follows_after_the_step() -> None:
    module = ClassifyModule(build_vit(VIT), 3, average_momentum=0.75)
    before = module.average.head.weight.clone()
    with torch.no_grad():
        module.student.head.weight += 1
    assert module.after_step() == {}
    torch.testing.assert_close(module.average.head.weight, before + 0.25)
    assert not module.train().average.training


def test_an_encoder_of_superpixels_learns_colours(items: list[ImageItem]) -> None:
    """From samples as they come, unmixed; then nearly all are told right."""
    torch.manual_seed(0)
    module = ClassifyModule(SegmentMeans(), 3, average_momentum=0.0, bf16=False).train()
    made = samples(items)
    optimizer = torch.optim.AdamW(module.student.parameters(), lr=3e-2)
    mixed = MixedBatches(3)
    for step in range(40):
        outputs = module(**mixed([made[8 * step + place] for place in range(8)]))
        optimizer.zero_grad()
        outputs["loss"].backward()
        optimizer.step()
        module.after_step()
    evaluated = EvaluatedImages(items, list(COLOURS), view_px=32, superpixels=squares)
    assert top1(module.student, evaluated, batch=5, workers=0, bf16=False) >= 0.8
    assert top1(module.average, evaluated, batch=5, workers=0, bf16=False) >= 0.8


def run(start: Path, classes: Path, out: Path, **changes: Any) -> list[str]:
    inputs = {"backbone": start / "backbone", "images": classes / "images"}
    return list(cast(CastConfig(**CLASSIFY | changes), inputs, out).notes)


def test_what_the_stage_leaves(start: Path, classes: Path, tmp_path: Path) -> None:
    notes = run(start, classes, tmp_path / "one", drop_path=0.2)
    assert notes[0].startswith("classification: 6 steps of 4 images, of 18; data loading took")
    assert any(note.startswith("3 classes; of 6 held-out images ") for note in notes)
    trained, average = (load_backbone_folder(tmp_path / "one" / name) for name in ("backbone", "average"))
    assert trained.provenance.label == "classification from random weights"
    assert trained.provenance.supervision == average.provenance.supervision == "image labels"
    assert "drop_path_rate" not in trained.timm_config.get("model_args", {})
    assert not torch.equal(trained.model.pos_embed, average.model.pos_embed)
    head = load_file(tmp_path / "one" / "head.safetensors")
    assert {name: tuple(value.shape) for name, value in head.items()} == {
        "head.weight": (3, 32),
        "head.bias": (3,),
        "average.weight": (3, 32),
        "average.bias": (3,),
    }
    assert read_json(tmp_path / "one" / "classes.json") == ["blue", "green", "red"]
    groups = end(tmp_path / "one")["optimizer"]["param_groups"]
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.1]
    run(start, classes, tmp_path / "two", drop_path=0.2, workers=2)
    assert_equal(end(tmp_path / "two"), end(tmp_path / "one"))
    assert curves(tmp_path / "two") == curves(tmp_path / "one")


def test_what_does_not_go_together(start: Path, classes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size=3 gives each process 3 images at a time, and they are mixed in"):
        run(start, classes, tmp_path, batch_size=3)
    settings = Settings(CastConfig, "cast")
    settings.update({"preset": "classify"}, "the recipe")
    settings.update_text("temperature", "0.3", "the command line")
    with pytest.raises(ConfigError, match=r"cast\.temperature has no effect with objective=classify"):
        settings.build()


def test_preset_is_the_published_recipe() -> None:
    made = CastConfig(**CastConfig.PRESETS["classify"])
    images_of_epoch = 1_281_167
    steps = images_of_epoch // made.batch_size
    assert (made.iterations, made.warmup) == (300 * steps, 5 * steps)
    assert made.lr == 5e-4 * made.batch_size / 512
    moco = CastConfig()
    steps = images_of_epoch // moco.batch_size
    assert (moco.iterations, moco.warmup) == (100 * steps, 10 * steps)
