"""Segments of a segmenter named as wholes and as parts, as a stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from sohes.configuration import Count, settings
from sohes.data.prepare import resolve_ground_truth
from sohes.errors import ConfigError, DataError
from sohes.records import Measurement, StageResult

if TYPE_CHECKING:
    from sohes.data.coco import ImageSet
    from sohes.segmenters.segmenter import Segmenter

# A launcher reads the configuration without loading torch; so what the stage needs is imported inside it.


@settings
class NamingConfig:
    """Whose segments are named, by which CLIP, on what."""

    SOURCE: ClassVar[str] = ""  # the field that names weights

    method: str
    """Row of the table, the method's name."""
    dataset: str = "partimagenet_hierarchy"
    """Name of the data, prepared by `sohes data prepare` where `ground_truth` names no file."""
    ground_truth: str | None = None
    """COCO file whose parts have a super-category."""
    clip: str = "openai/clip-vit-base-patch16"
    """CLIP that names the segments: name on the Hugging Face hub, or a folder with its files [CAST]."""
    read_out: Literal["levels", "masks"] = "levels"
    """What is named: the labels of two levels, or every mask, larger ones first [CAST; masks for SAM]."""
    wholes: str = "level 4"
    """Level of the wholes, for read_out=levels [CAST]."""
    parts: str = "level 3"
    """Level of the parts, the next finer one [CAST]."""
    max_images: Count | None = None
    """First images that are scored; null: all."""

    def truth_file(self) -> Path:
        """The COCO file of the data set; DataError when it is not there."""
        return resolve_ground_truth(self.ground_truth or self.dataset)

    def outside_inputs(self) -> list[Path]:
        """Files whose change makes the stage run again; one that is missing is the stage's to report."""
        try:
            paths = [self.truth_file()]
        except DataError:
            paths = []
        names = [self.clip, getattr(self, self.SOURCE) if self.SOURCE else None]
        sources = [Path(name).expanduser() for name in names if name]
        return [*paths, *(source for source in sources if source.exists())]


@settings
class PartNamingConfig(NamingConfig):
    """Naming of a trained segmenter's segments."""

    SOURCE: ClassVar[str] = "segmenter"

    segmenter: str | None = None
    """Segmenter folder in place of the run's."""


def part_naming(config: PartNamingConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Segment the centre square of each image, let CLIP name the segments, score them.

    Inputs: segmenter, where `config.segmenter` names none. An interrupted stage keeps what was segmented.

    Raises:
        ConfigError: no segmenter.
    """
    from sohes.files import file_digest
    from sohes.segmenters.segmenter import load_segmenter

    folder = Path(config.segmenter).expanduser() if config.segmenter else inputs.get("segmenter")
    if folder is None:
        raise ConfigError("no segmenter: give the setting segmenter=FOLDER, or the input 'segmenter'")
    return name_segments_of(config, lambda _: load_segmenter(folder), file_digest(folder / "model.safetensors"), out)


def name_segments_of(
    config: NamingConfig, load: Callable[[ImageSet], Segmenter], identity: str, out: Path
) -> StageResult:
    """The stage with any segmenter.

    Args:
        config: of the stage.
        load: makes the segmenter, given the images: after these and CLIP, for its weights may take long.
        identity: tells whether predictions in `out` are its own.
        out: folder of the stage.
    """
    from sohes.data.coco import read_coco
    from sohes.data.image_root import with_image_root
    from sohes.evaluation.clip import ClipNamer
    from sohes.evaluation.inputs import first_images
    from sohes.evaluation.part_naming import OnSquare, Vocabulary, evaluate_part_naming, level_segments, mask_segments
    from sohes.evaluation.predictions import Predictions, keep_predictions
    from sohes.evaluation.protocols import get_protocol

    truth = with_image_root(read_coco(config.truth_file()))
    wanted = first_images(truth, config.max_images)
    namer = ClipNamer(config.clip, Vocabulary.of(truth).names)
    side_px = namer.side_px
    store, failed = keep_predictions(
        OnSquare(load(wanted), side_px),
        wanted,
        out / "predictions",
        "segment squares",
        identity=identity,
        inference=f"centre square of {side_px} px",
    )
    scores = evaluate_part_naming(
        wanted,
        Predictions(store.image_ids, store.forest),
        namer,
        mask_segments if config.read_out == "masks" else level_segments(config.wholes, config.parts),
        side_px=side_px,
    )
    rows = [
        Measurement(
            method=config.method,
            backbone=store.header["backbone"],
            init=store.header["init"],
            dataset=config.dataset,
            protocol=protocol,
            metric=metric,
            value=value,
            unit=get_protocol(protocol).unit,
            n_images=scores.n_images,
            of_images=len(truth) if len(wanted) < len(truth) else None,
            supervision=store.header["supervision"],
        )
        for metric, (value, protocol) in scores.metrics().items()
    ]
    notes = [f"segments are named by CLIP ({Path(config.clip).name}), which was trained on captions"]
    notes += [f"all background, for it cannot be used: {file}: {reason}" for file, reason in failed.items()]
    return StageResult(measurements=rows, notes=[*notes, *truth.problems.lines()])
