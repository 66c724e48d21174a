"""CascadePSP (Cheng et al., CVPR 2020) as a refiner, the published setting of SOHES (README §5).

Its weights were trained on human masks: labels refined with it are not strictly self-supervised. The package
`segmentation-refinement` brings the network; its weights are never fetched on their own, nor is anything in them run.
"""

from __future__ import annotations

import functools
import hashlib
import math
import pickle

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sohes.backbones.weights import cache_folder
from sohes.errors import ConfigError, WeightsError
from sohes.explore.regions import Rectangle
from sohes.masks import FloatArray
from sohes.rle import BoolArray

WEIGHTS_URL = "https://github.com/hkchengrex/CascadePSP/releases/download/v1.0/model"
WEIGHTS_MD5 = "7478d4a9c42ab52beb6d7e9683402fe0"
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


class CascadePSP:
    """Refines masks one by one: a crop around the mask, at 100 to 900 px, through the network's global step."""

    def __init__(self, image: NDArray[np.uint8], patch_px: float, area: Rectangle) -> None:
        self.margin = math.ceil(4 * patch_px)  # of the mask; the network sees further
        self._image = image
        self._network = load_network()

    def __call__(self, soft: FloatArray, corner: tuple[int, int]) -> BoolArray:
        from segmentation_refinement.eval_helper import process_im_single_pass

        whole = np.zeros(self._image.shape[:2], dtype=bool)  # small work beside the network's
        window = np.s_[corner[0] : corner[0] + soft.shape[0], corner[1] : corner[1] + soft.shape[1]]
        whole[window] = soft >= 0.5
        if not whole.any():
            return whole[window]
        crop = _around(whole)
        colours = (self._image[crop].astype(np.float32) / 255 - MEAN) / STD
        signs = np.where(whole[crop], np.float32(1), np.float32(-1))
        device = next(self._network.parameters()).device
        with torch.inference_mode():
            probability = process_im_single_pass(
                self._network,
                torch.from_numpy(colours).permute(2, 0, 1)[None].to(device),
                torch.from_numpy(signs)[None, None].to(device),
                min(max(max(signs.shape), 100), 900),
            )
        whole[crop] = probability[0, 0].cpu().numpy() >= 128 / 255
        return whole[window]


def _around(mask: BoolArray) -> tuple[slice, slice]:
    """Rows and columns of a square twice as long as the mask's box, clipped to the image."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    half = max(width, height)
    top, left = y + height // 2 - half, x + width // 2 - half
    return np.s_[max(0, top) : top + 2 * half, max(0, left) : left + 2 * half]


@functools.cache
def load_network() -> nn.Module:
    """The network with its weights, on the GPU if there is one.

    Raises:
        ConfigError: the package is not installed.
        WeightsError: the weights are missing or damaged.
    """
    try:
        from segmentation_refinement.models.psp.pspnet import RefinementModule
    except ImportError as error:
        raise ConfigError(
            "refiner=cascadepsp needs the package segmentation-refinement: pip install 'sohes[cascadepsp]'"
        ) from error
    network = RefinementModule()
    try:
        network.load_state_dict(_load_state())
    except RuntimeError as error:
        raise WeightsError(f"CascadePSP's weights do not fit the installed segmentation-refinement: {error}") from error
    return network.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _load_state() -> dict[str, Tensor]:
    path = cache_folder() / "cascadepsp.pth"
    fetch = f"curl --location --create-dirs --output {path} {WEIGHTS_URL}"
    if not path.is_file():
        raise WeightsError(f"{path}: no CascadePSP weights (they were trained on human masks); to fetch them: {fetch}")
    with path.open("rb") as file:
        if hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() != WEIGHTS_MD5:
            raise WeightsError(f"{path}: damaged, or not the weights of CascadePSP; to fetch them again: {fetch}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path}: cannot be read as tensors alone") from error
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}
