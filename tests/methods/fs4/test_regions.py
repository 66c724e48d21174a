"""Boxes of the pyramid, their way into views, and embeddings of regions: against counted pixels and loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from sohes.backbones.dense import DenseBackbone, DenseFeatures
from sohes.backbones.provenance import RANDOM, Provenance
from sohes.errors import ConfigError, DataError
from sohes.methods.fs4 import regions
from sohes.methods.fs4.context import embed_region
from sohes.methods.fs4.context_settings import ContextSettings
from sohes.methods.fs4.geometry import boxes_in_view
from sohes.methods.fs4.pyramid_settings import PyramidSettings
from sohes.methods.fs4.regions import RegionEmbedder, RegionStore, cell_boxes, level_slices

SMALL: dict[str, Any] = {"pgg_crop_px": 32, "pgg_pool_px": 64}


class PatchColours:
    """A `DenseBackbone`: a patch's feature is its mean colour."""

    patch_size, embed_dim, feature = 8, 3, "colour"
    provenance = Provenance(timm_name="none", steps=(RANDOM,))
    device = torch.device("cpu")

    def __call__(self, images: Tensor) -> DenseFeatures:
        return DenseFeatures(F.avg_pool2d(images, 8), None)

    def weights_digest(self) -> str:
        return ""


class Squares(Dataset[Tensor]):
    """Base squares of random colours that change slowly."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> Tensor:
        coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(place))
        return (255 * F.interpolate(coarse, size=(96, 96), mode="bilinear")[0]).byte()


def embedder(pyramid: PyramidSettings | None = None, **context: Any) -> RegionEmbedder:
    backbone: DenseBackbone = PatchColours()
    return RegionEmbedder(backbone, pyramid or PyramidSettings(**SMALL), ContextSettings(**context))


def test_boxes_of_the_default_pyramid() -> None:
    boxes = cell_boxes([1, 2, 4], 0.25)
    assert boxes.shape == (21, 4)
    assert boxes[0].tolist() == [0, 0, 1, 1]
    assert boxes[2].tolist() == [0.4375, 0, 1, 0.5625]  # above, right: 0.75 +- 0.3125, 0.25 +- 0.3125
    assert boxes[5 + 4 + 2].tolist() == [0.46875, 0.21875, 0.78125, 0.53125]  # 0.625 +- 0.15625, 0.375 +- 0.15625


@pytest.mark.parametrize("cells", [1, 2, 3, 8])
def test_cells_without_overlap_tile_the_square(cells: int) -> None:
    counts = torch.zeros(48, 48)
    for left, top, right, bottom in (cell_boxes([cells], 0) * 48).round().int().tolist():
        counts[top:bottom, left:right] += 1
    assert bool((counts == 1).all())


def test_visibility_is_that_of_counted_pixels() -> None:
    """Masks of the boxes on the base, cut and mirrored as an image is; crops and boxes lie on pixels."""
    random = np.random.default_rng(0)
    side, boxes = 64, cell_boxes([1, 2, 4], 0.25)
    for _ in range(40):
        size = int(random.integers(side // 2, side + 1))
        left, top = random.integers(0, side - size + 1, 2)
        flip = bool(random.random() < 0.5)
        crop = torch.tensor([[left, top, size, size, side * flip]]) / side
        found, visible = boxes_in_view(boxes, crop)
        for box, at, share in zip(boxes, found[0], visible[0], strict=True):
            mask = np.zeros((side, side), bool)
            x0, y0, x1, y1 = (box * side).int().tolist()
            mask[y0:y1, x0:x1] = True
            seen = mask[top : top + size, left : left + size]
            seen = seen[:, ::-1] if flip else seen
            assert float(share) == pytest.approx(seen.sum() / mask.sum(), abs=1e-5)
            if seen.any():
                rows, columns = np.nonzero(seen)
                expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                np.testing.assert_allclose(at.numpy() * size, expected, atol=1e-3)


def test_a_box_in_a_mirrored_crop() -> None:
    """Worked by hand: the crop is the right half's upper part, mirrored."""
    boxes = torch.tensor([[0.5, 0.0, 0.75, 0.25], [0.0, 0.0, 0.25, 0.25]])
    found, visible = boxes_in_view(boxes, torch.tensor([[0.5, 0.0, 0.5, 0.5, 1.0]]))
    assert found[0, 0].tolist() == [0.5, 0, 1, 0.5]
    assert visible.tolist() == [[1, 0]]
    assert float(found[0, 1, 0]) == float(found[0, 1, 2])  # empty


def test_a_cell_by_itself_is_resized_as_pillow_does() -> None:
    bases = torch.stack([Squares(2)[0], Squares(2)[1]])
    found = embedder(PyramidSettings(**SMALL, pgg_crop_levels=3), cae="none")(bases)
    assert found.shape == (2, 21, 3)
    for image, base in enumerate(bases):
        picture = Image.fromarray(base.permute(1, 2, 0).numpy())
        for place, box in enumerate((cell_boxes([1, 2, 4], 0.25) * 96).round().int().tolist()):
            resized = np.asarray(picture.crop(box).resize((32, 32), Image.Resampling.BILINEAR), np.float64)
            tokens = resized.reshape(4, 8, 4, 8, 3).mean((1, 3)).reshape(16, 3)
            mean = (tokens / np.linalg.norm(tokens, axis=1, keepdims=True)).mean(0)
            np.testing.assert_allclose(found[image, place].numpy(), mean / np.linalg.norm(mean), atol=2e-3)


