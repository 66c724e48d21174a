"""The label store gives back what was put in, survives interruption, and refuses damage."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO

from sohes.data.coco_writer import export_coco
from sohes.data.label_store import LabelStore, LabelWriter, even_shard_size
from sohes.errors import DataError
from sohes.masks import MaskForest

HEADER = {"config_hash": "abc", "backbone": "tiny", "theta_merge": [0.6, 0.4]}


def make_forest(seed: int) -> MaskForest:
    """Random overlapping boxes with all attributes; some seeds give no mask at all."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, 9))
    masks = np.zeros((count, 20, 30), dtype=bool)
    for mask in masks:
        y, x = rng.integers(0, 12, 2)
        mask[y : y + rng.integers(2, 9), x : x + rng.integers(2, 19)] = True
    attributes = {
        "source": np.array(["global", "local"])[rng.integers(0, 2, count)],
        "level_first": rng.integers(0, 3, count).astype(np.int32),
        "level_last": rng.integers(3, 6, count).astype(np.int32),
        "cohesion": rng.random(count, dtype=np.float32),
        "refine_iou": rng.random(count, dtype=np.float32),
    }
    return MaskForest.from_masks(masks, scores=rng.random(count, dtype=np.float32), attributes=attributes)


def write(
    folder: Path, seeds: Sequence[int], *, stop: int | None = None, shard_size: int = 4, job: tuple[int, int] = (0, 1)
) -> None:
    """A store of some forests; negative seeds are images that cannot be used."""
    with LabelWriter(folder, header=HEADER, shard_size=shard_size) as writer:
        places = [place for shard in writer.left(len(seeds), job) for place in shard]
        for step, seed in enumerate(seeds[place] for place in places):
            if step == stop:
                raise KeyboardInterrupt
            if seed < 0:
                writer.skip(f"{seed}.jpg", "broken")
            else:
                writer.add(seed, f"{seed}.jpg", make_forest(seed))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def assert_same(forest: MaskForest, expected: MaskForest) -> None:
    assert forest.size_hw == expected.size_hw
    assert forest.rles == expected.rles
    for name in ("scores", "ancestor", "parent"):
        assert np.array_equal(getattr(forest, name), getattr(expected, name)), name
        assert getattr(forest, name).dtype == getattr(expected, name).dtype
    if len(expected):
        assert set(forest.attributes) == set(expected.attributes)
    for name, column in forest.attributes.items():
        assert np.array_equal(column, expected.attributes[name]), name


def test_round_trip(tmp_path: Path) -> None:
    seeds = [7, 2, 30, 4, 11, 5, 6, 0, 8, 21, 22]
    write(tmp_path, seeds)
    store = LabelStore(tmp_path)
    assert (len(store), store.image_ids, store.header) == (11, seeds, HEADER)
    assert store.file(30) == "30.jpg"
    assert 30 in store
    assert 31 not in store
    with pytest.raises(KeyError):
        store.forest(31)
    for image_id, forest in store:
        assert_same(forest, make_forest(image_id))
    for image_id in (22, 7, 11, 2):  # at random
        assert_same(store.forest(image_id), make_forest(image_id))
    assert any(len(make_forest(seed)) == 0 for seed in seeds), "the case without masks must be among them"
    assert any((make_forest(seed).parent >= 0).any() for seed in seeds), "and one with parts"


def test_ancestors_beside_the_tree_are_kept(tmp_path: Path) -> None:
    """A mask inside two masks that do not contain one another has both as ancestors, and one of them as parent."""
    masks = np.zeros((3, 20, 30), dtype=bool)
    masks[0, :, :20] = masks[1, :, 8:] = masks[2, 5:9, 10:14] = True
    forest = MaskForest.from_masks(masks)
    assert forest.ancestor[:2, 2].all()
    with LabelWriter(tmp_path, header={}) as writer:
        writer.add(1, "a.jpg", forest)
    assert_same(LabelStore(tmp_path).forest(1), forest)


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 8, 9])
def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path: Path, stop: int) -> None:
    seeds = list(range(10))
    write(tmp_path / "whole", seeds)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "resumed", seeds, stop=stop)
    assert len(list((tmp_path / "resumed").iterdir())) == stop // 4  # finished shards stay, nothing else is left
    write(tmp_path / "resumed", seeds)
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")


