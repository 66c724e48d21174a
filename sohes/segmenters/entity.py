"""The entity segmenter at work: from an image to the model's input, from its output to a forest (README §5)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import EvalResult
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers.utils import logging

from sohes.backbones.card import CARD
from sohes.backbones.precision import autocast
from sohes.backbones.provenance import PROVENANCE, SOHES, Provenance, Step, read_provenance
from sohes.backbones.timm_folder import WEIGHTS, save_backbone_folder
from sohes.data.images import ImageLike, as_image
from sohes.errors import SohesError, WeightsError
from sohes.files import atomic_path, file_digest, read_json, write_json, write_text
from sohes.masks import MaskForest
from sohes.rle import encode_masks
from sohes.segmenters.card import segmenter_card
from sohes.segmenters.decode import MAX_MASKS, decode_parents, relations
from sohes.segmenters.eomt import EomtSegmenter
from sohes.segmenters.mask2former import Mask2FormerSegmenter
from sohes.segmenters.model import ENTITY, EntitySegmenter
from sohes.segmenters.segmenter import TrainedSegmenter, segmenter_kind

MODELS: dict[str, type[EntitySegmenter]] = {  # by the `model_type` in a folder's config.json
    model.config_class.model_type: model for model in (Mask2FormerSegmenter, EomtSegmenter)
}
_LOGIT = math.log(0.6 / 0.4)
_PIXELS = 1 << 22  # of masks brought to full size at a time: 16 MB, which processors and allocators reuse


class EntityPredictor(TrainedSegmenter):
    """Predicts the forest of an image with an `EntitySegmenter`.

    Args:
        model: on its device; it is set to eval mode.
        provenance: of the ViT inside, the training that made the segmenter last.
    """

    def __init__(self, model: EntitySegmenter, provenance: Provenance) -> None:
        super().__init__(provenance)
        self.description = describe(model)
        self.model = model.eval()
        self.device = next(model.parameters()).device
        config = model.vit.pretrained_cfg
        self._mean, self._std = (np.asarray(config[key], np.float32) for key in ("mean", "std"))
        self._patch = int(model.vit.patch_embed.patch_size[0])

    def input_size(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Size at which an image is shown to the model: both sides limited, multiples of the patch, at least two."""
        config = self.model.config
        scale = min(config.inference_short_px / min(size_hw), config.inference_long_px / max(size_hw))
        height, width = (max(2, round(side * scale / self._patch)) * self._patch for side in size_hw)
        return height, width

    @torch.no_grad()
    def predict(self, image: ImageLike) -> MaskForest:
        """See `Segmenter.predict`; best first.

        A score is the probability of an entity times the mean mask probability inside the mask times its stability.
        """
        array = as_image(image)
        size_hw = (array.shape[0], array.shape[1])
        height, width = self.input_size(size_hw)
        resized = Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC)
        pixels = (np.asarray(resized, np.float32) / 255 - self._mean) / self._std
        batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(self.device)
        with autocast(self.device):
            output = self.model(batch)
        entity, masks = output.entity_logits[-1][0], output.mask_logits()[0]
        scores, rles = self._read(entity, masks, (height, width), size_hw)
        order = torch.argsort(scores, descending=True, stable=True)[:MAX_MASKS]
        probability = output.ancestor_logits[0][order][:, order].sigmoid().cpu().numpy()
        rles = [rles[index] for index in order.tolist()]
        forest = MaskForest(
            size_hw=size_hw,
            rles=rles,
            scores=scores[order].cpu().numpy().astype(np.float32),
            ancestor=np.zeros((len(rles), len(rles)), dtype=bool),
            parent=np.full(len(rles), -1, dtype=np.int64),
        )
        filled = np.flatnonzero(forest.areas > 0)
        return _relate(forest.select(filled), probability[np.ix_(filled, filled)])

    def _write(self, folder: Path) -> Path:
        return save_segmenter(folder, self.model, self.provenance, results=self.results)

    def _read(
        self, entity: Tensor, masks: Tensor, input_hw: tuple[int, int], size_hw: tuple[int, int]
    ) -> tuple[Tensor, list[dict]]:
        """Scores (N,) at the size that the model saw, run lengths at the image's, a few masks at a time."""
        scores, rles = [], []
        count = max(1, _PIXELS // max(math.prod(input_hw), math.prod(size_hw)))
        for logits, part in zip(entity.split(count), masks.split(count), strict=True):
            seen = F.interpolate(part[None], input_hw, mode="bilinear", align_corners=False)
            full = F.interpolate(seen, size_hw, mode="bilinear", align_corners=False)[0]
            scores.append(prediction_scores(logits, seen[0]) * stability(seen[0]))
            rles += encode_masks((full > 0).cpu().numpy())
        return torch.cat(scores), rles


def prediction_scores(entity_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Scores (N,) of entity logits (N, 2) and mask logits (N, H, W)."""
    inside = mask_logits > 0
    mean = (mask_logits.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
    return entity_logits.softmax(-1)[:, ENTITY] * mean


def stability(mask_logits: Tensor) -> Tensor:
    """Of masks (N, H, W): the pixels of a probability above 0.6 over those above 0.4 [SAM], one added to both, (N,).

    The first are among the second, so it is their IoU. With one added, the masks of a model that is sure of nothing yet
    still have an order.
    """
    sure, likely = ((mask_logits > threshold).sum((1, 2)) for threshold in (_LOGIT, -_LOGIT))
    return (1 + sure) / (1 + likely)


def _relate(forest: MaskForest, probability: NDArray[np.floating]) -> MaskForest:
    areas = forest.areas
    relation = relations(probability, areas)
    parent = decode_parents(relation, areas, probability)
    return MaskForest(forest.size_hw, forest.rles, forest.scores, relation, parent, forest.attributes)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep transformers from drawing a progress bar over ours for one small file."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def describe(model: EntitySegmenter) -> str:
    """What a model is and predicts, for its card."""
    return (
        f"{model.title} with an ancestor head, in the manner of SOHES (Cao et al., *Self-supervised Open-world "
        "Hierarchical Entity Segmentation*, ICLR 2024). It predicts the entities of an image, their parts and "
        "subparts as class-agnostic masks, each with a score, and which mask is part of which."
    )


def save_segmenter(
    folder: Path,
    model: EntitySegmenter,
    provenance: Provenance,
    *,
    results: Sequence[EvalResult] = (),
    picture: Path | None = None,
) -> Path:
    """Write a segmenter folder (config, safetensors, provenance of the ViT, model card), atomically.

    Args:
        results: what was measured of it.
        picture: one that the card shows, from where it lies.
    """
    folder = Path(folder)
    shown = Path(os.path.relpath(picture, folder)).as_posix() if picture is not None else ""
    with atomic_path(folder) as temporary:
        with _no_bars():
            model.save_pretrained(temporary)
        write_json(temporary / PROVENANCE, provenance.as_json())
        digest = file_digest(temporary / WEIGHTS)
        card = segmenter_card(describe(model), provenance, digest, results=results, picture=shown)
        write_text(temporary / CARD, card)
    return folder


def load_model(folder: Path) -> tuple[EntitySegmenter, Provenance]:
    """The bare model in the folder of an entity segmenter, on the CPU, and where its ViT comes from, its training last.

    Raises:
        WeightsError: not a segmenter folder, one of another kind, or damaged.
    """
    folder = Path(folder)
    if (kind := segmenter_kind(folder)) not in MODELS:
        raise WeightsError(f"{folder}: a segmenter of kind {kind}; this takes {' or '.join(MODELS)} only")
    try:
        with _no_bars():
            loaded: Any = MODELS[kind].from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        provenance = read_provenance(folder / PROVENANCE)
    except SohesError:
        raise
    except Exception as error:  # what a config of unknown origin asks for can fail in any library below
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{folder}: cannot be loaded as a segmenter ({reason})") from error
    model, report = loaded
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:  # transformers would continue with random weights
            example = sorted(str(key) for key in report[problem])[0]
            raise WeightsError(f"{folder}: not a segmenter's weights: {problem.replace('_', ' ')}, e.g. {example}")
    if "steps" not in read_json(folder / PROVENANCE):  # of before there were steps: it named the start weights alone
        provenance = provenance.then(Step(method=SOHES))
    return model, provenance


def load_entity_predictor(folder: Path, device: torch.device) -> EntityPredictor:
    """The entity segmenter in a folder, ready to predict; see `load_segmenter`."""
    model, provenance = load_model(folder)
    model.to(device)  # type: ignore[arg-type]  # transformers wraps nn.Module.to
    return EntityPredictor(model, provenance)


def export_backbone(segmenter: Path, folder: Path) -> Path:
    """Write the ViT inside the segmenter folder `segmenter` to the timm folder `folder`."""
    model, provenance = load_model(segmenter)
    return save_backbone_folder(folder, model.vit, provenance)
