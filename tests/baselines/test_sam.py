"""SAM's automatic masks with a tiny random SAM, and weights that are not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    SamConfig,
    SamImageProcessor,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
)
from transformers.pipelines.mask_generation import MaskGenerationPipeline

from sohes.baselines.registry import make_baseline
from sohes.baselines.settings import SamSettings
from sohes.errors import ConfigError, WeightsError


def tiny_sam(folder: Path) -> Path:
    """A folder as the hub has it, for a SAM of 36,000 random weights on 64 px."""
    vision = SamVisionConfig(
        hidden_size=32,
        output_channels=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        window_size=4,
        global_attn_indexes=[1],
        num_pos_feats=8,
        mlp_dim=32,
    )
    prompt = SamPromptEncoderConfig(hidden_size=16, image_size=64, patch_size=8, mask_input_channels=4)
    decoder = SamMaskDecoderConfig(hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16)
    config = SamConfig(
        vision_config=vision.to_dict(), prompt_encoder_config=prompt.to_dict(), mask_decoder_config=decoder.to_dict()
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SamModel(config)
        for parameter in model.mask_decoder.parameters():  # or all its masks would be alike
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    SamImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sam(tmp_path_factory.mktemp("sam"))


@pytest.fixture
def everything(weights: Path) -> SamSettings:
    """No filter."""
    return SamSettings(
        weights=str(weights), points_per_side=4, pred_iou_thresh=0, stability_score_thresh=0, box_nms_iou=1.0
    )


IMAGE = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)


def test_masks_ranked_by_predicted_iou(everything: SamSettings) -> None:
    sam = make_baseline("sam", everything)
    forest = sam.predict(IMAGE)
    assert len(forest) == 3 * 4 * 4  # three masks a point
    assert forest.masks.shape[1:] == (48, 80)
    assert (np.diff(forest.scores) <= 0).all()
    assert forest.scores[0] > forest.scores[-1]
    assert (sam.backbone, sam.init[:11]) == ("SAM ViT of width 32", "SAM weights")


def test_settings_reach_the_generator(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The released generator's settings by default, under the names that transformers gives them."""
    asked = {}

    def call(self: MaskGenerationPipeline, image: object, **given: object) -> dict[str, object]:
        asked.update(given)
        return {"scores": torch.zeros(0), "rle_mask": []}

    monkeypatch.setattr(MaskGenerationPipeline, "__call__", call)
    assert len(make_baseline("sam", SamSettings(weights=str(weights))).predict(IMAGE)) == 0
    assert asked == {
        "points_per_crop": 32,
        "points_per_batch": 64,
        "pred_iou_thresh": 0.88,
        "stability_score_thresh": 0.95,
        "crops_nms_thresh": 0.7,
        "output_rle_mask": True,
    }


def test_filters_drop_masks(everything: SamSettings, weights: Path) -> None:
    forest = make_baseline("sam", everything).predict(IMAGE)
    between = float(np.median(forest.scores))
    settings = SamSettings(
        weights=str(weights), points_per_side=4, pred_iou_thresh=between, stability_score_thresh=0, box_nms_iou=1.0
    )
    fewer = make_baseline("sam", settings).predict(IMAGE)
    assert 0 < len(fewer) < len(forest)
    assert fewer.scores.min() > between


def test_nothing_found(weights: Path) -> None:
    settings = SamSettings(weights=str(weights), points_per_side=2, pred_iou_thresh=1e9)
    assert len(make_baseline("sam", settings).predict(IMAGE)) == 0


def test_missing_weights_name_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(source: str, **given: object) -> None:
        raise OSError(f"no connection for {source}")

    with monkeypatch.context() as patch:
        patch.setattr(SamModel, "from_pretrained", unreachable)
        with pytest.raises(WeightsError, match="no connection for facebook/sam-vit-base"):
            make_baseline("sam")
    for missing in (str(tmp_path), str(tmp_path / "gone")):
        with pytest.raises(WeightsError, match=r"hf download facebook/sam-vit-base .*weights: DIR") as caught:
            make_baseline("sam", SamSettings(weights=missing))
        assert missing in str(caught.value)


def test_other_weights_are_refused(weights: Path, tmp_path: Path) -> None:
    """transformers alone would go on with random tensors in place of the missing ones."""
    for file in weights.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    del state["mask_decoder.iou_token.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"missing keys, e\.g\. mask_decoder\.iou_token\.weight"):
        make_baseline("sam", SamSettings(weights=str(tmp_path)))


def test_pickled_weights_are_refused(weights: Path, tmp_path: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((weights / name).read_bytes())
    torch.save(load_file(weights / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        make_baseline("sam", SamSettings(weights=str(tmp_path)))


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        SamSettings(points_per_side=0)