def test_what_a_killed_run_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    write(tmp_path / "whole", list(range(10)))
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".labels-00001.4711.tmp.parquet").write_bytes(b"PAR1")
    write(tmp_path / "killed", list(range(10)))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_finished_run_can_be_repeated_and_continued(tmp_path: Path) -> None:
    write(tmp_path / "whole", list(range(10)))
    write(tmp_path / "grown", list(range(6)))
    write(tmp_path / "grown", list(range(10)))
    assert contents(tmp_path / "grown") == contents(tmp_path / "whole")
    before = contents(tmp_path / "whole")
    write(tmp_path / "whole", list(range(10)))
    assert contents(tmp_path / "whole") == before


def test_a_run_without_images_leaves_a_readable_store(tmp_path: Path) -> None:
    write(tmp_path, [])
    store = LabelStore(tmp_path)
    assert (len(store), store.header) == (0, HEADER)
    write(tmp_path, [1])
    assert LabelStore(tmp_path).image_ids == [1]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    write(tmp_path, [1])
    with pytest.raises(DataError, match=r"config_hash: 'abc' there, 'xyz' now"):
        LabelWriter(tmp_path, header={**HEADER, "config_hash": "xyz"})


def test_an_attribute_without_a_column(tmp_path: Path) -> None:
    writer = LabelWriter(tmp_path, header={})
    forest = MaskForest.from_masks(np.ones((1, 2, 2), dtype=bool), attributes={"colour": np.zeros(1)})
    with pytest.raises(ValueError, match="no column for \\['colour'\\]"):
        writer.add(2, "b.jpg", forest)


@pytest.mark.parametrize("rare", [{"category_id": np.array([3, 1])}, {"cut": np.array([0.5, 2], np.float32)}])
def test_rare_attributes_have_a_column_only_where_a_forest_has_some(
    tmp_path: Path, rare: dict[str, NDArray[np.generic]]
) -> None:
    """Stores of all other methods keep their bytes."""
    masks = np.eye(4, dtype=bool)[:2, None, :]
    plain, named = (MaskForest.from_masks(masks, attributes=a) for a in ({}, rare))
    for name, forests in (("plain", [plain]), ("named", [plain, named])):
        with LabelWriter(tmp_path / name, header={}) as writer:
            for image_id, forest in enumerate(forests):
                writer.add(image_id, f"{image_id}.png", forest)
        (shard,) = (tmp_path / name).glob("*.parquet")
        masks_type = pq.read_schema(shard).field("masks").type.value_type
        assert (set(rare) <= {field.name for field in masks_type}) == (name == "named")
    store = LabelStore(tmp_path / "named")
    assert store.forest(0) == plain
    assert store.forest(1) == named


@pytest.mark.parametrize("jobs", [2, 3, 7])
def test_jobs_together_write_the_bytes_of_one(tmp_path: Path, jobs: int) -> None:
    seeds = [5, 3, -1, 8, 9, -2, 11, 2, 4, 30, -3, 6, 7]
    write(tmp_path / "one", seeds)
    for job in reversed(range(jobs)):
        with pytest.raises(DataError):
            LabelStore(tmp_path / "many")
        if job < 4:  # a store of 13 images has four shards
            with pytest.raises(KeyboardInterrupt):
                write(tmp_path / "many", seeds, job=(job, jobs), stop=0)
        write(tmp_path / "many", seeds, job=(job, jobs))
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    store = LabelStore(tmp_path / "many")
    assert store.image_ids == [seed for seed in seeds if seed >= 0]
    assert store.skipped == {f"{seed}.jpg": "broken" for seed in (-1, -2, -3)}


