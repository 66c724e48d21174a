"""The segmenter: made of images without labels, saved, loaded; nested masks that follow the clusters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from sohes.backbones.provenance import RANDOM, Provenance, Step
from sohes.backbones.timm_folder import load_backbone_folder
from sohes.data.label_store import LabelStore, LabelWriter
from sohes.data.listing import Listing, list_images
from sohes.errors import ConfigError, DataError, WeightsError
from sohes.methods.fs4 import fit
from sohes.methods.fs4.context_settings import ContextSettings
from sohes.methods.fs4.embed import Embedder
from sohes.methods.fs4.fit import fit_clusters, merged_clusters
from sohes.methods.fs4.make import make_segmenter
from sohes.methods.fs4.network import build_network, load_network, save_network
from sohes.methods.fs4.segment_settings import Fs4SegmentSettings
from sohes.methods.fs4.segmenter import FS4Segmenter
from sohes.segmenters.segmenter import load_segmenter
from tests.methods.fs4.colours import Colours
from tests.methods.fs4.tiny import prepare

ARGUMENTS: dict[str, Any] = {
    "dim": 8,
    "side": 16,
    "view_px": 32,
    "context": ContextSettings(cae_heads=2, cae_neighbours=4, cae_attention_neighbours=4),
    "pool": True,
}
SETTINGS = {"clusters": (3, 12), "levels": (6, 2), "seeds": 2, "init_images": 8}
COLOURS = np.array([[250, 30, 30], [30, 250, 30], [30, 30, 250], [240, 240, 40]], np.uint8)


def picture(seed: int, size_hw: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Four coloured quarters with noise."""
    random = np.random.default_rng(seed)
    y, x = np.indices(size_hw)
    image = COLOURS[2 * (y * 2 // size_hw[0]) + x * 2 // size_hw[1]].astype(int)
    return (image + random.integers(-8, 8, image.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Listing:
    folder = tmp_path_factory.mktemp("images")
    for seed in range(70):
        Image.fromarray(picture(seed)).save(folder / f"{seed:02d}.png")
    return list_images(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training leaves: a backbone and the file beside it, here with random weights."""
    folder = prepare(tmp_path_factory.mktemp("trained"))
    torch.manual_seed(0)
    network = build_network(load_backbone_folder(folder / "backbone").model, **ARGUMENTS)
    save_network(folder / "decoder.safetensors", network)
    return folder


def make(trained: Path, images: Listing, work: Path, **changes: object) -> FS4Segmenter:
    settings = Fs4SegmentSettings(**SETTINGS | changes)
    return make_segmenter(trained / "backbone", trained / "decoder.safetensors", images, settings, work, device="cpu")


@pytest.fixture(scope="module")
def made(trained: Path, images: Listing, tmp_path_factory: pytest.TempPathFactory) -> FS4Segmenter:
    return make(trained, images, tmp_path_factory.mktemp("work") / "pixels")


def embedder(trained: Path) -> Embedder:
    trunk = load_backbone_folder(trained / "backbone").model
    return Embedder(load_network(trunk, trained / "decoder.safetensors"))


def test_levels_are_numbered_apart_and_nested_and_cover_all(made: FS4Segmenter) -> None:
    forest = made.predict(picture(101))
    first = {"2 clusters": 1, "6 clusters": 3, "12 clusters": 9}
    assert set(forest.attributes["source"]) <= set(first)
    for source, category in zip(forest.attributes["source"], forest.attributes["category_id"], strict=True):
        assert first[source] <= category < first[source] + int(source.split()[0])
    masks = forest.masks
    assert masks.any(axis=0).all()
    assert all(not (masks[i] & ~masks[p]).any() for i, p in enumerate(forest.parent) if p >= 0)
    assert len({mask.tobytes() for mask in masks}) == len(masks)  # each is there once
    assert masks.sum(axis=(1, 2)).min() >= 4 * 64 * 48 / (16 * 21)
    assert (forest.scores > 0.5).all()
    assert (np.diff(forest.scores) <= 0).all()


def test_quarters_are_masks_on_every_level() -> None:
    """Red and green are called one cluster, blue and yellow another; both are two components each, or one."""
    unit = COLOURS / np.linalg.norm(COLOURS, axis=1, keepdims=True)
    provenance = Provenance(timm_name="test_vit", steps=(RANDOM, Step(method="PiCIE", supervision="none")))
    made = FS4Segmenter(
        Embedder(Colours(32, 64)),  # type: ignore[arg-type]
        {4: unit[None].astype(np.float32)},
        {2: np.array([0, 0, 1, 1])},
        provenance=provenance,
        timm_config={},
        facts={},
    )
    forest = made.predict(picture(0, (64, 64)))
    found = [
        (str(source), int(category), entity.mask)
        for source, category, entity in zip(
            forest.attributes["source"], forest.attributes["category_id"], forest, strict=True
        )
    ]
    top, left = np.indices((64, 64)) < 32
    expected = {
        ("2 clusters", 1): top,
        ("2 clusters", 2): ~top,
        ("4 clusters", 3): top & left,
        ("4 clusters", 4): top & ~left,
        ("4 clusters", 5): ~top & left,
        ("4 clusters", 6): ~top & ~left,
    }
    assert {(source, category) for source, category, _ in found} == set(expected)
    assert len(found) == 6
    for source, category, mask in found:
        right = expected[source, category]
        assert (mask & right).sum() / (mask | right).sum() > 0.95
    assert sorted(forest.parent.tolist()).count(-1) == 2
    assert (forest.scores > 0.97).all()  # of the cosines of noisy colours with clean ones
    assert made.method == "PiCIE"


def test_label_maps_of_each_seed(made: FS4Segmenter) -> None:
    image = picture(103)
    maps = made.label_maps(image, 3)
    assert maps.shape == (2, 48, 64)
    assert set(np.unique(maps)) <= {0, 1, 2}
    np.testing.assert_array_equal(made.label_map(image, 3), maps[0])
    embeddings = made.embedder.image(image)
    nearest = torch.einsum("kc,chw->khw", torch.from_numpy(made.centroids[3][1]), embeddings)
    expected = torch.nn.functional.interpolate(nearest[None], (48, 64), mode="bilinear")[0].argmax(0)
    assert (torch.from_numpy(maps[1]) == expected).float().mean() > 0.999
    with pytest.raises(ConfigError, match=r"clusters=27, but this segmenter has k-means of 3, 12 clusters"):
        made.label_map(image)


def test_average_linkage_by_hand() -> None:
    """Angles of 0, 2, 10, 90 and 100 degrees: first 0 and 2, then these and 10, or 90 and 100."""
    angles = np.radians([0, 90, 2, 100, 10])
    merged = merged_clusters(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32), (4, 2))

    def groups(labels: np.ndarray) -> set[frozenset[int]]:
        return {frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)}

    assert groups(merged[0]) == {frozenset(group) for group in ({0, 2}, {1}, {3}, {4})}
    assert groups(merged[1]) == {frozenset(group) for group in ({0, 2, 4}, {1, 3})}


def test_coarser_levels_merge_finer_ones() -> None:
    centroids = np.random.default_rng(0).normal(size=(256, 16)).astype(np.float32)
    coarse, middle, fine = merged_clusters(centroids, (8, 27, 64))
    for labels, count in ((coarse, 8), (middle, 27), (fine, 64)):
        assert set(labels) == set(range(count))
    for finer, coarser in ((fine, middle), (middle, coarse)):
        assert len(set(zip(finer, coarser, strict=True))) == finer.max() + 1


def test_saved_and_loaded_it_predicts_the_same(made: FS4Segmenter, tmp_path: Path) -> None:
    again = load_segmenter(made.save(tmp_path / "s"), device="cpu")
    assert isinstance(again, FS4Segmenter)
    assert again.facts == json.loads(json.dumps(made.facts))
    assert again.provenance == made.provenance
    for seed in (104, 105):
        assert again.predict(picture(seed)) == made.predict(picture(seed))
    np.testing.assert_array_equal(again.label_maps(picture(104), 3), made.label_maps(picture(104), 3))
    assert made.save(tmp_path / "s") == tmp_path / "s"  # in place of the one that is there
    assert (made.init, made.supervision) == ("random weights", "none")


@pytest.mark.parametrize("init_images", [8, 1000])  # few that start and many that move, or all that start
def test_an_interrupted_fit_continues(
    trained: Path, images: Listing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init_images: int
) -> None:
    monkeypatch.setattr(fit, "_BATCH", 8)
    monkeypatch.setattr(fit, "_SAVE_EVERY", 3)
    settings = Fs4SegmentSettings(**SETTINGS | {"init_images": init_images})
    expected = fit_clusters(images, embedder(trained), settings, tmp_path / "a", model="m")
    assert not (tmp_path / "a").exists()
    failing, calls = embedder(trained), []
    squares = failing.squares

    def counted(views: Tensor) -> Tensor:
        calls.append(len(views))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return squares(views)

    failing.squares = counted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        fit_clusters(images, failing, settings, tmp_path / "b", model="m")
    found = fit_clusters(images, failing, settings, tmp_path / "b", model="m")
    assert len(calls) == 9 + 1 + (2 if init_images == 8 else 0)  # nine batches, and what was lost
    for number, centroids in expected.centroids.items():
        np.testing.assert_array_equal(found.centroids[number], centroids)


def test_other_weights_or_settings_start_over(trained: Path, images: Listing, tmp_path: Path) -> None:
    seen: list[int] = []
    made = embedder(trained)
    squares = made.squares

    def stopped(views: Tensor) -> Tensor:
        seen.append(len(views))
        if len(views) < 32:
            raise KeyboardInterrupt
        return squares(views)

    made.squares = stopped  # type: ignore[method-assign]
    for model, seeds, looked in (("one", 1, 70), ("one", 1, 6), ("other", 1, 70), ("other", 2, 70)):
        seen.clear()
        settings = Fs4SegmentSettings(**SETTINGS | {"seeds": seeds, "init_images": 70})
        with pytest.raises(KeyboardInterrupt):
            fit_clusters(images, made, settings, tmp_path, model=model)
        assert sum(seen) == looked


def test_centroids_have_unit_length_and_seeds_differ(made: FS4Segmenter) -> None:
    assert {number: array.shape for number, array in made.centroids.items()} == {3: (2, 3, 8), 12: (2, 12, 8)}
    for array in made.centroids.values():
        np.testing.assert_allclose(np.linalg.norm(array, axis=2), 1, rtol=1e-5)
    assert np.abs(made.centroids[12][0] - made.centroids[12][1]).max() > 1e-3


def test_broken_images_are_left_out_and_named(trained: Path, images: Listing, tmp_path: Path) -> None:
    names = list(images.names[:11])
    (tmp_path / "05.png").write_bytes(b"broken")
    names[5] = str(tmp_path / "05.png")
    made = make(trained, Listing(names, range(11)), tmp_path / "p")
    assert made.provenance.steps[-1].images == 10
    assert any("05.png" in note for note in made.facts["notes"])
    with pytest.raises(DataError, match=r"none of the first 2 images can be read: .*05\.png"):
        make(trained, Listing([names[5], str(tmp_path / "no.png")], range(2)), tmp_path / "p")
    with pytest.raises(DataError, match="no image to make clusters of"):
        make(trained, Listing([], []), tmp_path / "p")


def test_what_does_not_fit_is_said(trained: Path, images: Listing, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"clusters=12 is more than the 10 points"):
        make(trained, Listing(images.names[:2], range(2)), tmp_path / "p", init_pixels=10)
    with pytest.raises(ConfigError, match=r"levels=\[6, 2\] are merged of clusters=\[3, 6\], so each must be below 6"):
        Fs4SegmentSettings(clusters=(3, 6), levels=(6, 2))
    with pytest.raises(ConfigError, match="has a number twice"):
        Fs4SegmentSettings(clusters=(3, 3), levels=(2,))


@pytest.mark.parametrize("size_hw", [(3, 5), (64, 200), (301, 40)])
def test_any_size_of_image(made: FS4Segmenter, size_hw: tuple[int, int]) -> None:
    forest = made.predict(picture(7, size_hw))
    assert forest.size_hw == size_hw
    assert forest.masks.any(axis=0).all()


def test_forests_are_kept_with_their_categories(made: FS4Segmenter, tmp_path: Path) -> None:
    forest = made.predict(picture(106))
    with LabelWriter(tmp_path, header={}) as writer:
        writer.add(7, "a.png", forest)
    assert LabelStore(tmp_path).forest(7) == forest


def test_damaged_folders_are_refused(made: FS4Segmenter, tmp_path: Path) -> None:
    folder = made.save(tmp_path / "s")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "network": {}}))
    with pytest.raises(WeightsError, match=r"not of a segmenter of this kind"):
        load_segmenter(folder)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    without = {name: value for name, value in tensors.items() if not name.startswith("centroids")}
    save_file(without, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"no centroids: damaged; make the segmenter again"):
        load_segmenter(folder)
    save_file({name: value for name, value in tensors.items() if "refine" not in name}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"the weights do not fit PixelNetwork; 6 missing"):
        load_segmenter(folder)
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsError, match=r"damaged safetensors"):
        load_segmenter(folder)
