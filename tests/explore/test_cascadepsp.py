"""CascadePSP: what the network is shown and what becomes of its answer, without the package; errors; safe loading."""

from __future__ import annotations

import hashlib
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sohes.backbones.provenance import RANDOM, Provenance
from sohes.backbones.timm_folder import BackboneFolder, build_vit
from sohes.backbones.timm_vit import DenseViT
from sohes.commands.explore import parse_settings
from sohes.errors import ConfigError, WeightsError
from sohes.explore import cascadepsp, stream
from sohes.explore.explorer import Explorer
from sohes.explore.refine import make_refiner
from sohes.explore.settings import REFINERS, TRAINED_ON_HUMAN_MASKS, ExploreSettings


class Network(nn.Module):
    """Stands in for the package's: one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(1))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[tuple[Tensor, Tensor, int]]]:
    """A package whose network answers 0.9 on the mask's side of the image's middle, and what it was shown."""
    calls = []

    def process_im_single_pass(model: nn.Module, image: Tensor, mask: Tensor, side: int) -> Tensor:
        calls.append((image, mask, side))
        answer = torch.full_like(mask, 0.1)
        answer[..., 2:-2] = 0.9 * model.gain.item()
        return answer

    modules = {
        name: types.ModuleType(name) for name in ("", ".models", ".models.psp", ".models.psp.pspnet", ".eval_helper")
    }
    modules[".models.psp.pspnet"].RefinementModule = Network
    modules[".eval_helper"].process_im_single_pass = process_im_single_pass
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"segmentation_refinement{name}", module)
    monkeypatch.setenv("SOHES_CACHE", str(tmp_path))
    cascadepsp.load_network.cache_clear()
    yield calls
    cascadepsp.load_network.cache_clear()


def save(state: object, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(state, folder / "cascadepsp.pth")
    checksum = hashlib.md5((folder / "cascadepsp.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(cascadepsp, "WEIGHTS_MD5", checksum)


def test_the_crop_and_the_answer(shown: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save({"module.gain": torch.ones(1)}, tmp_path, monkeypatch)
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    soft = np.zeros((60, 80), np.float32)
    soft[20:30, 4:24] = 0.7
    soft[25, 30] = 0.4  # below the threshold: no part of the box
    refiner = make_refiner("cascadepsp", image, 4.0)
    assert refiner.margin == 16
    refined = refiner(soft[10:50, 0:50], (10, 0))
    colours, mask, side = shown[0]
    # 40 px a side around (25, 14), cut at the image's left border
    crop = np.s_[5:45, 0:34]
    assert colours.shape == (1, 3, 40, 34)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (image[crop] / 255 - mean) / std
    np.testing.assert_allclose(colours[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)
    np.testing.assert_array_equal(mask[0, 0].numpy(), np.where(soft[crop] >= 0.5, 1, -1))
    assert side == 100  # the longer side, but from 100 to 900
    answer = np.zeros((60, 80), dtype=bool)
    answer[5:45, 2:32] = True
    np.testing.assert_array_equal(refined, answer[10:50, 0:50])


def test_an_empty_mask_is_not_shown(shown: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save({"module.gain": torch.ones(1)}, tmp_path, monkeypatch)
    refiner = make_refiner("cascadepsp", np.zeros((20, 20, 3), np.uint8), 4.0)
    assert not refiner(np.full((10, 10), 0.4, np.float32), (0, 0)).any()
    assert shown == []


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    cascadepsp.load_network.cache_clear()
    monkeypatch.setitem(sys.modules, "segmentation_refinement", None)
    with pytest.raises(ConfigError, match=r"pip install 'sohes\[cascadepsp\]'"):
        make_refiner("cascadepsp", np.zeros((20, 20, 3), np.uint8), 4.0)


def test_missing_and_damaged_weights(shown: list, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"curl .*cascadepsp\.pth https://"):
        cascadepsp.load_network()
    (tmp_path / "cascadepsp.pth").write_bytes(b"half a file")
    with pytest.raises(WeightsError, match="damaged"):
        cascadepsp.load_network()


def test_other_weights(shown: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save({"module.other": torch.ones(1)}, tmp_path, monkeypatch)
    with pytest.raises(WeightsError, match="do not fit"):
        cascadepsp.load_network()


class Touch:
    """Unpickled by a careless loader, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_weights_cannot_run_code(shown: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save({"module.gain": Touch(tmp_path / "touched")}, tmp_path, monkeypatch)
    with pytest.raises(WeightsError, match="tensors alone"):
        cascadepsp.load_network()
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(("algorithm", "supervision"), [("sohes", "masks"), ("superpixels", "none")])
def test_a_record_says_what_it_did(algorithm: str, supervision: str) -> None:
    """The other algorithm refines nothing."""
    vit = build_vit({"architecture": "test_vit"})
    backbone = DenseViT(BackboneFolder(vit, {}, Provenance(timm_name="test_vit", steps=(RANDOM,))))
    explorer = Explorer(backbone, ExploreSettings(algorithm=algorithm, refiner="cascadepsp"))
    assert stream.supervision(explorer) == supervision
    assert stream.trained_on_human_masks(explorer.settings) == (supervision == "masks")


def test_it_is_named_as_trained_on_human_masks() -> None:
    assert {"cascadepsp"} == TRAINED_ON_HUMAN_MASKS
    assert set(REFINERS) > TRAINED_ON_HUMAN_MASKS


def test_the_published_setting_has_it_only_where_it_is_asked_for() -> None:
    assert stream.trained_on_human_masks(parse_settings([], preset="paper")) is False
    asked = parse_settings(["refiner=cascadepsp"], preset="paper")
    assert (asked.size_global, stream.trained_on_human_masks(asked)) == (480, True)