@pytest.mark.parametrize(("total", "jobs"), [(30, 4), (1, 3), (100, 7), (1000, 16), (5000, 20), (100_000, 64)])
def test_jobs_get_about_equally_many_images(tmp_path: Path, total: int, jobs: int) -> None:
    writer = LabelWriter(tmp_path, header={}, shard_size=even_shard_size(total))
    parts = [writer.shards(total, (job, jobs)).values() for job in range(jobs)]
    assert sorted(place for part in parts for places in part for place in places) == list(range(total))
    counts = [sum(map(len, part)) for part in parts]
    assert max(counts) <= 1.1 * total / jobs + 1


def test_a_name_that_is_not_utf8_is_noted_readably(tmp_path: Path) -> None:
    with LabelWriter(tmp_path, header={}) as writer:
        writer.skip("caf\udce9.png", "the name is not UTF-8")
    assert LabelStore(tmp_path).skipped == {"caf\\xe9.png": "the name is not UTF-8"}


def test_a_store_of_broken_images_only(tmp_path: Path) -> None:
    write(tmp_path, [-1, -2, -3, -4, -5])
    store = LabelStore(tmp_path)
    assert (len(store), len(store.skipped), list(store)) == (0, 5, [])


def test_an_unfinished_store_is_refused_unless_asked_for(tmp_path: Path) -> None:
    header = {"total": 10}
    with LabelWriter(tmp_path, header=header, shard_size=4) as writer:
        for place in writer.left(10)[0]:
            writer.add(place, f"{place}.jpg", make_forest(place))
    with pytest.raises(DataError, match="only 4 of 10 images are done"):
        LabelStore(tmp_path)
    assert len(LabelStore(tmp_path, partial=True)) == 4


def test_another_shard_size_or_fewer_images_are_refused(tmp_path: Path) -> None:
    write(tmp_path, list(range(10)))
    with pytest.raises(DataError, match="another number of images per shard than the 2 of now"):
        LabelWriter(tmp_path, header=HEADER, shard_size=2)
    with pytest.raises(DataError, match="more than these 9 images"):
        LabelWriter(tmp_path, header=HEADER, shard_size=4).left(9)


def test_columns_are_those_of_the_rows(tmp_path: Path) -> None:
    write(tmp_path, list(range(10)))
    store = LabelStore(tmp_path)
    found = [row for masks in store.columns("area", "depth") for row in masks.to_pylist()]
    assert found == [[{"area": m["area"], "depth": m["depth"]} for m in row["masks"]] for row in store.rows()]


def test_damage_is_named(tmp_path: Path) -> None:
    write(tmp_path, list(range(10)))
    shard = tmp_path / "labels-00001.parquet"
    good = shard.read_bytes()
    shard.write_bytes(good[: len(good) // 2])
    for use in (LabelStore, lambda folder: LabelWriter(folder, header=HEADER)):
        with pytest.raises(DataError, match=r"labels-00001\.parquet: damaged label shard"):
            use(tmp_path)
    shard.unlink()
    with pytest.raises(DataError, match=r"shard labels-00001\.parquet is missing"):
        LabelStore(tmp_path)


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no label store here"):
        LabelStore(tmp_path)


def test_pickled_store_reads_the_same(tmp_path: Path) -> None:
    write(tmp_path, list(range(5)))
    store = LabelStore(tmp_path)
    assert_same(pickle.loads(pickle.dumps(store)).forest(3), make_forest(3))


def test_export_is_read_by_pycocotools(tmp_path: Path) -> None:
    seeds = list(range(10))
    write(tmp_path / "store", seeds)
    store = LabelStore(tmp_path / "store")
    export_coco(store, tmp_path / "a.json")
    export_coco(store, tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    coco = COCO(str(tmp_path / "a.json"))
    assert sorted(coco.getImgIds()) == seeds
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["entity"]
    for seed in seeds:
        forest = make_forest(seed)
        rows = coco.imgToAnns[seed]
        assert len(rows) == len(forest)
        ids = [row["id"] for row in rows]
        for row, mask, parent, score in zip(rows, forest.masks, forest.parent, forest.scores, strict=True):
            assert np.array_equal(coco.annToMask(row), mask)
            assert row["area"] == mask.sum()
            assert row["parent_id"] == (None if parent < 0 else ids[parent])
            assert row["score"] == pytest.approx(score)
