"""The palette: colours as their definition has them, told apart in grey and without green; figures as files."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from skimage.color import deltaE_ciede2000, rgb2lab

from sohes.plotting import (
    CITED,
    MUTED,
    PHASES,
    SERIES,
    START,
    TRAINED,
    categorical,
    distinct_hues,
    oklch,
    save_all,
    style,
)

# of linear sRGB; Machado, Oliveira, Fernandes, "A physiologically-based model for simulation of color vision
# deficiency", 2009, deuteranomaly of severity 1.0
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)


def seen_without_green(colours: ArrayLike) -> NDArray[np.floating]:
    colours = np.asarray(colours, float)
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ DEUTERANOPIA.T, 0, 1)
    return np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize(
    ("colour", "lch"),  # CSS Color 4: oklch() of sRGB's primaries
    [
        ((1, 0, 0), (0.62796, 0.25768, 29.234)),
        ((0, 1, 0), (0.86644, 0.29483, 142.495)),
        ((0, 0, 1), (0.45201, 0.31321, 264.052)),
        ((1, 1, 1), (1.0, 0.0, 0.0)),
    ],
)
def test_oklch_is_that_of_css(colour: tuple[int, ...], lch: tuple[float, ...]) -> None:
    lightness, chroma, degrees = lch
    assert oklch(lightness, chroma, degrees / 360) == pytest.approx(colour, abs=2e-3)


def test_oklch_of_many() -> None:
    colours = oklch([[0.3], [0.6]], 0.1, [0.1, 0.5, 0.9])
    assert colours.shape == (2, 3, 3)
    assert np.allclose(colours[1, 2], oklch(0.6, 0.1, 0.9))
    assert oklch(np.zeros(0), 0.1, np.zeros(0)).shape == (0, 3)


def least_difference(first: ArrayLike, second: ArrayLike) -> float:
    """CIEDE2000 of two colours as seen without green, or in grey, whichever is less."""
    pair = np.asarray([first, second], float)
    lab = rgb2lab(pair)
    grey = np.stack([lab[:, 0], 0 * lab[:, 0], 0 * lab[:, 0]], axis=-1)
    return min(float(deltaE_ciede2000(*rgb2lab(seen_without_green(pair)))), float(deltaE_ciede2000(*grey)))


@pytest.mark.parametrize("colours", [PHASES, (START, TRAINED), (TRAINED, CITED)])
def test_series_are_told_apart_in_grey_and_without_green(colours: ArrayLike) -> None:
    for first, second in combinations(np.asarray(colours, float), 2):
        assert least_difference(first, second) >= 15


def test_many_series_are_told_apart_by_colour_or_else_by_form() -> None:
    """Lines by marker and dash, bars by hatch."""
    assert tuple(look.colour for look in SERIES[:3]) == PHASES
    for first, second in combinations(SERIES, 2):
        assert first.marker != second.marker
        assert first.dash != second.dash
        assert first.hatch != second.hatch or least_difference(first.colour, second.colour) >= 15


def test_categories_differ_in_lightness() -> None:
    for first, second in combinations(categorical(3), 2):
        assert abs(rgb2lab(first)[0] - rgb2lab(second)[0]) > 12
        assert deltaE_ciede2000(*rgb2lab(seen_without_green([first, second]))) > 15


def test_neighbouring_categories_are_far_apart() -> None:
    lab = rgb2lab(categorical(20))
    assert min(deltaE_ciede2000(lab[step:], lab[:-step]).min() for step in (1, 2)) > 20
    assert len(set(distinct_hues(100).round(4))) == 100


def test_a_figure_gives_the_same_bytes_in_the_style_of_all(tmp_path: Path) -> None:
    with style():
        for name in ("a.png", "b.png"):
            figure = Figure(figsize=(2, 1), layout="constrained")
            axes = figure.subplots()
            axes.plot([0, 1], color=MUTED)
            axes.set_title("words")
            assert axes.xaxis.get_gridlines()[0].get_visible()
            written = save_all(figure, tmp_path / name)
            assert written == [(tmp_path / name).with_suffix(form) for form in (".png", ".pdf", ".svg")]
    for form, begin in ((".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")):
        first = (tmp_path / f"a{form}").read_bytes()
        assert first == (tmp_path / f"b{form}").read_bytes()
        assert first.startswith(begin)
    assert "words" in (tmp_path / "a.svg").read_text()


def test_importing_it_loads_no_matplotlib() -> None:
    code = "import sys, sohes.plotting; print({'matplotlib', 'seaborn', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
