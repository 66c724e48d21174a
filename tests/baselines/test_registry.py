"""Every name stands for a segmenter."""

from __future__ import annotations

import pkgutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sohes.baselines.registry import BASELINES, make_baseline
from sohes.errors import ConfigError
from sohes.segmenters.segmenter import Segmenter


@pytest.mark.parametrize("name", BASELINES)
def test_names_stand_for_segmenters(name: str) -> None:
    assert issubclass(pkgutil.resolve_name(BASELINES[name]), Segmenter)


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match="did you mean 'slic_merge'"):
        make_baseline("slic_merg")


def test_they_are_used_like_any_segmenter(tmp_path: Path) -> None:
    image = np.full((40, 60, 3), 200, np.uint8)
    image[10:30, 10:30] = (30, 60, 90)
    Image.fromarray(image).save(tmp_path / "a.png")
    segmenter = make_baseline("felzenszwalb")
    assert segmenter.predict(tmp_path / "a.png") == segmenter.predict(image)
    assert 0 < len(segmenter.segment(image, min_score=0.01)) <= len(segmenter.predict(image))
