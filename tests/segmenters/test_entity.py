"""The entity segmenter at work: prediction, and its folder on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sohes.backbones.timm_folder import save_backbone_folder
from sohes.errors import DataError, WeightsError
from sohes.files import read_json, write_json
from sohes.segmenters import entity as module
from sohes.segmenters.entity import EntityPredictor, load_model, prediction_scores, save_segmenter, stability
from sohes.segmenters.model import EntitySegmenter, SegmenterOutput
from sohes.segmenters.segmenter import load_segmenter
from tests.segmenters.samples import output_of
from tests.segmenters.tiny import PROVENANCE, TIMM_CONFIG, tiny_segmenter


@pytest.fixture(scope="module", params=["pyramid", "eomt", "patches"])
def model(request: pytest.FixtureRequest) -> EntitySegmenter:
    """One tiny model of each kind for all tests here; nobody changes it."""
    return tiny_segmenter(request.param).eval()


@pytest.fixture(scope="module")
def folder(model: EntitySegmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model on disk."""
    return save_segmenter(tmp_path_factory.mktemp("saved") / "segmenter", model, PROVENANCE)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_round_trip_is_exact(model: EntitySegmenter, folder: Path, tmp_path: Path) -> None:
    loaded, provenance = load_model(folder)
    assert provenance == PROVENANCE
    # before provenance had steps, it named the start weights alone
    shutil.copytree(folder, tmp_path / "old")
    old = {"timm_name": "vit_tiny_patch16_224", "init": "random weights", "trained": "nothing", "sha256": ""}
    (tmp_path / "old" / "provenance.json").write_text(json.dumps(old))
    assert load_model(tmp_path / "old")[1] == PROVENANCE
    state, expected = loaded.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    again, before = (
        EntityPredictor(loaded, provenance).predict(picture(50, 70)),
        EntityPredictor(model, PROVENANCE).predict(picture(50, 70)),
    )
    assert again.rles == before.rles
    assert np.array_equal(again.scores, before.scores)
    assert np.array_equal(again.ancestor, before.ancestor)
    assert np.array_equal(again.parent, before.parent)


def test_loads_as_any_hugging_face_model(model: EntitySegmenter, folder: Path) -> None:
    loaded = type(model).from_pretrained(folder)
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = loaded(pixels), model(pixels)
    assert torch.equal(found.mask_logits(), expected.mask_logits())
    assert torch.equal(found.ancestor_logits, expected.ancestor_logits)


def test_normalisation_comes_from_the_weights(folder: Path) -> None:
    segmenter = load_segmenter(folder, device="cpu")
    assert segmenter._mean.tolist() == pytest.approx([0.4, 0.5, 0.6])
    assert segmenter._std.tolist() == pytest.approx([0.2, 0.25, 0.3])


@pytest.mark.parametrize(
    "size_hw",
    [(64, 64), (1, 1), (1, 90), (300, 1), (33, 47), (17, 500), (401, 13)],
    ids=lambda size: f"{size[0]}x{size[1]}",
)
def test_any_image_size(model: EntitySegmenter, size_hw: tuple[int, int]) -> None:
    segmenter = EntityPredictor(model, PROVENANCE)
    shown = segmenter.input_size(size_hw)
    assert all(side % 16 == 0 and side >= 32 for side in shown)
    assert max(shown) <= 128
    forest = segmenter.predict(picture(*size_hw))
    assert forest.size_hw == size_hw
    assert forest.masks.shape == (len(forest), *size_hw)
    assert (forest.areas > 0).all()
    assert (np.diff(forest.scores) <= 0).all()
    assert forest.scores.dtype == np.float32


def test_limits_of_the_input_size(model: EntitySegmenter) -> None:
    segmenter = EntityPredictor(model, PROVENANCE)  # 64 px the short side, 128 at most the long one
    assert segmenter.input_size((100, 100)) == (64, 64)
    assert segmenter.input_size((100, 150)) == (64, 96)
    assert segmenter.input_size((300, 100)) == (128, 48)  # the long side decides: 128 x 43


