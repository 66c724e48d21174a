"""CLIP names segments: everything else is painted over, and the caption that fits best wins (README §11)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from sohes.backbones.precision import autocast, default_device
from sohes.data.images import ImageArray
from sohes.errors import WeightsError
from sohes.rle import BoolArray

PROMPT = "a photo of a {}"  # [CAST]
_OUTSIDE = 0.5  # of a segment, after normalisation [CAST]
_BATCH = 32


class ClipNamer:
    """How well names fit segments, see `part_naming.Similarity`.

    Args:
        weights: name on the Hugging Face hub, or a folder with its files.
        names: what a segment may be called.
        device: of the model; the GPU if there is one.

    Attributes:
        side_px: side of the square that CLIP sees.

    Raises:
        WeightsError: the weights are not there, or not CLIP's.
    """

    def __init__(self, weights: str, names: Sequence[str], *, device: torch.device | str | None = None) -> None:
        self._device = torch.device(device) if device else default_device()
        clip, processor, tokenizer = load_clip(weights)
        self._clip = clip.to(self._device)
        self.side_px = int(clip.config.vision_config.image_size)
        self._mean, self._std = (
            torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std)
        )
        tokens = tokenizer([PROMPT.format(name) for name in names], padding=True, return_tensors="pt")
        with torch.no_grad():
            text = self._clip.text_model(**tokens.to(self._device)).pooler_output
            self._names = F.normalize(self._clip.text_projection(text), dim=-1)  # (N, D)

    @torch.no_grad()
    def __call__(self, image: ImageArray, masks: BoolArray) -> NDArray[np.float32]:
        """Cosine of each of S masks (S, H, W) of a square (H, W, 3) with each name, (S, N)."""
        pixels = (torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255) - self._mean) / self._std
        rows = [self._cosines(pixels, part) for part in torch.from_numpy(masks).split(_BATCH) if len(part)]
        return np.concatenate([np.zeros((0, len(self._names)), np.float32), *rows])

    def _cosines(self, pixels: Tensor, masks: Tensor) -> NDArray[np.float32]:
        alone = torch.where(masks[:, None], pixels, torch.tensor(_OUTSIDE)).to(self._device)
        with autocast(self._device):
            seen = self._clip.visual_projection(self._clip.vision_model(pixel_values=alone).pooler_output)
        cosines = F.normalize(seen.float(), dim=-1) @ self._names.T
        return np.asarray(cosines.cpu().numpy())


def load_clip(weights: str) -> tuple[Any, CLIPImageProcessor, CLIPTokenizer]:
    """The `CLIPModel`, its image processor and its tokenizer from a folder or the Hugging Face hub.

    Raises:
        WeightsError: missing, not reachable, or not CLIP's.
    """
    source = str(Path(weights).expanduser()) if Path(weights).expanduser().is_dir() else weights
    try:
        loaded: Any = CLIPModel.from_pretrained(source, output_loading_info=True)
        processor = CLIPImageProcessor.from_pretrained(source)
        tokenizer = CLIPTokenizer.from_pretrained(source)
    except Exception as error:  # the hub's client raises many kinds
        raise WeightsError(
            f"{weights}: CLIP cannot be loaded from there ({str(error).splitlines()[0]}). On a machine with access run "
            "`hf download openai/clip-vit-base-patch16 --local-dir DIR`, and give the folder (clip=DIR)"
        ) from error
    model, report = loaded
    for problem in ("missing_keys", "mismatched_keys"):
        if report[problem]:  # transformers would continue with random weights
            example = sorted(str(key) for key in report[problem])[0]
            raise WeightsError(f"{weights}: not CLIP's weights: {problem.replace('_', ' ')}, e.g. {example}")
    return model.eval(), processor, tokenizer
