from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sohes.backbones.timm_folder import load_backbone_folder
from sohes.data.coco import read_coco
from sohes.engine.checkpoints import checkpoints
from sohes.engine.stopping import Stopped
from sohes.errors import DataError, SohesError
from sohes.records import StageResult
from transfer.data import write_label_maps
from transfer.stages import InstanceConfig, SemanticConfig, _measured, instance, semantic

pytestmark = [pytest.mark.transfer, pytest.mark.usefixtures("mm_stack")]

SEMANTIC = SemanticConfig(recipe="linear_frozen", iterations=4, checkpoint_every=2, arm="start")
INSTANCE = InstanceConfig(recipe="mask_rcnn_frozen", iterations=4, checkpoint_every=2, n_pictures=2)
STAGES: dict[str, tuple[Any, Any]] = {"semantic": (semantic, SEMANTIC), "instance": (instance, INSTANCE)}


def losses(out: Path) -> list[str]:
    with (out / "loss.csv").open() as table:
        return [row["loss"] for row in csv.DictReader(table)]


@pytest.fixture(scope="module")
def finished(
    backbone: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[StageResult, Path]]:
    """Both stages, undisturbed."""
    results = {}
    for task, (stage, config) in STAGES.items():
        out = tmp_path_factory.mktemp(task)
        results[task] = stage(config, {"backbone": backbone, "data": scenes}, out), out
    return results


def test_semantic_measurements_and_artefacts(finished: dict[str, tuple[StageResult, Path]]) -> None:
    result, out = finished["semantic"]
    assert [row.metric for row in result.measurements] == ["miou_dataset", "acc_pixel"]
    row = result.measurements[0]
    assert (row.method, row.backbone, row.init) == ("linear head (frozen ViT)", "test_vit", "random weights")
    assert (row.dataset, row.split, row.n_images, row.unit) == ("generated scenes", "val", 3, "%")
    assert (row.arm, row.supervision, row.trained_by) == ("start", "none", "random weights")
    assert row.protocol == "mmseg_miou_v1"
    assert {path.name for path in result.artefacts} == {"predictions.png", "loss.png", "loss.csv"}
    assert all(path.exists() for path in result.artefacts)
    assert len(losses(out)) == 4
    json.dumps([asdict(entry) for entry in result.measurements], allow_nan=False)  # plain numbers, not NumPy's
    assert "after 4 steps" in result.notes[0]


def test_instance_measurements_and_artefacts(finished: dict[str, tuple[StageResult, Path]]) -> None:
    result, out = finished["instance"]
    assert [row.metric for row in result.measurements] == ["box_ap", "mask_ap", "box_ap50", "mask_ap50"]
    assert {row.protocol for row in result.measurements} == {"mmdet_coco_ap_v1"}
    assert all(0 <= row.value <= 100 for row in result.measurements)
    assert Image.open(out / "predictions.png").size[0] > 300


def test_miou_sums_over_the_data_set(backbone: Path, scenes: Path, tmp_path: Path) -> None:
    """Against intersections and unions counted class by class in plain loops."""
    from mmengine.dataset import pseudo_collate

    from transfer import mm_run

    data = write_label_maps(scenes, tmp_path / "maps")
    config = mm_run.complete_config(
        mm_run.load_recipe("semantic", "linear_frozen"), backbone=backbone, folder=load_backbone_folder(backbone),
        data=data, out=tmp_path, iterations=3, seed=0,
    )  # fmt: skip
    run = mm_run.train_and_evaluate(config, tmp_path, checkpoint_every=100)
    dataset = run.runner.test_dataloader.dataset
    pairs = []
    for index in range(len(dataset)):
        sample = run.runner.model.test_step(pseudo_collate([dataset[index]]))[0]
        truth = np.asarray(Image.open(dataset.get_data_info(index)["seg_map_path"]))
        pairs.append((truth, sample.pred_sem_seg.data[0].numpy()))
    ious = []
    for label in range(len(data.classes)):
        shared = sum(int(((truth == label) & (guess == label)).sum()) for truth, guess in pairs)
        union = sum(int((((truth == label) | (guess == label)) & (truth != 255)).sum()) for truth, guess in pairs)
        if union:
            ious.append(shared / union)
    assert run.metrics["mIoU"] == pytest.approx(100 * np.mean(ious), abs=0.01)  # reported with two decimals