def test_score_by_hand() -> None:
    entity = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    masks = torch.tensor([[[3.0, -5.0], [1.0, -1.0]], [[-1.0, -1.0], [-2.0, -3.0]]])
    sigmoid = [1 / (1 + np.exp(-x)) for x in (2.0, 3.0, 1.0)]
    expected = sigmoid[0] * (sigmoid[1] + sigmoid[2]) / 2
    assert prediction_scores(entity, masks).tolist() == pytest.approx([expected, 0.0], rel=1e-5)


def test_stability_by_hand() -> None:
    """Probabilities 0.65, 0.55, 0.45, 0.35: one above 0.6, three above 0.4; then twice 0.55, and nothing sure."""
    probability = torch.tensor([[0.65, 0.55, 0.45, 0.35], [0.55, 0.55, 0.1, 0.1]]).view(2, 2, 2)
    assert stability(probability.logit()).tolist() == pytest.approx([2 / 4, 1 / 3])


class Told(torch.nn.Module):
    """Answers with given predictions, whatever the image."""

    def __init__(self, real: EntitySegmenter, output: SegmenterOutput) -> None:
        super().__init__()
        self.vit, self.config, self.title, self.output = real.vit, real.config, real.title, output

    def forward(self, pixels: Tensor) -> SegmenterOutput:
        return self.output


def told(model: EntitySegmenter, entity: Tensor, masks: Tensor, ancestor: Tensor) -> EntityPredictor:
    return EntityPredictor(Told(model, output_of([entity[None]], [masks[None]], ancestor[None])), PROVENANCE)  # type: ignore[arg-type]


def test_masks_read_one_at_a_time_are_the_same(model: EntitySegmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = EntityPredictor(model, PROVENANCE)
    together = segmenter.predict(picture(50, 70))
    monkeypatch.setattr(module, "_PIXELS", 1)
    single = segmenter.predict(picture(50, 70))
    assert len(together) > 1
    assert single.rles == together.rles
    assert np.array_equal(single.scores, together.scores)
    assert np.array_equal(single.ancestor, together.ancestor)


def test_best_first_without_empty_masks_and_relations_follow(model: EntitySegmenter) -> None:
    """Four queries: a part, an empty one, its whole, something beside. The relation is given by query number."""
    masks = torch.full((4, 16, 16), -8.0)
    masks[0, 2:6, 2:6] = 8.0
    masks[2, :8, :8] = 8.0
    masks[3, 10:, 10:] = 8.0
    entity = torch.tensor([[1.0, 0.0], [9.0, 0.0], [3.0, 0.0], [2.0, 0.0]])
    ancestor = torch.full((4, 4), -4.0)
    ancestor[2, 0] = 4.0
    forest = told(model, entity, masks, ancestor).predict(picture(32, 32))
    assert forest.areas.tolist() == pytest.approx([256, 144, 64], abs=30)  # queries 2, 3 and 0 at twice the size
    assert forest.scores.tolist() == pytest.approx([1 / (1 + np.exp(-x)) for x in (3, 2, 1)], abs=0.03)
    assert forest.parent.tolist() == [-1, -1, 0]
    assert np.argwhere(forest.ancestor).tolist() == [[0, 2]]
    assert forest.masks[0][:14, :14].all()


def test_at_most_a_thousand(model: EntitySegmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.MAX_MASKS == 1000
    generator = torch.Generator().manual_seed(0)
    entity = torch.randn(1003, 2, generator=generator)
    masks = torch.full((1003, 4, 4), 5.0)
    forest = told(model, entity, masks, torch.zeros(1003, 1003)).predict(picture(8, 8))
    assert len(forest) == 1000
    best = torch.sort(entity.softmax(-1)[:, 0] * torch.tensor(5.0).sigmoid(), descending=True).values[:1000]
    assert forest.scores == pytest.approx(best.numpy(), rel=1e-4)


def test_segment_shows_what_is_sure(model: EntitySegmenter) -> None:
    masks = torch.full((2, 16, 16), 8.0)
    masks[1, :, 8:] = -8.0
    entity = torch.tensor([[4.0, 0.0], [-4.0, 0.0]])
    segmenter = told(model, entity, masks, torch.zeros(2, 2))
    assert len(segmenter.predict(picture(20, 20))) == 2
    assert segmenter.segment(picture(20, 20)).areas.tolist() == [400]
    assert len(segmenter.segment(picture(20, 20), min_score=0.01)) == 2


def test_an_image_in_any_form_gives_one_forest(model: EntitySegmenter, tmp_path: Path) -> None:
    segmenter, image = EntityPredictor(model, PROVENANCE), picture(50, 70)
    Image.fromarray(image).save(tmp_path / "a.png")
    expected = segmenter.predict(image)
    assert len(expected) > 1
    chw = torch.from_numpy(image).permute(2, 0, 1)
    for form in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image), chw, chw / 255, image / 255):
        assert segmenter.predict(form) == expected
    assert segmenter.segment(chw, min_score=0.01) == segmenter.segment(image, min_score=0.01)
    with pytest.raises(DataError, match="floating-point pixels must lie in"):
        segmenter.segment(chw.float())


