"""Model cards: the README.md beside weights, as the Hugging Face hub shows it (README §6)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import CardData, EvalResult, ModelCard, ModelCardData
from timm.models import is_model_pretrained
from yaml import YAMLError

from sohes.backbones.provenance import NONE, RANDOM, SOHES, UNKNOWN, Provenance, Step
from sohes.files import read_text, write_text
from sohes.records import Measurement, describe_data

CARD = "README.md"
PAPER_IMAGES = {SOHES: 220_000, "Leopart": 118_287}  # 2 % of SA-1B; COCO train2017
_NUMBERS = re.compile(r"(?<=\n## Numbers\n\n).*?(?=\n\n## )", re.DOTALL)
_NOT_SHOWN = re.compile(r"_recall_iou\d+$|_ar_(1|[25]0{0,2})$|masks_depth_\d$|_(low|high)$")
_NO_NUMBERS = "None: nothing was measured where these weights were saved."


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the card of weights in a folder says; nothing that was not measured.

    Attributes:
        name: heading.
        description: what it is.
        use: Python that loads and uses it from the current folder.
        provenance: of the weights.
        sha256: of `model.safetensors`.
        library, task, tags: as the hub has them.
        license: of the weights; "" for that of the start weights, where it is known.
        results: what was measured, see `add_numbers`.
        picture: a file to show, relative to the folder; "" for none.
    """

    name: str
    description: str
    use: str
    provenance: Provenance
    sha256: str
    library: str
    task: str
    tags: Sequence[str]
    license: str = ""
    results: Sequence[EvalResult] = ()
    picture: str = ""

    def text(self) -> str:
        """The file's content: the same for the same facts, wherever the folder is."""
        start = start_licence(self.provenance)
        of_start = f"{start}, as timm says" if start else "not known here"
        data = ModelCardData(
            library_name=self.library,
            pipeline_tag=self.task,
            license=self.license or start or UNKNOWN,
            tags=list(self.tags),
        )
        picture = f"![What it sees during training]({self.picture})\n\n" if self.picture else ""
        text = f"""
# {self.name}

{self.description}

{picture}## Use

```python
{self.use}
```

## Where the weights come from

{_steps(self.provenance.steps)}

What people gave to all of this: {self.provenance.supervision}. SHA-256 of `model.safetensors`: `{self.sha256}`.

## Numbers

{_NO_NUMBERS}

## Limitations

{_limitations(self.provenance)}

## Licence

Licence of these weights: {data.license}. They derive from start weights whose licence holds for them too: {of_start}.
The code is Apache-2.0.
"""
        return _with_numbers(data, text, self.name, self.results)


def start_licence(provenance: Provenance) -> str:
    """Licence of the start weights, where they are of timm's hub and timm says it; else ""."""
    name = provenance.steps[0].method.removeprefix("timm ")
    known = timm.get_pretrained_cfg(name) if "." in name and is_model_pretrained(name) else None
    return str(known.license or "") if known is not None else ""


def add_numbers(folder: Path, rows: Sequence[Measurement]) -> None:
    """Put what was measured of the weights in a folder into its card, in place of the numbers there.

    A folder without a card, or with one that somebody else wrote, stays as it is.
    """
    card = _read(folder)
    if card is None or not rows:
        return
    heading = re.search(r"^# (.*)", card.text, flags=re.MULTILINE)
    name, task = heading[1] if heading else Path(folder).name, str(card.data.get("pipeline_tag", ""))
    before = str(card.content)
    new = _with_numbers(card.data, card.text, name, _results(rows, task))
    if new != before:  # or who reads the folder would take it for a new one
        write_text(Path(folder) / CARD, new)


def read_numbers(folder: Path) -> list[EvalResult]:
    """What the card of a folder says was measured; empty without a card of ours."""
    card = _read(folder)
    return list(getattr(card.data, "eval_results", None) or []) if card is not None else []


def _read(folder: Path) -> ModelCard | None:
    """The card in a folder, if it is one of ours that the hub can still read."""
    path = Path(folder) / CARD
    text = read_text(path) if path.exists() else ""
    try:
        return ModelCard(text) if _NUMBERS.search(text) else None
    except (ValueError, YAMLError):  # edited by hand
        return None


def _results(rows: Sequence[Measurement], task: str) -> list[EvalResult]:
    """Each metric with the ends of its interval; without the points of curves, which a card has no room for."""
    values = {(row.dataset, row.split, row.metric): row.value for row in rows}
    found = []
    for row in rows:
        if not _NOT_SHOWN.search(row.metric):
            ends = [values.get((row.dataset, row.split, row.metric + end)) for end in ("_low", "_high")]
            found.append(_result(row, task, {} if None in ends else {"interval_95": ends}))
    return found


def _result(row: Measurement, task: str, interval: dict[str, Any]) -> EvalResult:
    args = {"protocol": row.protocol, "images": row.n_images, "unit": row.unit, "method": row.method, **interval}
    return EvalResult(
        task_type=task,
        dataset_type=row.dataset,
        dataset_name=describe_data(row.dataset, row.split, row.n_images, row.of_images),
        metric_type=row.metric,
        metric_value=row.value,
        metric_name=row.metric,
        metric_args=args | ({"sd": row.sd, "seeds": row.n_seeds} if row.sd is not None else {}),
    )


def _with_numbers(data: CardData, text: str, name: str, results: Sequence[EvalResult]) -> str:
    if results:
        metrics = list(dict.fromkeys(result.metric_type for result in results))
        data = ModelCardData(**{**data.__dict__, "model_name": name, "eval_results": list(results), "metrics": metrics})
    shown = (
        _table(("data", "metric", "value", "images", "protocol"), [_number(result) for result in results])
        if results
        else _NO_NUMBERS
    )
    return f"---\n{data.to_yaml()}\n---\n" + _NUMBERS.sub(lambda _: shown, text)


def _number(result: EvalResult) -> tuple[str, ...]:
    args = result.metric_args or {}
    spread = f" ± {args['sd']:.1f} ({args['seeds']} seeds)" if "sd" in args else ""
    low, high = args.get("interval_95", (None, None))
    interval = "" if low is None else f" (95 %: {low:.1f} to {high:.1f})"
    value = f"{result.metric_value:.1f}{spread} {args['unit']}{interval}"
    return result.dataset_name, result.metric_type, value, f"{args['images']:,}", args["protocol"]


def _steps(steps: Sequence[Step]) -> str:
    rows = [
        (
            f"{place}. {step.method}",
            step.data,
            UNKNOWN if step.images is None else f"{step.images:,}",
            step.supervision,
            f"`{step.sha256[:12]}`" if step.sha256 else "",
            step.note,
        )
        for place, step in enumerate(steps, start=1)
    ]
    return _table(("training", "data", "images", "supervision", "sha256", "note"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _limitations(provenance: Provenance) -> str:
    lines = [
        f"{step.method} was trained on {step.images:,} images, its paper on {PAPER_IMAGES[step.method]:,}: this shows "
        "how the method works, not the result of the paper."
        for step in provenance.steps
        if step.images is not None and step.images < PAPER_IMAGES.get(step.method, 0)
    ]
    if provenance.steps[-1].method == RANDOM.method:
        lines.append("Untrained: the weights are random.")
    if provenance.supervision != NONE:
        lines.append(f"Not free of supervision by people, as far as is known: {provenance.supervision}.")
    lines.append("Nobody has looked into the biases of the images that it saw, nor of what it makes of others.")
    return "\n".join(f"- {line}" for line in lines)
