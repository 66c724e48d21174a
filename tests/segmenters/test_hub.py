"""Segmenters on the Hugging Face hub: which files come and go, the card, and what is said where it fails."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image

from sohes.backbones.card import add_numbers
from sohes.errors import WeightsError
from sohes.files import file_digest, read_json, write_json
from sohes.masks import MaskForest
from sohes.records import Measurement
from sohes.segmenters import hub
from sohes.segmenters.entity import EntityPredictor
from sohes.segmenters.segmenter import TrainedSegmenter, load_segmenter
from tests.segmenters.tiny import PROVENANCE, tiny_segmenter

ROW = Measurement(
    method="SOHES phase 2",
    backbone="vit_tiny_patch16_224",
    init="random weights",
    dataset="scenes",
    split="val",
    protocol="mask_ar1000_v1",
    metric="mask_ar_1000",
    value=12.345,
    n_images=80,
)
PICTURE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def segmenter() -> TrainedSegmenter:
    return EntityPredictor(tiny_segmenter(), PROVENANCE)


class Hub:
    """Repositories in a folder, behind the two calls that are made; downloads are checked for what they ask for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: dict[str, Any] = {}
        self.made: list[str] = []

    def create_repo(self, repo_id: str, *, exist_ok: bool) -> None:
        assert exist_ok
        self.made.append(repo_id)

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> str:
        shutil.copytree(folder_path, self.root / repo_id)
        return f"https://huggingface.co/{repo_id}/commit/1"

    def snapshot_download(self, repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.asked = {"repo_id": repo_id, "revision": revision, "allow_patterns": allow_patterns}
        return str(self.root / repo_id)


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub(tmp_path / "hub")
    monkeypatch.setattr(hub, "HfApi", lambda: fake)
    monkeypatch.setattr(hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_a_dry_run_writes_what_would_be_pushed(segmenter: TrainedSegmenter, tmp_path: Path) -> None:
    """No network: nothing stands in for the hub here."""
    folder = tmp_path / "dry"
    assert segmenter.push_to_hub("me/beetles", license="apache-2.0", dry_run=folder) == str(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "provenance.json",
    ]
    assert load_segmenter(folder, device="cpu").predict(PICTURE) == segmenter.predict(PICTURE)
    segmenter.push_to_hub("me/beetles", dry_run=folder)  # again, over the first


def test_the_card(segmenter: TrainedSegmenter, tmp_path: Path) -> None:
    card = ModelCard.load(
        Path(segmenter.push_to_hub("me/beetles", license="mit", dry_run=tmp_path / "dry")) / "README.md"
    )
    assert card.data.to_dict() == {
        "library_name": "sohes",
        "license": "mit",
        "pipeline_tag": "mask-generation",
        "tags": ["sohes", "class-agnostic-segmentation", "hierarchical-segmentation"],
    }
    assert card.text.strip().startswith("# beetles")
    assert "Licence of these weights: mit." in card.text
    assert (
        "| 1. random weights | none | 0 | none |  |  |\n| 2. SOHES | unknown | unknown | unknown |  |  |" in card.text
    )
    assert f"`{file_digest(tmp_path / 'dry' / 'model.safetensors')}`" in card.text
    (use,) = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    assert 'sohes.load_segmenter("hf-hub:me/beetles")' in use
    compile(use, "card", "exec")


def test_an_unknown_licence_is_not_invented(segmenter: TrainedSegmenter, tmp_path: Path) -> None:
    folder = segmenter.push_to_hub("me/beetles", dry_run=tmp_path / "dry")
    assert ModelCard.load(Path(folder) / "README.md").data.license == "unknown"


def test_a_saved_folder_has_a_card_whose_lines_run(
    segmenter: TrainedSegmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = segmenter.save(tmp_path / "s")
    Image.fromarray(PICTURE).save(folder / "photo.jpg")
    (use,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(folder)
    lines: dict[str, Any] = {}
    exec(use, lines)
    assert isinstance(lines["forest"], MaskForest)


def test_numbers_go_along(segmenter: TrainedSegmenter, tmp_path: Path) -> None:
    """From the stage that measured them into the folder's card, and with the weights to the hub."""
    folder = segmenter.save(tmp_path / "s")
    add_numbers(folder, [ROW])
    loaded = load_segmenter(folder, device="cpu")
    pushed = Path(loaded.push_to_hub("me/beetles", license="mit", dry_run=tmp_path / "dry"))
    card = ModelCard.load(pushed / "README.md")
    assert card.data.license == "mit"
    (result,) = card.data.eval_results or []
    assert (result.metric_type, result.metric_value, card.data.model_name) == ("mask_ar_1000", 12.345, "beetles")
    assert "| scenes (val) | mask_ar_1000 | 12.3 % | 80 | mask_ar1000_v1 |" in card.text
    assert (loaded.save(tmp_path / "copy") / "README.md").read_bytes() == (folder / "README.md").read_bytes()


def test_a_folder_without_a_card(segmenter: TrainedSegmenter, tmp_path: Path) -> None:
    """Of before there were cards; with somebody's own README; with ours, edited until it is no YAML."""
    folder = segmenter.save(tmp_path / "s")
    path = folder / "README.md"
    for text in ("# My beetles\n", "---\na: [\n---\n# s\n\n## Numbers\n\nmany\n\n## Limitations\n"):
        path.write_text(text)
        add_numbers(folder, [ROW])
        assert path.read_text() == text
        assert load_segmenter(folder, device="cpu").predict(PICTURE) == segmenter.predict(PICTURE)
    path.unlink()
    add_numbers(folder, [ROW])
    assert load_segmenter(folder, device="cpu").predict(PICTURE) == segmenter.predict(PICTURE)
    assert not path.exists()


def test_there_and_back(segmenter: TrainedSegmenter, online: Hub, tmp_path: Path) -> None:
    assert segmenter.push_to_hub("me/beetles") == "https://huggingface.co/me/beetles/commit/1"
    assert online.made == ["me/beetles"]
    loaded = load_segmenter("hf-hub:me/beetles@v1", device="cpu")
    assert online.asked == {
        "repo_id": "me/beetles",
        "revision": "v1",
        "allow_patterns": ["config.json", "model.safetensors", "provenance.json"],
    }
    assert loaded.predict(PICTURE) == segmenter.predict(PICTURE)
    assert loaded.provenance == load_segmenter(segmenter.save(tmp_path / "s"), device="cpu").provenance
    load_segmenter("hf-hub:me/beetles", device="cpu")
    assert online.asked["revision"] is None


def test_code_that_lies_beside_the_weights_is_not_run(segmenter: TrainedSegmenter, online: Hub, tmp_path: Path) -> None:
    """Not even where the config asks for it, as `trust_remote_code` repositories do."""
    segmenter.push_to_hub("me/trap")
    folder = online.root / "me" / "trap"
    (folder / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\nclass Trap: ...\n")
    hooks = {"AutoConfig": "trap.Trap", "AutoModel": "trap.Trap"}
    write_json(folder / "config.json", read_json(folder / "config.json") | {"auto_map": hooks})
    assert load_segmenter("hf-hub:me/trap", device="cpu").predict(PICTURE) == segmenter.predict(PICTURE)
    assert not (tmp_path / "sprung").exists()


def test_another_kind_of_repository(online: Hub) -> None:
    (online.root / "me" / "bert").mkdir(parents=True)
    write_json(online.root / "me" / "bert" / "config.json", {"model_type": "bert"})
    with pytest.raises(
        WeightsError, match=r"hf-hub:me/bert: not a segmenter .* no model.safetensors and no provenance"
    ):
        load_segmenter("hf-hub:me/bert")


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:beetles", "hf-hub:a/b/c", "hf-hub:me/..", "hf-hub:me/a b"])
def test_names_that_are_none(name: str, segmenter: TrainedSegmenter, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"not a name on the Hugging Face hub.*user/name"):
        load_segmenter(name)
    with pytest.raises(WeightsError, match=r"not a name on the Hugging Face hub.*user/name"):
        segmenter.push_to_hub(name.removeprefix("hf-hub:"), dry_run=tmp_path / "dry")
    assert not (tmp_path / "dry").exists()


def test_without_access(segmenter: TrainedSegmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real client, told that there is no network, with an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        WeightsError, match=r"hf-hub:me/beetles: could not be fetched .*; without access, copy"
    ) as caught:
        load_segmenter("hf-hub:me/beetles")
    assert isinstance(caught.value.__cause__, LocalEntryNotFoundError)
    with pytest.raises(WeightsError, match=r"me/beetles: could not be pushed .*log in"):
        segmenter.push_to_hub("me/beetles")


def test_saving_spares_what_is_not_a_segmenter(segmenter: TrainedSegmenter, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(WeightsError, match=r"holds other files, thesis\.tex for one"):
        segmenter.save(tmp_path)
    with pytest.raises(WeightsError, match="holds other files"):
        segmenter.push_to_hub("me/beetles", dry_run=tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    folder = segmenter.save(str(tmp_path / "new"))
    assert segmenter.save(folder) == folder
    assert load_segmenter(folder, device="cpu").predict(PICTURE) == segmenter.predict(PICTURE)
