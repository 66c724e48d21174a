"""Phase 2 from files to files: backbone folder and label store in, segmenter folder out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from sohes.configuration import Count, settings
from sohes.instruct.settings import Neck, TrainingSettings
from sohes.records import StageResult

if TYPE_CHECKING:
    from sohes.backbones.provenance import Provenance
    from sohes.segmenters.model import EntitySegmenter

# what a reader of "head against rule" should know
ANCESTOR_NOTES = {
    True: "ancestor head: starts as the coverage rule, so that both are close says little; ancestor_rule=false starts "
    "without it",
    False: "ancestor head: from the queries alone, without the coverage rule",
}


@settings
class InstructConfig(TrainingSettings):
    """Phase 2 at paper scale (README)."""

    ADDED: ClassVar[dict[str, Any]] = TrainingSettings.ADDED | {
        "segmenter": "mask2former",
        "drop_path_rate": 0.0,
        "ancestor_rule": True,
        "query_start": "learnt",
        "start": None,
    }
    ONLY_WITH: ClassVar[dict[str, tuple[str, Any]]] = dict.fromkeys(
        ("neck", "hidden_dim", "encoder_layers", "decoder_layers"), ("segmenter", "mask2former")
    )

    start: str | None = None
    """Segmenter folder whose weights, its ViT's among them, the training begins with; null: a new one around the
    backbone [ours]."""
    segmenter: Literal["mask2former", "eomt"] = "mask2former"
    """Architecture; eomt makes masks from the tokens of the ViT alone, so it is lighter [EoMT]."""
    query_start: Literal["learnt", "patches"] = "learnt"
    """How EoMT's queries start; patches: two at every second patch of the image, each with a mask before any training;
    `queries` has no effect then [ours]."""
    neck: Neck = "adapter"
    """What makes a feature pyramid around Mask2Former's ViT; pyramid is the light one [ours]."""
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth of the ViT's last block, linear from 0 at its first; ViT-Adapter has 0.3 for ViT-B [ours]."""
    queries: Count = 1000
    """Masks that the segmenter predicts per image [ours]."""
    hidden_dim: Annotated[int, Field(ge=32, multiple_of=32)] = 256
    """Width of Mask2Former's pixel decoder and queries [Mask2Former]."""
    encoder_layers: Count = 6
    """Layers of Mask2Former's pixel decoder [Mask2Former]."""
    decoder_layers: Count = 9
    """Layers of Mask2Former's transformer decoder [Mask2Former]."""
    ancestor_rule: bool = True
    """The ancestor head starts as the coverage rule of the predicted masks; false: it sees queries alone [ours]."""
    inference_short_px: Count = 1024
    """Short side of an image when it is segmented, px [UnSAM]."""
    inference_long_px: Count = 2048
    """Long side of an image when it is segmented, px, at most [UnSAM]."""

    def outside_inputs(self) -> list[Path]:
        """Files whose change makes the stage run again."""
        return [Path(self.start)] if self.start else []

    @model_validator(mode="after")
    def _queries_start_in_a_vit(self) -> Self:
        if self.query_start == "patches" and self.segmenter != "eomt":
            raise ValueError(f"query_start=patches is for segmenter=eomt, not {self.segmenter}")
        return self

    @model_validator(mode="after")
    def _sides_rise(self) -> Self:
        if self.inference_short_px > self.inference_long_px:
            raise ValueError(
                f"inference_short_px={self.inference_short_px} is above inference_long_px={self.inference_long_px}"
            )
        return self


def instruct(config: InstructConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Train a segmenter on the pseudo-labels.

    Inputs: backbone, images, labels, and optionally `watch`, the labels of held-out images. Writes `segmenter/`,
    curves, and with `watch` pictures and the segmenter folder `best/`.
    """
    # imported here, so that a launcher can read the configuration without loading torch
    from mmengine.dist import is_main_process

    from sohes.backbones.provenance import SOHES, UNKNOWN, Step
    from sohes.backbones.timm_folder import WEIGHTS, load_backbone_folder
    from sohes.data.label_store import LabelStore
    from sohes.data.sources import data_name
    from sohes.files import file_digest
    from sohes.instruct.module import InstructModule
    from sohes.instruct.training import train_on_labels
    from sohes.segmenters.entity import save_segmenter
    from sohes.segmenters.eomt import EomtSegmenter
    from sohes.segmenters.mask_annealing import MaskAnnealing

    start = load_backbone_folder(inputs["backbone"])
    labels = LabelStore(inputs["labels"])
    segmenter = _build(config, start.timm_config)
    segmenter.vit.load_state_dict(start.vit.state_dict())
    before, identity = start.provenance, {"backbone": start.provenance.sha256}
    if config.start is not None:
        before = _take_weights(segmenter, Path(config.start))
        identity["start"] = file_digest(Path(config.start) / WEIGHTS)
    provenance = before.then(
        Step(
            method=SOHES,
            data=data_name(inputs["images"]),
            images=len(labels),
            supervision=labels.header.get("supervision", UNKNOWN),
            note="phase 2",
        )
    )
    hooks = []
    if isinstance(segmenter, EomtSegmenter) and config.query_start == "learnt":
        hooks.append(MaskAnnealing(segmenter, config.seed))
    trained = train_on_labels(
        InstructModule(segmenter, config, bf16=config.bf16),
        config,
        inputs,
        out,
        trained=segmenter,
        watched=segmenter,
        provenance=provenance,
        name="instruct",
        seed=config.seed,
        hooks=hooks,
        identity=identity,
    )
    if is_main_process():
        save_segmenter(out / "segmenter", segmenter.cpu(), provenance, picture=trained.picture)
    return StageResult(
        notes=[f"phase 2: {trained.notes[0]}", *trained.notes[1:], ANCESTOR_NOTES[config.ancestor_rule]],
        artefacts=trained.artefacts,
        cost=trained.cost,
    )


def _take_weights(segmenter: EntitySegmenter, folder: Path) -> Provenance:
    """Load the weights of the segmenter in a folder; their provenance.

    Raises:
        WeightsError: no segmenter, or one of another architecture or size.
    """
    from sohes.errors import WeightsError
    from sohes.segmenters.entity import load_model

    model, provenance = load_model(folder)
    try:
        segmenter.load_state_dict(model.state_dict())
    except RuntimeError:
        raise WeightsError(
            f"start={folder}: not a segmenter of these settings; give the segmenter, query_start, sizes and backbone "
            f"that it was made with, see {folder / 'config.json'}"
        ) from None
    return provenance


def _build(config: InstructConfig, timm_config: dict[str, Any]) -> EntitySegmenter:
    from sohes.segmenters.eomt import build_eomt
    from sohes.segmenters.mask2former import build_mask2former

    shared: dict[str, Any] = {
        "seed": config.seed,
        "drop_path_rate": config.drop_path_rate,
        "num_queries": config.queries,
        "ancestor_rule": config.ancestor_rule,
        "inference_short_px": config.inference_short_px,
        "inference_long_px": config.inference_long_px,
    }
    if config.segmenter == "eomt":
        return build_eomt(timm_config, query_start=config.query_start, **shared)
    return build_mask2former(
        timm_config,
        **shared,
        neck=config.neck,
        pyramid_dim=config.hidden_dim,
        feature_size=config.hidden_dim,
        mask_feature_size=config.hidden_dim,
        hidden_dim=config.hidden_dim,
        encoder_feedforward_dim=4 * config.hidden_dim,
        dim_feedforward=8 * config.hidden_dim,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers + 1,  # transformers counts the prediction from the learned queries
    )
