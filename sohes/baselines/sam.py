"""SAM's automatic mask generator (Kirillov et al., Segment Anything, ICCV 2023), as transformers carries it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import SamImageProcessor, SamModel
from transformers.pipelines.mask_generation import MaskGenerationPipeline

from sohes.backbones.precision import default_device
from sohes.baselines.regions import MAX_MASKS
from sohes.baselines.settings import SamSettings
from sohes.data.images import ImageLike, as_image
from sohes.errors import WeightsError
from sohes.masks import MaskForest
from sohes.rle import compressed
from sohes.segmenters.segmenter import Segmenter

_BACKBONES = {768: "SAM ViT-B", 1024: "SAM ViT-L", 1280: "SAM ViT-H"}  # by width


class Sam(Segmenter):
    """Everything that SAM finds from a grid of points, ranked by the IoU that it predicts for each mask.

    Raises:
        WeightsError: the weights are not there, or not SAM's; the message says how to fetch them.
    """

    supervision = "masks"

    def __init__(self, settings: SamSettings | None = None) -> None:
        self.settings = settings or SamSettings()
        sam, processor = load_sam(self.settings.weights)
        self._pipeline = MaskGenerationPipeline(model=sam, image_processor=processor, device=default_device())
        width = sam.vision_encoder.config.hidden_size
        self.backbone = _BACKBONES.get(width, f"SAM ViT of width {width}")
        self.init = f"SAM weights {Path(self.settings.weights).name}"

    def predict(self, image: ImageLike) -> MaskForest:
        """See `Segmenter.predict`."""
        settings, array = self.settings, as_image(image)
        found: dict[str, Any] = self._pipeline(
            Image.fromarray(array),
            points_per_crop=settings.points_per_side,
            points_per_batch=settings.points_per_batch,
            pred_iou_thresh=settings.pred_iou_thresh,
            stability_score_thresh=settings.stability_score_thresh,
            crops_nms_thresh=settings.box_nms_iou,
            output_rle_mask=True,
        )
        scores = found["scores"].float().cpu().numpy()[:MAX_MASKS]  # descending, as box NMS leaves them
        size_hw = (array.shape[0], array.shape[1])
        rles = [compressed(rle, size_hw) for rle in found["rle_mask"][:MAX_MASKS]]
        return MaskForest.from_rles(rles, size_hw, scores=scores.astype(np.float32))


def load_sam(weights: str) -> tuple[SamModel, SamImageProcessor]:
    """SAM and its image processor from a folder or the Hugging Face hub; safetensors only.

    Raises:
        WeightsError: missing, not reachable, or not SAM's.
    """
    source = str(Path(weights).expanduser()) if Path(weights).expanduser().is_dir() else weights
    try:
        loaded: Any = SamModel.from_pretrained(source, use_safetensors=True, output_loading_info=True)
        processor = SamImageProcessor.from_pretrained(source)
    except Exception as error:  # the hub's client raises many kinds
        raise WeightsError(
            f"{weights}: SAM cannot be loaded from there ({str(error).splitlines()[0]}). On a machine with access run "
            "`hf download facebook/sam-vit-base config.json preprocessor_config.json model.safetensors --local-dir "
            "DIR` (or sam-vit-large, sam-vit-huge), and give the folder as this model's weights (weights: DIR)"
        ) from error
    model, report = loaded
    for problem in ("missing_keys", "mismatched_keys"):
        if report[problem]:  # transformers would continue with random weights
            example = sorted(str(key) for key in report[problem])[0]
            raise WeightsError(f"{weights}: not SAM's weights: {problem.replace('_', ' ')}, e.g. {example}")
    return model.eval(), processor
