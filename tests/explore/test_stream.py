"""The stream gives each image the forest that it gets alone, in order, with few images in memory, and stops cleanly."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from sohes.errors import DataError
from sohes.explore import stream
from sohes.explore.explorer import Explorer
from sohes.explore.settings import ExploreSettings
from sohes.explore.stream import explore_stream
from sohes.masks import MaskForest
from tests.explore.colours import Colours

Image = NDArray[np.uint8]


@pytest.fixture(autouse=True, params=[0, 1, 2])
def feature_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads for the ViT alone, as beside a GPU; or none."""
    monkeypatch.setattr(stream, "_FEATURE_THREADS", {"cpu": request.param})


class Batched(Explorer):
    """An explorer with batches of several views, as on a GPU."""

    rows = 1

    def batch_size(self, view_hw: tuple[int, int]) -> int:
        return self.rows


def make_explorer(rows: int = 1) -> Batched:
    settings = ExploreSettings(
        algorithm="sohes",
        size_global=128,
        keep_aspect=True,
        theta_merge=(0.99, 0.9, 0.6),
        theta_small=0.1,
        size_local=64,
        max_crops=3,
        min_patches=1,
        min_area_px=20,
        refiner="none",
    )
    found = Batched(Colours(), settings)
    found.rows = rows
    return found


def picture(seed: int) -> Image:
    """Rectangles on a ground, in one of two shapes."""
    rng = np.random.default_rng(seed)
    height, width = (96, 128) if seed % 3 else (128, 96)
    image = np.full((height, width, 3), rng.integers(0, 256, 3), np.uint8)
    for _ in range(6):
        top, left = rng.integers(0, height - 16), rng.integers(0, width - 16)
        image[top : top + rng.integers(8, 48), left : left + rng.integers(8, 48)] = rng.integers(0, 256, 3)
    return image


def content(forest: MaskForest | DataError) -> tuple[Any, ...]:
    assert isinstance(forest, MaskForest)
    columns = {name: column.tolist() for name, column in forest.attributes.items()}
    return forest.size_hw, forest.rles, forest.scores.tolist(), forest.ancestor.tolist(), columns


@pytest.mark.parametrize(("rows", "workers", "look_ahead"), [(1, 1, 1), (1, 3, 7), (2, 1, 2), (3, 4, 9), (64, 2, 20)])
def test_order_and_forests_are_those_of_single_images(rows: int, workers: int, look_ahead: int) -> None:
    alone = [content(make_explorer()(picture(seed))) for seed in range(12)]
    assert any("local" in forest[4]["source"] for forest in alone), "the crops must take part"
    explorer = make_explorer(rows)
    items = ((f"image {seed}", partial(picture, seed)) for seed in range(12))
    results = list(explore_stream(explorer, items, workers=workers, look_ahead=look_ahead))
    assert [key for key, _ in results] == [f"image {seed}" for seed in range(12)]
    assert [content(forest) for _, forest in results] == alone
    batches = explorer.backbone.seen
    assert {shape[0] for shape in batches} == {rows}  # type: ignore[comparison-overlap]


@pytest.mark.parametrize(("rows", "workers"), [(1, 1), (2, 3)])
def test_superpixels_whatever_runs_beside_them(rows: int, workers: int) -> None:
    explorer = make_explorer(rows)
    explorer.settings = ExploreSettings(size_global=128, min_area_px=20)
    alone = [content(explorer(picture(seed))) for seed in range(6)]
    assert all(len(forest[1]) > 3 for forest in alone)
    items = ((seed, partial(picture, seed)) for seed in range(6))
    results = list(explore_stream(explorer, items, workers=workers))
    assert [content(forest) for _, forest in results] == alone


@pytest.mark.parametrize("feature_threads", [1], indirect=True)
def test_views_of_several_images_share_a_batch() -> None:
    explorer = make_explorer(rows=4)
    explorer.settings = ExploreSettings(
        algorithm="sohes", size_global=64, max_crops=0, theta_merge=(0.9,), refiner="none"
    )
    started = threading.Barrier(8)  # all images are loaded before any is explored

    def load(seed: int) -> Image:
        started.wait(timeout=20)
        return picture(seed)

    items = [(seed, partial(load, seed)) for seed in range(8)]
    # one feature thread takes what is there: at best 4 + 4 views, never eight batches of one
    assert len(list(explore_stream(explorer, items, workers=8, look_ahead=8))) == 8
    assert 2 <= len(explorer.backbone.seen) < 8


def test_broken_images_are_results_and_others_go_on() -> None:
    def load(seed: int) -> Image:
        if seed in (0, 4):
            raise DataError(f"{seed} is broken")
        return picture(seed)

    results = dict(explore_stream(make_explorer(), [(seed, partial(load, seed)) for seed in range(6)], workers=2))
    assert [key for key, result in results.items() if isinstance(result, DataError)] == [0, 4]
    assert str(results[4]) == "4 is broken"


def test_few_images_are_taken_ahead() -> None:
    taken = []

    def items() -> Iterator[tuple[int, Any]]:
        for seed in range(40):
            taken.append(seed)
            yield seed, partial(picture, seed)

    for seen, (key, _) in enumerate(explore_stream(make_explorer(), items(), workers=2, look_ahead=5)):
        assert key == seen
        assert len(taken) <= seen + 5


class Failure(Exception):
    """Not the image's fault."""


def stream_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "explore"]


@pytest.mark.parametrize("where", ["load", "backbone", "source"])
def test_other_errors_come_through_when_their_turn_is_due(where: str) -> None:
    explorer = make_explorer(rows=2)
    if where == "backbone":

        def fail(images: Tensor) -> Tensor:
            raise Failure(where)

        explorer.backbone.colours = fail

    def load(seed: int) -> Image:
        if where == "load" and seed == 3:
            raise Failure(where)
        return picture(seed)

    def items() -> Iterator[tuple[int, Any]]:
        for seed in range(30):
            if where == "source" and seed == 6:
                raise Failure(where)
            yield seed, partial(load, seed)

    seen: list[int] = []
    stream = explore_stream(explorer, items(), workers=2, look_ahead=4)
    with pytest.raises(Failure, match=where):
        seen.extend(key for key, _ in stream)
    assert seen == {"load": [0, 1, 2], "backbone": [], "source": [0, 1, 2]}[where]
    assert not stream_threads()


def test_a_stream_left_early_ends_its_threads() -> None:
    stream = explore_stream(make_explorer(), ((seed, partial(picture, seed)) for seed in range(1000)), workers=3)
    next(stream)
    assert stream_threads()
    stream.close()  # type: ignore[attr-defined]
    assert not stream_threads()


def test_no_images() -> None:
    assert list(explore_stream(make_explorer(), [])) == []


def test_slow_images_hold_up_only_their_own_results() -> None:
    """While the first image is being loaded, others go through; they still come out behind it."""
    finished = []

    def load(seed: int) -> Image:
        if seed == 0:
            deadline = time.monotonic() + 20
            while len(finished) < 3 and time.monotonic() < deadline:
                time.sleep(0.002)
        else:
            finished.append(seed)
        return picture(seed)

    results = explore_stream(make_explorer(), [(s, partial(load, s)) for s in range(4)], workers=2, look_ahead=4)
    assert [key for key, _ in results] == [0, 1, 2, 3]
    assert len(finished) == 3
