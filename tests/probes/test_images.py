"""Probes of whole images: features, votes and layers against brute force and scikit-learn, and the stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from sohes.backbones.dense import DenseFeatures
from sohes.backbones.timm_folder import save_backbone_folder
from sohes.backbones.timm_vit import load_backbone
from sohes.backbones.weights import resolve_weights
from sohes.errors import ConfigError, SohesError
from sohes.probes import image_pictures, registry
from sohes.probes.features import extract_features, middle
from sohes.probes.image_data import ClassedImages, read_classed_images
from sohes.probes.image_probes import ImageTask, image_knn_probe, image_linear_probe, nearest_images
from sohes.probes.settings import ProbeConfig
from sohes.probes.stage import probe
from sohes.records import config_hash
from tests.probes.colours import Colours

TONES = {"brick": (170, 80, 70), "moss": (90, 150, 80), "slate": (80, 90, 150)}
SPREAD = 60  # of an image's tone about its class's: classes overlap


def write_tones(folder: Path, *, train: int = 12, val: int = 5, spread: int = SPREAD) -> Path:
    """Images of one tone and some noise, 40 x 56 px, in ImageNet's layout."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name, tone in TONES.items():
            (folder / split / name).mkdir(parents=True)
            for place in range(count):
                own = np.array(tone) + rng.integers(-spread, spread + 1, 3)
                pixels = (own + rng.integers(-20, 21, (40, 56, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{place:02d}.png")
    return folder


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tones(tmp_path_factory.mktemp("data") / "tones")


@pytest.fixture
def data(tones: Path) -> ClassedImages:
    return read_classed_images(tones)


def make_task(data: ClassedImages, **settings: Any) -> ImageTask:
    return ImageTask(config=ProbeConfig(**settings), data=data, backbone=Colours(), size_px=28, name="")


def mean_colours(data: ClassedImages) -> tuple[np.ndarray, np.ndarray]:
    """Features of train and val by Pillow and NumPy: the six channels of `Colours` over the middle 28 px of 32."""
    found = []
    for items in (data.train, data.val):
        images = [Image.open(item.image).resize((44, 32), Image.Resampling.BICUBIC) for item in items]
        middles = np.stack([np.asarray(image.crop((8, 2, 36, 30)), np.float64) / 255 for image in images])
        red, green, blue = middles.mean((1, 2)).T
        found.append(np.stack([red, green, blue, red - green, green + 2 * blue, np.ones_like(red)], 1))
    return found[0], found[1]


def test_the_middle_of_an_image_is_seen(data: ClassedImages) -> None:
    """7/8 of the short side: 28 px of an image of which the short side was brought to 32 px."""
    image = Image.open(data.val[0].image).resize((44, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(middle(data.val[0].image, size_px=28), np.asarray(image.crop((8, 2, 36, 30))))
    assert middle(data.val[0].image, size_px=224).shape == (224, 224, 3)


class WithClassToken(Colours):
    """Its class token has other channels than its map."""

    def __call__(self, images: Tensor) -> DenseFeatures:
        return DenseFeatures(super().__call__(images).map, images[:, :2].amax(dim=(2, 3)))

    def weights_digest(self) -> str:
        return "with class token"


def test_the_feature_is_the_class_token_or_else_the_mean_of_the_map(data: ClassedImages) -> None:
    without = extract_features(Colours(), data.val, size_px=28, view="image")
    assert (without.dim, without.side, without.tokens) == (6, 1, len(data.val))
    np.testing.assert_allclose(without.stack()[:, 0, 0], mean_colours(data)[1], atol=1e-5)
    token = extract_features(WithClassToken(), data.val, size_px=28, view="image")
    highest = [middle(item.image, size_px=28)[..., :2].max((0, 1)) / 255 for item in data.val]
    assert token.dim == 2
    np.testing.assert_allclose(token.stack()[:, 0, 0], highest, atol=1e-6)


def test_neighbours_vote_as_by_brute_force(data: ClassedImages) -> None:
    task = make_task(data, image_neighbours=7, image_temperature=0.05)
    train, val = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in mean_colours(data))
    cosines, labels = val @ train.T, data.labels("train")
    expected = []
    for row in cosines:
        nearest = np.argsort(-row)[:7]
        votes = [np.exp(row[nearest] / 0.05)[labels[nearest] == label].sum() for label in range(3)]
        expected.append(int(np.argmax(votes)))
    found = image_knn_probe(task)
    assert found.predicted.tolist() == expected
    assert (found.metric, found.protocol) == ("acc_top1_knn", "probe_image_knn_28_v1")
    assert 0.4 < np.mean(found.predicted == data.labels("val")) < 1  # neither chance nor trivial
    places, near = nearest_images(task, (1, 4), 3)
    np.testing.assert_array_equal(places, np.argsort(-cosines[[1, 4]], axis=1)[:, :3])
    np.testing.assert_allclose(near, -np.sort(-cosines[[1, 4]], axis=1)[:, :3], atol=1e-6)
    with pytest.raises(ConfigError, match="image_neighbours=37: there are only 36 train images with a class; lower it"):
        image_knn_probe(make_task(data, image_neighbours=37))


def test_the_layer_is_scikit_learns_logistic_regression(data: ClassedImages) -> None:
    found = image_linear_probe(make_task(data, l2=1e-2))
    train, val = mean_colours(data)
    scaler = StandardScaler().fit(train)
    theirs = LogisticRegression(C=1 / (1e-2 * len(train)), max_iter=5000, tol=1e-10)
    theirs.fit(scaler.transform(train), data.labels("train"))
    assert found.predicted.tolist() == theirs.predict(scaler.transform(val)).tolist()
    assert (found.metric, found.protocol) == ("acc_top1_linear", "probe_image_linear_28_v1")
    assert found.notes[0].startswith("image probe, linear: L-BFGS converged after")


@pytest.mark.parametrize("name", ["cast_tiny", "cast_tiny_fusion"])
def test_cast_has_an_image_feature(name: str, data: ClassedImages) -> None:
    """The class token, of fewer channels than the map of four levels; or the mean of the fused features."""
    backbone = load_backbone(f"random:{name}", feature="token")
    features = extract_features(backbone, data.val[:2], size_px=128, view="image")
    pixels = np.stack([middle(item.image, size_px=128) for item in data.val[:2]])
    found = backbone(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
    expected = found.map.mean((2, 3)) if "fusion" in name else found.cls_token
    assert (features.dim, found.map.shape[1]) == (128, 128 if "fusion" in name else 512)
    np.testing.assert_allclose(features.stack()[:, 0, 0], expected, atol=1e-5)
    with pytest.raises(ConfigError, match=r"fewer than the 64 tokens .* give images of at least 128 x 128 px"):
        extract_features(backbone, data.val[:2], size_px=64, view="image")


SMALL = ProbeConfig(probe="image_knn", image_px=64, image_neighbours=5, pictures=2)


@pytest.fixture
def inputs(tmp_path: Path, tones: Path) -> dict[str, Path]:
    model, provenance = resolve_weights("random:test_vit")
    save_backbone_folder(tmp_path / "backbone", model, provenance)
    model.norm.weight.data.zero_()  # features that know nothing
    save_backbone_folder(tmp_path / "blind", model, provenance)
    return {"backbone": tmp_path / "backbone", "start": tmp_path / "blind", "data": tones}


def test_stage(inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    result = probe(SMALL, inputs, out)
    ours, start = result.measurements
    assert (ours.method, ours.metric, ours.protocol) == ("image probe", "acc_top1_knn", "probe_image_knn_64_v1")
    assert (ours.arm, start.arm, ours.dataset, ours.split, ours.n_images) == ("trained", "start", "tones", "val", 15)
    assert start.value == pytest.approx(100 / 3)  # one class for all
    assert ours.value > 50
    notes = "\n".join(result.notes)
    assert "always 'brick', the most frequent class of train, would be right for 33.3 %" in notes
    assert f"{ours.value:.1f} % of 15 val images are given their class out of 3; 36 train images" in notes
    assert f"{ours.value - start.value:+.1f} points of top-1 accuracy against the start backbone" in notes
    names = ["classes.csv", "classes.png", "neighbours.png", "neighbours_start.png"]
    assert [path.name for path in result.artefacts] == names
    header, *lines = (out / "classes.csv").read_text().splitlines()
    assert header == 'class,image_knn,"image_knn, start"'
    by_class = np.array([[float(cell) for cell in line.split(",")[1:]] for line in lines])
    np.testing.assert_allclose(by_class.mean(0), [ours.value, start.value], atol=0.01)
    bytes_before = {name: (out / name).read_bytes() for name in names}
    monkeypatch.setattr(registry.ImageProbe, "load", None)  # what is finished is read
    assert probe(SMALL, inputs, out).measurements == result.measurements
    assert {name: (out / name).read_bytes() for name in names} == bytes_before
    for file in out.glob("scores-*.npz"):
        file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(SohesError, match=r"scores-.*\.npz: damaged .*; delete it"):
        probe(SMALL, inputs, out)


def test_stage_by_itself(inputs: dict[str, Path], tmp_path: Path) -> None:
    config = replace(SMALL, probe="image_linear", image_px=70, pictures=0, max_val=6)
    del inputs["start"]
    result = probe(config, inputs, tmp_path / "out")
    (row,) = result.measurements
    assert (row.metric, row.protocol, row.arm) == ("acc_top1_linear", "probe_image_linear_64_v1", "")
    assert (row.n_images, row.of_images) == (6, 15)
    assert "images at 64 px, the multiple of the patch of 16 px nearest to image_px" in result.notes
    assert [path.name for path in result.artefacts] == ["classes.csv", "classes.png"]


def test_of_many_classes_the_best_and_the_worst_are_drawn(
    data: ClassedImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of brick 4 of 5 are right, of moss none, of slate all."""
    drawn: list[tuple[list[str], list[float], str]] = []

    def plot_classes(path: Path, names: list[str], found: Any, *, title: str, score: str) -> Path:
        drawn.append((names, found[0][1].tolist(), title))
        return path

    monkeypatch.setattr(image_pictures, "plot_classes", plot_classes)
    monkeypatch.setattr(image_pictures, "_MOST_BARS", 2)
    right = data.labels("val") != 1
    right[0] = False
    outcome = SimpleNamespace(name="", right=right, places=())
    image_pictures.write_image_pictures(tmp_path, data, [outcome], probe="image_knn")
    assert drawn == [(["slate", "moss"], [1.0, 0.0], "image_knn on tones (val), 1 best and worst of 3")]
    assert (tmp_path / "classes.csv").read_text() == "class,image_knn\nbrick,80.00\nmoss,0.00\nslate,100.00\n"


def test_settings_of_whole_images_leave_hashes_of_before() -> None:
    assert config_hash(ProbeConfig()) == "dc03586957b0c971"
    assert config_hash(ProbeConfig(image_px=64)) != config_hash(ProbeConfig())