@pytest.mark.parametrize("task", STAGES)
def test_an_interrupted_training_resumes_and_ends_the_same(
    task: str,
    finished: dict[str, tuple[StageResult, Path]],
    backbone: Path,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sohes.engine.hooks import ProgressHook

    stage, config = STAGES[task]
    inputs = {"backbone": backbone, "data": scenes}
    genuine = ProgressHook.after_train_iter

    def interrupt(self: ProgressHook, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        genuine(self, runner, batch_idx, data_batch, outputs)
        if runner.iter == 2:  # the third step: one more than the checkpoint holds
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ProgressHook, "after_train_iter", interrupt)
        with pytest.raises(KeyboardInterrupt):
            stage(config, inputs, tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-000002.pth"]
    assert not (tmp_path / "loss.csv").exists()
    result = stage(config, inputs, tmp_path)
    undisturbed, out = finished[task]
    assert losses(tmp_path) == losses(out)
    assert [row.value for row in result.measurements] == [row.value for row in undisturbed.measurements]


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_ends_a_training_after_its_step(
    number: signal.Signals,
    finished: dict[str, tuple[StageResult, Path]],
    backbone: Path,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SLURM's warning before a time limit, and a preemption: what was trained is kept, however rarely it is saved."""
    from sohes.engine.hooks import ProgressHook

    stage, config = STAGES["semantic"]
    inputs = {"backbone": backbone, "data": scenes}
    genuine = ProgressHook.after_train_iter

    def strike(self: ProgressHook, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        genuine(self, runner, batch_idx, data_batch, outputs)
        if runner.iter == 0:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patched:
        patched.setattr(ProgressHook, "after_train_iter", strike)
        with pytest.raises(Stopped, match="stopped after step 1"):
            stage(replace(config, checkpoint_every=10_000), inputs, tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-000001.pth"]
    stage(config, inputs, tmp_path)
    assert losses(tmp_path) == losses(finished["semantic"][1])


def test_the_terminal_is_left_to_the_progress_bar(
    backbone: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage, config = STAGES["instance"]
    stage(config, {"backbone": backbone, "data": scenes}, tmp_path)
    assert capsys.readouterr().out == ""
    assert "Average Precision" in (tmp_path / "runner.log").read_text()


class Intruder:
    """Makes a file where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("task", STAGES)
def test_no_code_from_a_checkpoint_is_run(
    task: str, finished: dict[str, tuple[StageResult, Path]], backbone: Path, scenes: Path, tmp_path: Path
) -> None:
    """Neither of an archive nor of a bare pickle, under the names of now and of earlier versions."""
    trace = tmp_path / "trace"
    intruder = Intruder(trace)
    pickle.loads(pickle.dumps(intruder))
    assert trace.exists(), "the intruder must be able to"
    trace.unlink()
    for name in ("last.pth", "checkpoint-000002.pth"):
        torch.save({"state_dict": {}, "meta": intruder}, tmp_path / name)
    (tmp_path / "checkpoint-000003.pth").write_bytes(pickle.dumps(intruder))
    stage, config = STAGES[task]
    stage(config, {"backbone": backbone, "data": scenes}, tmp_path)
    assert not trace.exists()
    assert losses(tmp_path) == losses(finished[task][1]), "the training starts from scratch"


def test_a_checkpoint_of_another_backbone_is_refused(
    finished: dict[str, tuple[StageResult, Path]], patch14: Path, scenes: Path, tmp_path: Path
) -> None:
    shutil.copy(checkpoints(finished["semantic"][1])[0], tmp_path)
    with pytest.raises(SohesError, match=r"checkpoint-000004\.pth: was written by another configuration"):
        semantic(SEMANTIC, {"backbone": patch14, "data": scenes}, tmp_path)


def test_the_trained_head_is_left_for_mmdetections_own_tools(
    finished: dict[str, tuple[StageResult, Path]], scenes: Path
) -> None:
    from mmdet.apis import init_detector

    out = finished["instance"][1]
    (config,) = (out / "runner").glob("*.py")
    model = init_detector(str(config), str(out / "head.pth"), device="cpu")
    saved = torch.load(out / "head.pth", weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    assert model.dataset_meta["classes"][0] == "car"


def test_nothing_detected_is_an_ap_of_zero_and_said(
    backbone: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from transfer import mm_run

    genuine = mm_run.load_recipe

    def severe(task: str, recipe: str) -> Any:
        config = genuine(task, recipe)
        config.model.test_cfg.rcnn.score_thr = 1.1
        return config

    monkeypatch.setattr(mm_run, "load_recipe", severe)
    result = instance(
        InstanceConfig(recipe="mask_rcnn_frozen", iterations=1), {"backbone": backbone, "data": scenes}, tmp_path
    )
    assert [row.value for row in result.measurements] == [0.0] * 4
    assert any("nothing was detected in any val image" in note for note in result.notes)
    truth, nothing = COCO(str(tmp_path / "instances/val.json")), COCO()
    nothing.dataset = truth.dataset | {"annotations": []}
    nothing.createIndex()
    reference = COCOeval(truth, nothing, "segm")
    reference.evaluate()
    reference.accumulate()
    reference.summarize()
    assert reference.stats[:2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("metrics", [{}, {"mIoU": float("nan")}, {"mIoU": -1.0}])
def test_a_metric_that_was_not_measured_is_an_error(metrics: dict[str, float], tmp_path: Path) -> None:
    config = SimpleNamespace(method="a head", work_dir=str(tmp_path / "runner"))
    run: Any = SimpleNamespace(metrics=metrics, config=config)
    with pytest.raises(SohesError, match="a head: the evaluation gave no mIoU"):
        _measured(run, "mIoU")
    assert _measured(SimpleNamespace(metrics={"mIoU": np.float32(0.0)}, config=config), "mIoU") == 0.0  # type: ignore[arg-type]


@pytest.mark.parametrize("task", STAGES)
def test_what_was_left_out_is_said(task: str, backbone: Path, scenes: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    (data / "val/000001.png").unlink()
    content = json.loads((data / "train.json").read_text())
    bare = content["images"][0]["id"]
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] != bare]
    (data / "train.json").write_text(json.dumps(content))
    stage, config = STAGES[task]
    result = stage(replace(config, iterations=1), {"backbone": backbone, "data": data}, tmp_path / "out")
    assert {row.n_images for row in result.measurements} == {2}
    assert any("val.json: 1 of 3 images cannot be read" in note for note in result.notes)
    assert any("trained on 7 of 8 images" in note for note in result.notes) == (task == "instance")


@pytest.mark.parametrize("task", STAGES)
def test_images_that_do_not_fit_are_refused_before_training(
    task: str, backbone: Path, scenes: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    (wrong,) = read_coco(data / "train.json").items[2:3]
    Image.open(wrong.path).resize((48, 48)).save(wrong.path)
    stage, config = STAGES[task]
    with pytest.raises(DataError, match=r"000002\.png is 48 x 48, its entry says 96 x 96"):
        stage(config, {"backbone": backbone, "data": data}, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.log"))


def test_a_recipe_that_leaves_no_image_says_so() -> None:
    from transfer.mm_data import ResumableSampler

    class Empty(list[int]):
        ann_file = "train.json"

    with pytest.raises(DataError, match=r"train\.json: the recipe's filter leaves no image"):
        ResumableSampler(Empty())
