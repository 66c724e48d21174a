"""One look for every picture of this project: the style, the colours, and how a figure is written.

Colours are OKLCH (Ottosson, "A perceptual color space for image processing", 2020): equal lightness looks equally
light, and hue changes without it. Those of `PHASES` and of `START` and `TRAINED` differ in lightness, so that they are
told apart in grey print and with any colour vision. Where more series stand in one plot, markers, dashes and hatches of
`SERIES` tell them apart.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sohes.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FloatArray = NDArray[np.floating[Any]]
Colour = tuple[float, float, float]  # RGB, 0..1

_GOLDEN = 0.61803398875  # turns of the golden ratio keep neighbouring hues apart
_LMS_OF_LAB = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_RGB_OF_LMS = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def oklch(lightness: ArrayLike, chroma: ArrayLike, hue: ArrayLike) -> FloatArray:
    """sRGB (..., 3) in 0..1 of OKLCH colours; what lies outside sRGB is clipped.

    Args:
        lightness: 0 (black) to 1 (white); the arguments are broadcast.
        chroma: 0 (grey) to about 0.3.
        hue: in turns; red 0.08, yellow 0.3, green 0.4, blue 0.73.
    """
    lightness, chroma, hue = np.broadcast_arrays(*(np.asarray(value, float) for value in (lightness, chroma, hue)))
    angle = 2 * np.pi * hue
    lab = np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=-1)
    linear = np.clip((lab @ _LMS_OF_LAB.T) ** 3 @ _RGB_OF_LMS.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def distinct_hues(count: int) -> FloatArray:
    """That many hues, in turns: each far from those before it."""
    return (0.08 + _GOLDEN * np.arange(count)) % 1


def categorical(count: int) -> FloatArray:
    """Colours (count, 3) for categories, such as classes: each far from those before it, in hue and in lightness."""
    steps = np.arange(count)
    return oklch(np.array([0.62, 0.8, 0.46, 0.71, 0.54])[steps % 5], 0.13, distinct_hues(count))


def _colour(lightness: float, chroma: float, hue: float) -> Colour:
    red, green, blue = oklch(lightness, chroma, hue).tolist()
    return red, green, blue


START, TRAINED = _colour(0.8, 0.11, 0.19), _colour(0.48, 0.11, 0.69)  # backbone under a head: orange, blue
PHASES = (_colour(0.84, 0.14, 0.34), _colour(0.6, 0.09, 0.55), _colour(0.34, 0.13, 0.82))  # green, teal, violet
MAIN, MAIN_PALE = TRAINED, _colour(0.71, 0.06, 0.69)  # of a picture with one series
RIGHT, WRONG = _colour(0.55, 0.14, 0.42), _colour(0.55, 0.18, 0.06)  # green, red; a mark beside them says the same
INK, MUTED, CITED, GRID = (_colour(lightness, 0, 0) for lightness in (0.32, 0.54, 0.84, 0.92))


@dataclass(frozen=True)
class Look:
    """How one of several series is drawn: line, points, and bars."""

    colour: Colour
    dash: tuple[float, ...]  # lengths of line and gap in line widths; empty for a solid line
    marker: str
    hatch: str


_NEXT = (START, TRAINED, _colour(0.58, 0.18, 0.06), _colour(0.74, 0.12, 0.95), _colour(0.45, 0.06, 0.4))
_DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.5), (1.5, 1), (5, 1, 1.5, 1), (3, 1), (1, 2), (7, 2), (3, 1, 1, 1))
SERIES = tuple(  # the three phases first, which colour alone tells apart
    Look(colour, dash, marker, hatch)
    for colour, dash, marker, hatch in zip(
        (*PHASES, *_NEXT), _DASHES, "osD^vPXp", ("", "", "", "//", "..", "xx", "++", "oo"), strict=True
    )
)


def style() -> AbstractContextManager[None]:
    """The look of all plots, while the context is open."""
    import seaborn as sns
    from matplotlib import rc_context

    own = {"axes.titlesize": 10.5, "axes.titlelocation": "left", "font.size": 10, "grid.color": GRID}
    files = {"svg.hashsalt": "sohes", "svg.fonttype": "none", "pdf.fonttype": 42}  # text stays text
    return rc_context(sns.axes_style("whitegrid") | own | files)


_METADATA: dict[str, Any] = {  # no version and no date in a file
    ".png": {"Software": None},
    ".pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    ".svg": {"Creator": None, "Date": None},
}


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, PDF or SVG, as the name says; the same figure in the same style gives the same bytes."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], metadata=_METADATA[path.suffix])
    return path


def save_all(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as the PNG `path`, and as PDF and SVG beside it; the three paths."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once for all three
    return [save(figure, path.with_suffix(suffix)) for suffix in _METADATA]
