"""Generated scenes: the forest is exact, the pictures repeat, and they enter through the door of any COCO file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sohes.data.coco import read_coco
from sohes.data.images import load_image
from sohes.data.scenes.canvas import Canvas
from sohes.data.scenes.figures import FIGURES, PARTS
from sohes.data.scenes.scene import CATEGORIES, STUFF, Scene, _forest, render_scene, write_scenes
from sohes.data.sources import data_name
from sohes.errors import DataError
from sohes.masks import MaskForest


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(seed=1, index=index) for index in range(40)]


def test_same_seed_same_bytes(scenes: list[Scene]) -> None:
    again = render_scene(1, 5)
    assert np.array_equal(again.image, scenes[5].image)
    assert again.forest.rles == scenes[5].forest.rles
    assert again.names == scenes[5].names
    assert not np.array_equal(render_scene(2, 5).image, again.image)
    assert again.image.shape == (224, 224, 3)
    assert again.image.dtype == np.uint8


def test_forest_is_exact(scenes: list[Scene]) -> None:
    for scene in scenes:
        masks, parent = scene.forest.masks, scene.forest.parent
        assert masks.sum((1, 2)).min() >= 16
        children = np.flatnonzero(parent >= 0)
        assert not (masks[children] & ~masks[parent[children]]).any(), "a part must lie within its whole"
        assert masks[parent < 0].sum(0).max() == 1, "wholes must not overlap"
        by_rule = MaskForest.from_masks(masks)
        assert np.array_equal(by_rule.ancestor, scene.forest.ancestor), "the coverage rule must find the same tree"
        assert np.array_equal(by_rule.parent, parent)


def test_names_follow_the_tree(scenes: list[Scene]) -> None:
    known = {row["name"]: row["supercategory"] for row in CATEGORIES}
    for scene in scenes:
        for name, kind, parent in zip(scene.names, scene.kinds, scene.forest.parent, strict=True):
            assert name in known
            assert known[name] == (kind if parent >= 0 else "object" if kind in PARTS else "stuff")
            if parent >= 0:
                assert scene.kinds[parent] == kind


def test_categories_are_marked_as_things_stuff_and_parts() -> None:
    marks = {row["name"]: (row["isthing"], row.get("ispart", 0)) for row in CATEGORIES}
    assert {name for name, mark in marks.items() if mark == (1, 0)} == set(PARTS)
    assert {name for name, mark in marks.items() if mark == (0, 0)} == set(STUFF)
    assert {name for name, mark in marks.items() if mark[1]} == {
        f"{k}:{part}" for k, parts in PARTS.items() for part in parts
    }


def test_everything_occurs(scenes: list[Scene]) -> None:
    names = {name for scene in scenes for name in scene.names}
    assert {*PARTS, *STUFF} <= names
    depth = [scene.forest.depth.max() for scene in scenes]
    assert min(depth) == 2
    objects = [sum(name in PARTS for name in scene.names) for scene in scenes]
    assert min(objects) >= 2
    assert max(objects) <= 5


@pytest.mark.parametrize("kind", FIGURES)
def test_figures_draw_the_parts_they_declare(kind: str) -> None:
    drawn = set()
    for seed in range(30):
        figure = FIGURES[kind](np.random.default_rng(seed))
        drawn |= set(figure.names[1:])
        assert {shape.node for shape in figure.shapes} | set(figure.parents) >= set(range(1, len(figure.names)))
    assert drawn == {f"{kind}:{part}" for part in PARTS[kind]}


def test_hidden_tiny_and_doubled_entities_are_left_out() -> None:
    """Nodes drawn by hand on a canvas of twice 20 x 20 px: parent, rows and columns, own pixels if nothing hid them."""
    tree: dict[str, tuple[int, tuple[int, int, int, int], int]] = {
        "ground": (-1, (0, 20, 0, 20), 400),
        "whole": (-1, (0, 1, 0, 10), 10),
        "double": (1, (1, 4, 0, 10), 30),  # with what is in it 103 of the whole's 113 px: the same mask
        "inner": (2, (4, 6, 0, 10), 20),  # moves up to the whole
        "covered": (3, (6, 7, 0, 3), 230),  # with "grain" 45 of 272 px in sight: left out
        "grain": (4, (7, 10, 0, 14), 42),  # moves up to "inner"
        "speck": (3, (6, 7, 4, 12), 8),  # below 16 px
        "hidden": (-1, (0, 5, 12, 16), 2000),  # 40 of 2020 px in sight: left out ...
        "part": (7, (0, 5, 16, 20), 20),  # ... and its part with it
    }
    canvas = Canvas(np.random.default_rng(0), 40)
    for node, (name, (parent, (top, bottom, left, right), full)) in enumerate(tree.items()):
        canvas.owner[2 * top : 2 * bottom, 2 * left : 2 * right] = node
        canvas.names.append(name)
        canvas.parents.append(parent)
        canvas.full.append(4 * full)
    forest, nodes = _forest(canvas)
    assert [canvas.names[node] for node in nodes] == ["ground", "whole", "inner", "grain"]
    assert forest.parent.tolist() == [-1, -1, 1, 2]
    assert forest.areas.tolist() == [247, 113, 73, 42]


def test_written_scenes_are_an_ordinary_coco_set(tmp_path: Path, scenes: list[Scene]) -> None:
    write_scenes(tmp_path, train=3, val=2, seed=1)
    images = read_coco(tmp_path / "train.json")
    assert [item.path.name for item in images.items] == ["000000.png", "000001.png", "000002.png"]
    names = {row["id"]: row["name"] for row in images.categories}
    for item, scene in zip(images.items, scenes, strict=False):
        assert np.array_equal(load_image(item.path), scene.image)
        forest = images.forest(item.id)
        assert forest.rles == scene.forest.rles
        assert np.array_equal(forest.parent, scene.forest.parent)
        assert [names[category] for category in forest.attributes["category_id"]] == list(scene.names)
    val = read_coco(tmp_path / "val.json")
    assert len(val) == 2
    assert not {item.id for item in val.items} & {item.id for item in images.items}
    assert data_name(tmp_path) == "generated scenes"


def test_writing_again_repeats_or_mends(tmp_path: Path) -> None:
    write_scenes(tmp_path, train=2, val=1, size=96)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    times = {path: path.stat().st_mtime_ns for path in before if path.name != "source.json"}
    write_scenes(tmp_path, train=2, val=1, size=96)
    assert {path: path.stat().st_mtime_ns for path in times} == times, "finished scenes must be left alone"
    (tmp_path / "train/000001.png").unlink()
    write_scenes(tmp_path, train=2, val=1, size=96)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
    write_scenes(tmp_path, train=3, val=1, size=96)
    assert len(read_coco(tmp_path / "train.json")) == 3
    assert (tmp_path / "val.json").read_bytes() == before[tmp_path / "val.json"]
    write_scenes(tmp_path, train=3, val=1, size=96, seed=5)
    assert (tmp_path / "val.json").read_bytes() != before[tmp_path / "val.json"]


def test_impossible_requests(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'train' is 0"):
        write_scenes(tmp_path, train=0, val=1)
    with pytest.raises(DataError, match="'size' is 32"):
        write_scenes(tmp_path, train=1, val=1, size=32)
