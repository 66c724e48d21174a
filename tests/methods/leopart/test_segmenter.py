"""The segmenter: made of images without labels, saved, loaded; nested masks that follow the clusters."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from sohes.backbones.provenance import RANDOM, Provenance, Step
from sohes.backbones.timm_folder import BackboneFolder, build_vit
from sohes.backbones.timm_vit import DenseViT
from sohes.data.label_store import LabelStore, LabelWriter
from sohes.data.listing import Listing, list_images
from sohes.errors import ConfigError, DataError, WeightsError
from sohes.masks import FloatArray
from sohes.methods.leopart import fit, patches
from sohes.methods.leopart.fit import Fitted, fit_statistics
from sohes.methods.leopart.patches import Look
from sohes.methods.leopart.segment_settings import SegmentSettings, check_size
from sohes.methods.leopart.segmenter import LeopartSegmenter
from sohes.rle import BoolArray
from sohes.segmenters.segmenter import load_segmenter

pytest.importorskip("infomap")

TIMM = {
    "architecture": "test_vit",
    "model_args": {"patch_size": 8, "img_size": 64, "depth": 1, "embed_dim": 32, "num_heads": 2},
    "pretrained_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]},
}
SETTINGS = SegmentSettings(
    size_px=64, pca=4, foreground_clusters=8, background_share=0.5, parts=6, communities=3, restarts=2
)
COLOURS = np.array([[250, 30, 30], [30, 250, 30], [30, 30, 250], [240, 240, 40]], np.uint8)


def picture(seed: int, side: int = 64) -> np.ndarray:
    """Two coloured halves of a disc on grey, with noise."""
    random = np.random.default_rng(seed)
    y, x = np.indices((side, side)) - side // 2
    image = np.full((side, side, 3), 128, np.uint8)
    disc = y**2 + x**2 < (side * 0.35) ** 2
    first = seed % 2 * 2
    image[disc & (x < 0)], image[disc & (x >= 0)] = COLOURS[first], COLOURS[first + 1]
    return (image + random.integers(-8, 8, image.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for seed in range(12):
        Image.fromarray(picture(seed)).save(folder / f"{seed:02d}.png")
    return folder


def backbone() -> BackboneFolder:
    torch.manual_seed(0)
    steps = (RANDOM, Step(method="Leopart", supervision="none"), Step(method="made", supervision="none"))
    return BackboneFolder(build_vit(TIMM).eval(), TIMM, Provenance(timm_name="test_vit", steps=steps))


def look_of(folder: BackboneFolder) -> Look:
    """Tokens of the ViT; in place of its attention, that what is not grey is foreground."""
    vit = DenseViT(folder, feature="token")

    def look(views: Tensor) -> tuple[FloatArray, BoolArray]:
        tokens = vit(views).map.permute(0, 2, 3, 1).numpy()
        colourful = (views.amax(1) - views.amin(1))[:, 4::8, 4::8] > 0.3
        return tokens, colourful.numpy()

    return look


def fitted(listing: Listing, folder: Path, settings: SegmentSettings = SETTINGS, **options: object) -> Fitted:
    return fit_statistics(listing, look_of(backbone()), settings, folder, model="test", **options)


@pytest.fixture(scope="module")
def made(images: Path, tmp_path_factory: pytest.TempPathFactory) -> LeopartSegmenter:
    found = fitted(list_images(images), tmp_path_factory.mktemp("work") / "patches")
    return LeopartSegmenter(backbone(), found.statistics, {**found.facts, "notes": found.notes})


def test_the_foreground_is_found_without_labels(made: LeopartSegmenter) -> None:
    image = picture(100)
    forest = made.predict(image)
    found = forest.masks.any(axis=0)
    disc = np.ptp(image.astype(int), axis=2) > 80
    assert (found & disc).sum() / (found | disc).sum() > 0.6  # of patches of 8 px
    assert forest.attributes["source"].tolist().count("foreground") >= 1
    assert {"part"} <= set(forest.attributes["source"])
    assert (forest.scores > 0.5).all()  # so that `segment` shows them


def test_levels_are_numbered_apart_and_nested(made: LeopartSegmenter) -> None:
    forest = made.predict(picture(101))
    objects = int(made.statistics.objects.max()) + 1
    categories = {
        level: forest.attributes["category_id"][forest.attributes["source"] == level]
        for level in ("foreground", "object", "part")
    }
    assert set(categories["foreground"]) == {1}
    assert all(1 < category <= 1 + objects for category in categories["object"])
    assert all(category > 1 + objects for category in categories["part"])
    masks = forest.masks
    assert all(not (masks[i] & ~masks[p]).any() for i, p in enumerate(forest.parent) if p >= 0)


def test_saved_and_loaded_it_predicts_the_same(made: LeopartSegmenter, tmp_path: Path) -> None:
    again = load_segmenter(made.save(tmp_path / "s"), device="cpu")
    assert isinstance(again, LeopartSegmenter)
    assert again.facts == json.loads(json.dumps(made.facts))
    assert again.provenance == made.provenance
    for seed in (102, 103):
        assert again.predict(picture(seed)) == made.predict(picture(seed))
    assert made.save(tmp_path / "s") == tmp_path / "s"  # in place of the one that is there
    assert (made.init, made.supervision) == ("Leopart from random weights", "none")


def test_what_is_stored_is_enough_for_other_partitions(made: LeopartSegmenter) -> None:
    """The segmenter's own seed, as if it were the second, finds its own; three groups are three whatever the seed."""
    earlier = {**made.facts, "settings": {"seed": SETTINGS.seed - 1}}
    np.testing.assert_array_equal(made.partition(0), made.statistics.communities)
    again = LeopartSegmenter(backbone(), made.statistics, earlier)
    np.testing.assert_array_equal(again.partition(1), made.statistics.communities)
    groups = np.kron(np.eye(3), np.full((4, 4), 0.25))
    statistics = replace(made.statistics, co_occurrence=groups, communities=np.zeros(12, np.int64))
    facts = {"size_px": 64, "edge_threshold": 0.2, "markov_time": 1.0, "preferred": 0, "settings": {"seed": 0}}
    found = LeopartSegmenter(backbone(), statistics, facts).partition(7)
    assert [len(set(group)) for group in found.reshape(3, 4)] == [1, 1, 1]
    assert len(set(found)) == 3