def test_folders_that_are_no_segmenter(model: EntitySegmenter, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not a segmenter folder"):
        load_segmenter(tmp_path)
    backbone = save_backbone_folder(tmp_path / "vit", model.vit, PROVENANCE)
    with pytest.raises(WeightsError, match="not a segmenter folder"):
        load_segmenter(backbone)


def test_damaged_folders(model: EntitySegmenter, tmp_path: Path) -> None:
    weights = save_segmenter(tmp_path / "s", model, PROVENANCE) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load_model(tmp_path / "s")
    weights.unlink()
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load_model(tmp_path / "s")
    weights.write_bytes(whole)
    config = read_json(tmp_path / "s" / "config.json")
    timm_config = {**TIMM_CONFIG, "model_args": {**TIMM_CONFIG["model_args"], "depth": 3}}
    deeper = {"decoder_layers": 4} if model.title == "Mask2Former" else {"timm_config": timm_config}
    write_json(tmp_path / "s" / "config.json", config | deeper)
    with pytest.raises(WeightsError, match="missing keys"):
        load_model(tmp_path / "s")


@pytest.mark.parametrize(
    ("model", "change"),
    [
        ("pyramid", {"num_attention_heads": "two"}),
        ("pyramid", {"hidden_dim": -1}),
        ("pyramid", {"backbone_config": None}),
        ("pyramid", {"backbone_config": {"model_type": "timm_pyramid", "timm_config": {"architecture": "resnet50"}}}),
        ("pyramid", {"backbone_config": {"model_type": "bert"}}),
        ("pyramid", []),
        ("eomt", {"num_queries": "two"}),
        ("eomt", {"num_queries": 7}),
        ("eomt", {"query_blocks": 3}),
        ("eomt", {"timm_config": None}),
        ("eomt", {"timm_config": {"architecture": "resnet50"}}),
    ],
    ids=str,
    indirect=["model"],
)
def test_configs_that_describe_no_model(folder: Path, tmp_path: Path, change: dict[str, object] | list[object]) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "s"))
    write_json(copied / "config.json", read_json(folder / "config.json") | change if change else change)
    with pytest.raises(WeightsError):
        load_model(copied)


def test_saving_replaces_the_old_folder(model: EntitySegmenter, tmp_path: Path) -> None:
    save_segmenter(tmp_path / "s", tiny_segmenter(seed=5), PROVENANCE)
    save_segmenter(tmp_path / "s", model, PROVENANCE)
    assert torch.equal(load_model(tmp_path / "s")[0].class_predictor.weight, model.class_predictor.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
