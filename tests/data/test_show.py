"""What a notebook shows of a forest."""

from __future__ import annotations

import base64
import io
import re
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from sohes.data.draw import forest_colours, overlay
from sohes.data.show import colour_map
from sohes.errors import DataError
from sohes.masks import MaskForest
from sohes.rle import encode_window


@pytest.fixture(autouse=True)
def no_window() -> Iterator[None]:
    plt.switch_backend("agg")
    yield
    plt.close("all")


def nested() -> MaskForest:
    """Left half of 40 x 60 px with a part that has a subpart; nothing on the right."""
    masks = np.zeros((3, 40, 60), dtype=bool)
    masks[0, 5:10, 5:10] = masks[1, :20, :20] = masks[2, :, :30] = True  # the smallest first
    return MaskForest.from_masks(masks)


def shown(html: str) -> np.ndarray:
    data = re.search(r'src="data:image/png;base64,([^"]+)"', html)
    assert data is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data[1]))))


def test_each_pixel_has_the_colour_of_its_smallest_mask() -> None:
    forest = nested()
    colours = forest_colours(forest).round().astype(np.uint8)
    expected = np.full((40, 60, 3), 255, np.uint8)
    for index in (2, 1, 0):
        expected[forest.masks[index]] = colours[index]
    assert np.array_equal(colour_map(forest, 100), expected)
    assert np.array_equal(shown(forest._repr_html_()), expected)
    assert np.array_equal(colour_map(forest, 6), expected[5::10, 5::10])  # the middle of each tenth


def test_the_caption_counts() -> None:
    caption = re.search("<figcaption>(.*)</figcaption>", nested()._repr_html_())
    assert caption is not None
    assert caption[1] == "40 x 60 px, 3 masks: 1 wholes, 1 parts, 1 subparts"
    deep = MaskForest.from_masks(np.arange(64)[None] < 2 ** np.arange(7)[:, None, None])  # 1, 2, 4, ... pixels of a row
    assert "64 px, 7 masks, among them 1 wholes, 1 parts, 1 subparts<" in deep._repr_html_()
    empty = MaskForest.from_masks(np.zeros((0, 4, 3000), dtype=bool))
    assert "0 masks" in empty._repr_html_()
    assert (shown(empty._repr_html_()) == 255).all()


def test_a_huge_image_with_many_masks_stays_small() -> None:
    """24 megapixels, 1,000 masks: decoded they would be 24 GB, one alone 24 MB."""
    size, rng = (4000, 6000), np.random.default_rng(0)
    rles = [
        encode_window(np.ones((900, 900), bool), (int(y), int(x)), size) for y, x in rng.integers(0, 3000, (1000, 2))
    ]
    forest = MaskForest(size, rles, np.ones(1000, np.float32), np.zeros((1000, 1000), bool), np.full(1000, -1))
    nested()._repr_html_()  # compiles the kernels
    tracemalloc.start()
    begin = time.perf_counter()
    html = forest._repr_html_()
    seconds, peak = time.perf_counter() - begin, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert shown(html).shape == (171, 256, 3)
    assert len(html) < 300_000
    assert peak < 100e6
    assert seconds < 10


def test_plot_draws_the_map_or_the_levels(tmp_path: Path) -> None:
    forest = nested()
    axes = forest.plot()
    assert np.array_equal(axes.images[0].get_array(), colour_map(forest, 1024))
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert np.array_equal(forest.plot(tmp_path / "a.png").images[0].get_array(), overlay(picture, forest))
    axes.get_figure().savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_plot_takes_axes() -> None:
    _, given = plt.subplots()
    before = plt.get_fignums()
    assert nested().plot(ax=given) is given
    assert plt.get_fignums() == before


def test_plot_refuses_another_image() -> None:
    with pytest.raises(DataError, match="60 x 40 px, the forest is of one of 40 x 60 px"):
        nested().plot(np.zeros((60, 40, 3), np.uint8))