def test_the_same_images_give_the_same_segmenter(made: LeopartSegmenter, images: Path, tmp_path: Path) -> None:
    found = fitted(list_images(images), tmp_path / "patches")
    for name, array in vars(found.statistics).items():
        np.testing.assert_array_equal(array, getattr(made.statistics, name))
    assert not (tmp_path / "patches").exists()


def test_an_interrupted_fit_continues(
    made: LeopartSegmenter, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patches, "_SAVE_EVERY", 4)
    look, calls = look_of(backbone()), []

    def failing(views: Tensor) -> tuple[FloatArray, BoolArray]:
        calls.append(1)
        if len(calls) == 12 + 7:
            raise KeyboardInterrupt
        return look(views)

    options = {"model": "test"}
    with pytest.raises(KeyboardInterrupt):
        fit_statistics(list_images(images), failing, SETTINGS, tmp_path / "p", **options)
    before = len(calls)
    found = fit_statistics(list_images(images), failing, SETTINGS, tmp_path / "p", **options)
    assert len(calls) - before == 12 - 4  # the projection is kept, and so are the first four images
    np.testing.assert_array_equal(found.statistics.part_centroids, made.statistics.part_centroids)


def test_other_weights_start_over(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit._Fit, "find_parts", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    seen = []

    def look(views: Tensor) -> tuple[FloatArray, BoolArray]:
        seen.append(len(views))
        return look_of(backbone())(views)

    for model, looked in (("one", 24), ("one", 0), ("other", 24)):
        seen.clear()
        with pytest.raises(KeyboardInterrupt):
            fit_statistics(list_images(images), look, SETTINGS, tmp_path / "p", model=model)
        assert sum(seen) == looked


def test_broken_images_are_left_out_and_named(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for path in images.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "05.png").write_bytes(b"broken")
    found = fitted(list_images(folder), tmp_path / "p")
    assert found.facts["images"] == 11
    assert any("05.png" in note for note in found.notes)
    for path in folder.iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match=r"none of the 12 images can be read: .*png"):
        fitted(list_images(folder), tmp_path / "p")