def test_pooled_cells_are_the_tokens_that_lie_in_them() -> None:
    bases = torch.stack([Squares(3)[place] for place in range(3)])
    context = ContextSettings(cae_neighbours=4, cae_duplicate=1e-5)
    pyramid = PyramidSettings(**SMALL, pgg_crop_levels=0)
    found = RegionEmbedder(PatchColours(), pyramid, context)(bases)
    resized = F.interpolate(bases.float() / 255, size=(64, 64), mode="bilinear", antialias=True)
    tokens = F.avg_pool2d(resized, 8)
    for place, (left, top, right, bottom) in enumerate(cell_boxes([1, 2, 4], 0.25).tolist()):
        inside, positions = [], []
        for row in range(8):
            for column in range(8):
                x, y = (column + 0.5) / 8, (row + 0.5) / 8
                if left <= x < right and top <= y < bottom:
                    inside.append(tokens[:, :, row, column])
                    positions.append([(x - left) / (right - left), (y - top) / (bottom - top)])
        expected = embed_region(torch.stack(inside, dim=1), torch.tensor(positions), context)
        torch.testing.assert_close(found[:, place], expected, atol=1e-5, rtol=1e-5)


def test_levels_are_seen_as_the_settings_say() -> None:
    bases = Squares(1)[0][None]
    alone, pooled, mixed = (
        embedder(PyramidSettings(**SMALL, pgg_crop_levels=levels), cae="none")(bases) for levels in (3, 0, 2)
    )
    assert torch.equal(mixed, torch.cat([alone[:, :5], pooled[:, 5:]], dim=1))
    assert not torch.equal(alone[:, 5:], pooled[:, 5:])


def test_identity_is_of_what_has_a_part_in_the_embeddings() -> None:
    plain = embedder().identity
    assert embedder(PyramidSettings(**SMALL, pgg_dims=7, pgg_weight=0.1), cae_heads=2).identity == plain
    assert embedder(PyramidSettings(**SMALL, pgg_overlap=0.1)).identity != plain
    assert embedder(cae="space").identity != plain


def stored(store: RegionStore) -> list[np.ndarray]:
    return [np.concatenate(list(store.level(level))) for level in level_slices([1, 2, 4])]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_interrupted_store_continues(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "_PER_FILE", 3)
    embed, images, seen = embedder(), Squares(8), []

    class Stops(Exception):
        pass

    def counting(bases: Tensor) -> Tensor:
        if sum(seen) >= 5:
            raise Stops
        seen.append(len(bases))
        return embed(bases)

    store = RegionStore(tmp_path / "regions", 8, "these")
    with pytest.raises(Stops):
        store.fill(counting, images, batch=2)  # type: ignore[arg-type]
    assert seen == [2, 1, 2]  # a batch ends with its file
    assert len(list((tmp_path / "regions").glob("*.npy"))) == 1
    seen.clear()
    again = RegionStore(tmp_path / "regions", 8, "these")
    again.fill(embed, images, batch=2, workers=workers)
    levels = stored(again)
    assert [level.shape for level in levels] == [(8, 3), (32, 3), (128, 3)]
    every = torch.cat([embed(images[place][None]) for place in range(8)])
    for level, regions_of in zip(levels, level_slices([1, 2, 4]), strict=True):
        np.testing.assert_allclose(level, every[:, regions_of].reshape(-1, 3).numpy(), atol=1e-6)
    again.fill(lambda bases: pytest.fail("made again"), images, batch=2)  # type: ignore[arg-type]
    RegionStore(tmp_path / "regions", 7, "these")
    assert not list((tmp_path / "regions").glob("*.npy"))
    again.remove()
    assert not (tmp_path / "regions").exists()


def test_what_cannot_be_read_or_used_is_said(tmp_path: Path) -> None:
    store = RegionStore(tmp_path / "regions", 2, "these")
    with pytest.raises(DataError, match=r"regions-00000\.npy: cannot be read .* delete it and run the same again"):
        list(store.level(slice(0, 1)))
    with pytest.raises(DataError, match=r"images 0 to 1 of the list: .* NaN"):
        store.fill(lambda bases: torch.full((len(bases), 21, 3), torch.nan), Squares(2), batch=2)  # type: ignore[arg-type]
    store.fill(embedder(), Squares(2), batch=2)
    path = next((tmp_path / "regions").glob("*.npy"))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"regions-00000\.npy: cannot be read"):
        list(store.level(slice(0, 1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pgg_crop_px": 30}, "pgg_crop_px=30 is no multiple of the backbone's patch of 8 px; take 32"),
        ({"pgg_pool_px": 70}, "pgg_pool_px=70 is no multiple of the backbone's patch of 8 px; take 72"),
        ({"pgg_pool_px": 24}, "fewer patches of 8 px along a side than a grid of 4 has cells; take at least 32"),
    ],
)
def test_sides_fit_the_patch(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        embedder(PyramidSettings(**SMALL | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pgg_grids": (1, 2)}, "pgg_clusters has 3 entries, pgg_grids 2: give one for each level"),
        ({"pgg_grids": (2, 2, 4)}, "pgg_grids begins with 2; the first level is the whole image"),
        ({"pgg_crop_levels": 4}, "pgg_crop_levels=4 is more than the 3 levels"),
        ({"pgg_clusters": (1, 2, 2)}, "pgg_clusters"),
        ({"pgg_overlap": -0.1}, "pgg_overlap"),
    ],
)
def test_bad_settings(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PyramidSettings(**change)
