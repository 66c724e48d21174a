from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sohes.backbones.timm_folder import load_backbone_folder
from sohes.records import StageResult
from transfer.data import write_label_maps
from transfer.stages import InstanceConfig, SemanticConfig, instance, semantic

pytestmark = [pytest.mark.transfer, pytest.mark.usefixtures("mm_stack")]

SEMANTIC = SemanticConfig(recipe="linear_frozen", iterations=4, checkpoint_every=2)
INSTANCE = InstanceConfig(recipe="mask_rcnn_frozen", iterations=4, checkpoint_every=2, n_pictures=2)
STAGES: dict[str, tuple[Any, Any]] = {"semantic": (semantic, SEMANTIC), "instance": (instance, INSTANCE)}


def losses(out: Path) -> list[str]:
    with (out / "loss.csv").open() as table:
        return [row["loss"] for row in csv.DictReader(table)]


@pytest.fixture(scope="module")
def finished(
    backbone: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[StageResult, Path]]:
    """Both stages, run undisturbed."""
    results = {}
    for task, (stage, config) in STAGES.items():
        out = tmp_path_factory.mktemp(task)
        results[task] = stage(config, {"backbone": backbone, "data": scenes}, out), out
    return results


def test_semantic_measurements_and_artefacts(finished: dict[str, tuple[StageResult, Path]], scenes: Path) -> None:
    result, out = finished["semantic"]
    assert [row.metric for row in result.measurements] == ["miou_dataset", "acc_pixel"]
    row = result.measurements[0]
    assert (row.method, row.backbone, row.init) == ("linear head (frozen ViT)", "test_vit", "random weights")
    assert (row.data, row.protocol, row.n_images, row.unit) == (f"{scenes.name} (val)", "mmseg_miou_v1", 3, "%")
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
def test_an_interrupted_run_goes_on_and_ends_the_same(
    task: str,
    finished: dict[str, tuple[StageResult, Path]],
    backbone: Path,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transfer.mm_hooks import ProgressHook

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
    assert (tmp_path / "last.pth").exists()
    assert not (tmp_path / "loss.csv").exists()
    result = stage(config, inputs, tmp_path)
    undisturbed, out = finished[task]
    assert losses(tmp_path) == losses(out)
    assert [row.value for row in result.measurements] == [row.value for row in undisturbed.measurements]


def test_the_terminal_is_left_to_the_progress_bar(
    backbone: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage, config = STAGES["instance"]
    stage(config, {"backbone": backbone, "data": scenes}, tmp_path)
    assert capsys.readouterr().out == ""
    assert "Average Precision" in (tmp_path / "runner.log").read_text()
