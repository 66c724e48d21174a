"""What an evaluation leaves behind: a table for people, an object for programs, and a folder with everything."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from sohes.data.coco import ImageSet
from sohes.data.problems import Problems
from sohes.evaluation.bootstrap import SEED
from sohes.evaluation.evaluate import Evaluation
from sohes.evaluation.image_scores import image_scores, write_scores
from sohes.evaluation.inputs import left_out
from sohes.evaluation.partitions import MASK_COUNTS
from sohes.evaluation.predictions import Predictions
from sohes.evaluation.protocols import get_protocol
from sohes.files import write_text
from sohes.records import Measurement, Record, commit, content_hash, describe_data, hardware, versions, write_record

SCALE = "evaluate"  # marks rows from here in tables: what was evaluated need not be at paper scale


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """One evaluation with what is needed to trace it.

    Attributes:
        evaluation: the numbers.
        truth: the ground truth that was scored on.
        predictions: what was scored.
        method: name of what made the predictions.
        dataset: name of the ground truth.
        of_images: how many images it has, where only the first were scored.
        problems: what was skipped.
        config: the arguments, JSON-able.
        started: ISO 8601, UTC.
    """

    evaluation: Evaluation
    truth: ImageSet
    predictions: Predictions
    method: str
    dataset: str
    of_images: int | None
    problems: Problems
    config: Mapping[str, Any]
    started: datetime

    def as_json(self) -> dict[str, Any]:
        """Every metric by name, in its protocol's unit, None where nothing decides it; counts, names, protocols."""
        masks, metrics = self.evaluation.masks, self.evaluation.metrics()
        return {
            "method": self.method,
            "dataset": self.dataset,
            "protocol": metrics["mask_ar_1000"][1],
            **{metric: None if math.isnan(value) else value for metric, (value, _) in metrics.items()},
            "n_images": masks.n_images,
            "of_images": self.of_images,
            "n_images_without_predictions": len({item.id for item in self.truth.items} - set(self.predictions)),
            "n_objects": masks.n_objects,
            "n_predictions": masks.n_predictions,
            "protocols": {metric: protocol for metric, (_, protocol) in metrics.items()},
            "skipped": dict(Counter(self.truth.problems.counts) + Counter(self.problems.counts)),
        }

    def left_out(self) -> list[str]:
        """See `inputs.left_out`."""
        return left_out(self.truth, set(self.predictions), self.problems)

    def table(self) -> Table:
        """One line per metric with its interval and protocol; below it what was left out."""
        masks, metrics = self.evaluation.masks, self.evaluation.metrics()
        counts = f"{masks.n_images:,} images, {masks.n_objects:,} objects, {masks.n_predictions:,} predictions"
        table = Table(
            title=f"{self._title()}\n{counts}",
            title_justify="left",
            caption="\n".join(map(escape, self.left_out())) or None,
            caption_justify="left",
        )
        table.add_column("metric")
        table.add_column("%", justify="right")
        table.add_column("95 % interval", justify="right")
        table.add_column("protocol")
        for metric, (value, protocol) in metrics.items():
            if metric.endswith(("_low", "_high")):
                continue
            low, high = (metrics.get(f"{metric}_{end}", (math.nan, ""))[0] for end in ("low", "high"))
            interval = "" if math.isnan(low) else f"{low:.2f} to {high:.2f}"
            unit = get_protocol(protocol).unit
            number = "none" if math.isnan(value) else f"{value:.2f}{'' if unit == '%' else f' {unit}'}"
            table.add_row(metric, number, interval, protocol)
        return table

    def _title(self) -> str:
        data = describe_data(self.dataset, "", self.evaluation.masks.n_images, self.of_images)
        return f"{self.method} on {data}"

    def protocols(self) -> str:
        """Each protocol of the table in words."""
        used = dict.fromkeys(protocol for _, protocol in self.evaluation.metrics().values())
        texts = []
        for protocol in map(get_protocol, used):
            words = {name: text for name, text in vars(protocol).items() if name not in ("id", "source")}
            texts.append("\n".join([protocol.id, *(f"  {name}: {text}" for name, text in words.items())]))
        return "\n".join(texts)

    def write(self, out: Path) -> list[Path]:
        """Write metrics, curve, images, pictures and the record that `results` reads, below `out`; the paths."""
        from sohes.evaluation.pictures import draw_extremes, plot_recall

        masks = self.evaluation.masks
        measurements = self.evaluation.measurements(
            self.predictions, method=self.method, dataset=self.dataset, of_images=self.of_images
        )
        files: dict[str, list[Iterable[Any]]] = {
            "metrics.csv": [[field.name for field in fields(Measurement)], *(astuple(row) for row in measurements)],
            "recall_by_count.csv": [("predictions", "mask_ar"), *_percent(enumerate(masks.recall_at_count, start=1))],
        }
        if regions := self.evaluation.regions:
            files["regions_by_count.csv"] = [
                ("masks", "covering", *(("pri", "vi_bits") if regions.annotators else ())),
                *((n, *row) for n, row in zip(MASK_COUNTS, regions.level_rows(), strict=True)),
            ]
        written = [_write_csv(out / name, rows) for name, rows in files.items()]
        scores = image_scores(masks, self.truth, self.predictions, method=self.method, dataset=self.dataset)
        written += write_scores(out, [scores])
        notes = self.left_out()
        if masks.n_objects:
            written.append(plot_recall(masks, self._title(), out / "recall.png"))
            pictures, unread = draw_extremes(self.truth, self.predictions, masks, out)
            written += pictures
            notes += unread
        record = Record(
            run=out.absolute().parent.name,
            stage=out.absolute().name,
            recipe="sohes evaluate",
            scale=SCALE,
            seed=SEED,
            config=self.config,
            config_hash=content_hash(self.config),
            commit=commit(),
            versions=versions(),
            hardware=hardware(),
            started=self.started.isoformat(timespec="seconds"),
            seconds=round((datetime.now(UTC) - self.started).total_seconds(), 3),
            measurements=measurements,
            notes=notes,
            artefacts=[path.name for path in written],
        )
        return [*written, write_record(out, record)]


def _percent(recall: Iterable[tuple[int, float]]) -> list[tuple[int, str]]:
    return [(key, f"{100 * value:.4f}") for key, value in recall]


def _write_csv(path: Path, rows: Iterable[Iterable[Any]]) -> Path:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())
    return path