def test_what_does_not_fit_is_said(images: Path, tmp_path: Path) -> None:
    listing = list_images(images)
    for change, message in (
        ({"pca": 40}, "pca=40 is more than .* 32 channels"),
        ({"foreground_clusters": 5000}, "foreground_clusters=5000 is more than the 768 distinct features"),
        ({"parts": 700}, "parts=700 is more than the .* set parts to at most"),
    ):
        values = {**{name: getattr(SETTINGS, name) for name in ("size_px", "pca", "foreground_clusters", "parts")}}
        with pytest.raises((ConfigError, DataError), match=message):
            fitted(listing, tmp_path / "p", SegmentSettings(**values | change))
    with pytest.raises(ConfigError, match=r"threshold=labels needs annotated images"):
        fitted(listing, tmp_path / "p", SegmentSettings(threshold="labels"))
    with pytest.raises(ConfigError, match=r"go together: set both or neither"):
        SegmentSettings(threshold="fixed")
    with pytest.raises(ConfigError, match=r"size_px=100 is no multiple of the backbone's patch of 16 px; take 96"):
        check_size(100, 16, "the backbone")


def test_thresholds_and_published_constants_are_recorded(images: Path, tmp_path: Path) -> None:
    values = {name: getattr(SETTINGS, name) for name in ("size_px", "pca", "foreground_clusters")}
    fixed = SegmentSettings(
        **values, threshold="fixed", score_threshold=0.5, parts=6, edge_threshold=0.01, markov_time=2.0
    )
    found = fitted(list_images(images), tmp_path / "p", fixed)
    assert (found.facts["score_threshold"], found.facts["edge_threshold"], found.facts["markov_time"]) == (0.5, 0.01, 2)
    assert any("edge threshold 0.01 (as set), Markov time 2 (as set)" in note for note in found.notes)
    labels = SegmentSettings(**values | {"foreground_clusters": 20}, threshold="labels", parts=6)
    truth = lambda place: np.ptp(picture(place).astype(int), axis=2) > 80  # noqa: E731
    found = fitted(list_images(images), tmp_path / "p", labels, truth=truth)
    assert any("WITH LABELS" in note for note in found.notes)
    assert found.facts["published"] == ""
    assert SegmentSettings(**SegmentSettings.PRESETS["published_vitb8"]).published == "published_vitb8"
    assert SegmentSettings().published == ""


def test_at_most_so_many_images(images: Path, tmp_path: Path) -> None:
    values = {name: getattr(SETTINGS, name) for name in ("size_px", "pca", "foreground_clusters", "parts")}
    assert fitted(list_images(images), tmp_path / "p", SegmentSettings(**values, images=7)).facts["images"] == 7


def test_any_size_of_image(made: LeopartSegmenter) -> None:
    for shape in ((3, 5, 3), (64, 200, 3), (301, 40, 3)):
        image = np.resize(picture(7), shape)
        assert made.predict(image).size_hw == shape[:2]


def test_forests_are_kept_with_their_categories(made: LeopartSegmenter, tmp_path: Path) -> None:
    forest = made.predict(picture(104))
    with LabelWriter(tmp_path, header={}) as writer:
        writer.add(7, "a.png", forest)
    assert LabelStore(tmp_path).forest(7) == forest


def test_damaged_folders_are_refused(made: LeopartSegmenter, tmp_path: Path) -> None:
    folder = made.save(tmp_path / "s")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "facts": {}}))
    with pytest.raises(WeightsError, match=r"not of a segmenter of this kind"):
        load_segmenter(folder)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    del tensors["statistics.co_occurrence"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"no tensor 'statistics.co_occurrence': .* make the segmenter again"):
        load_segmenter(folder)
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsError, match=r"damaged safetensors"):
        load_segmenter(folder)
