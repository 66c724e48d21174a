"""The configs that the README prints, run as they are on tiny copies of the data sets they name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sohes.data.coco import read_coco
from sohes.data.coco_writer import write_coco

pytestmark = [pytest.mark.transfer, pytest.mark.usefixtures("mm_stack")]

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "transfer/configs/examples"
BACKBONE = "runs/sohes_full-demo/export/backbone"
SHORT = {"batch_size": 2, "num_workers": 0, "persistent_workers": False}


def blocks() -> dict[str, str]:
    """Python blocks of the README that begin with the path of a file, by that path."""
    found = [block.split("```")[0] for block in (ROOT / "README.md").read_text().split("```python\n")[1:]]
    return {block.split("\n")[0].removeprefix("# "): block for block in found if block.startswith("# ")}


@pytest.fixture
def printed(request: pytest.FixtureRequest, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The README's config, read in a folder that holds the backbone it names."""
    from mmengine.config import Config

    monkeypatch.chdir(tmp_path)
    shutil.copytree(backbone, BACKBONE)
    config = json.loads(Path(BACKBONE, "config.json").read_text())
    config["pretrained_cfg"] |= {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    Path(BACKBONE, "config.json").write_text(json.dumps(config))
    Path("mine.py").write_text(blocks()[f"transfer/configs/examples/{request.param}.py"])
    return Config.fromfile("mine.py")


def train(config: Any, out: Path) -> Any:
    """Two steps and a validation; the tests make images and batches small, and nothing else."""
    from mmengine.runner import Runner

    config.work_dir = str(out / "work")
    config.experiment_name = out.name  # mmengine keeps one runner per name
    config.train_cfg = {"type": "IterBasedTrainLoop", "max_iters": 2, "val_interval": 2}
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.update(SHORT)
    runner = Runner.from_cfg(config)
    before = runner.model.backbone.vit.patch_embed.proj.weight.detach().clone()
    runner.train()
    assert not torch.equal(runner.model.backbone.vit.patch_embed.proj.weight, before), "the ViT trains"
    for name, values in (("mean", (25.5, 51.0, 76.5)), ("std", (102.0, 127.5, 153.0))):
        found = getattr(runner.model.data_preprocessor, name).flatten()
        torch.testing.assert_close(found, torch.tensor(values), msg="the folder's own normalisation")
    return runner


@pytest.mark.parametrize("name", ["mmseg", "mmdet"])
def test_the_readme_prints_the_files(name: str) -> None:
    path = f"transfer/configs/examples/{name}.py"
    assert blocks()[path] == (ROOT / path).read_text()


@pytest.mark.parametrize("printed", ["mmseg"], indirect=True)
def test_the_mmsegmentation_config_trains_and_validates(printed: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("training", "validation"):
        for folder in ("images", "annotations"):
            (tmp_path / "data/ade/ADEChallengeData2016" / folder / split).mkdir(parents=True)
        for index in range(2):
            picture = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            root = tmp_path / "data/ade/ADEChallengeData2016"
            Image.fromarray(picture).save(root / "images" / split / f"{index}.jpg")
            Image.fromarray(picture[..., 0] // 64).save(root / "annotations" / split / f"{index}.png")  # 0: unlabelled
    printed.train_dataloader.dataset.pipeline[2].scale = printed.val_dataloader.dataset.pipeline[1].scale = (64, 64)
    printed.model.data_preprocessor.size = (128, 128)
    runner = train(printed, tmp_path)
    assert 0 <= runner.message_hub.get_scalar("val/mIoU").current() <= 100


@pytest.mark.parametrize("printed", ["mmdet"], indirect=True)
def test_the_mmdetection_config_trains_and_validates(printed: Any, scenes: Path, tmp_path: Path) -> None:
    from mmdet.datasets import CocoDataset

    names = CocoDataset.METAINFO["classes"]
    categories = [{"id": index, "name": name} for index, name in enumerate(names, start=1)]
    for split in ("train", "val"):
        images = read_coco(scenes / f"{split}.json")
        shutil.copytree(scenes / split, tmp_path / f"data/coco/{split}2017")
        listing = tmp_path / f"data/coco/annotations/instances_{split}2017.json"
        write_coco(listing, images.items, images.annotations, categories)
        content = json.loads(listing.read_text())
        for image in content["images"]:
            image["file_name"] = Path(image["file_name"]).name
        listing.write_text(json.dumps(content))
    for loader in (printed.train_dataloader, printed.val_dataloader):
        for step in loader.dataset.pipeline:
            if step.type == "Resize":
                step.scale = (64, 64)
    printed.model.train_cfg.rcnn.sampler.num = 16
    runner = train(printed, tmp_path)
    assert runner.model.neck.in_channels == [64] * 4
