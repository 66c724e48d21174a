"""Segmenter folders on the Hugging Face hub: fetched by name, pushed with a model card (README §6).

Nothing fetched is executed.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from huggingface_hub import HfApi, ModelCardData, snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from sohes.backbones.provenance import PROVENANCE
from sohes.backbones.timm_folder import CONFIG, WEIGHTS
from sohes.errors import WeightsError
from sohes.files import write_text

if TYPE_CHECKING:
    from sohes.segmenters.segmenter import TrainedSegmenter

HUB = "hf-hub:"
CARD = "README.md"
FILES = (CONFIG, WEIGHTS, PROVENANCE)  # of a segmenter folder


def fetch(name: str) -> Path:
    """The segmenter folder "hf-hub:user/name" or "hf-hub:user/name@revision", in the hub's own cache.

    Raises:
        WeightsError: not a name on the hub, not reachable, or not a segmenter.
    """
    repo_id, _, revision = name.removeprefix(HUB).partition("@")
    _check(repo_id)
    try:
        folder = Path(snapshot_download(repo_id, revision=revision or None, allow_patterns=list(FILES)))
    except Exception as error:  # the hub's client raises many kinds
        raise WeightsError(
            f"{name}: could not be fetched from the Hugging Face hub ({_reason(error)}). Check the name, and log in "
            "with `hf auth login` where it is private; without access, copy the folder here and give its path."
        ) from error
    if absent := [file for file in FILES if not (folder / file).is_file()]:
        raise WeightsError(f"{name}: not a segmenter pushed by sohes, it has no {' and no '.join(absent)}")
    return folder


def push(segmenter: TrainedSegmenter, repo_id: str, *, license: str, dry_run: str | Path | None) -> str:
    """See `TrainedSegmenter.push_to_hub`."""
    _check(repo_id)
    card = model_card(repo_id, segmenter, license=license)
    if dry_run is not None:
        return str(_write(segmenter, Path(dry_run), card))
    with tempfile.TemporaryDirectory() as scratch:
        folder = _write(segmenter, Path(scratch) / "segmenter", card)
        try:
            api = HfApi()
            api.create_repo(repo_id, exist_ok=True)
            message = f"segmenter trained by {segmenter.provenance.steps[-1].method}"
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message))
        except Exception as error:  # as above
            raise WeightsError(
                f"{repo_id}: could not be pushed to the Hugging Face hub ({_reason(error)}); log in with "
                "`hf auth login`, and see that the name is yours"
            ) from error


def model_card(repo_id: str, segmenter: TrainedSegmenter, *, license: str) -> str:
    """Content of the card: what the model is, how to use it, where it comes from; nothing that was not measured."""
    provenance = segmenter.provenance
    data = ModelCardData(
        library_name="sohes",
        pipeline_tag="mask-generation",
        license=license,
        tags=["sohes", "class-agnostic-segmentation", "hierarchical-segmentation"],
    )
    steps = yaml.safe_dump(asdict(provenance), sort_keys=False, allow_unicode=True, width=100).strip()
    return f"""---
{data.to_yaml()}
---

# {repo_id.rpartition("/")[2]}

A segmenter around the ViT {provenance.timm_name}, trained by {provenance.steps[-1].method}.

{segmenter.description}

## Use

```python
import sohes

segmenter = sohes.load_segmenter("{HUB}{repo_id}")
forest = segmenter.segment("photo.jpg")
for entity in forest:
    print(entity.index, entity.parent, entity.score, entity.mask.shape)
```

## Where the weights come from

```yaml
{steps}
```

## Licence

Licence of these weights: {license}. They derive from the start weights named above, whose licence holds for them too.
The code is Apache-2.0.

## Metrics

Not given: whoever pushed the weights did not record any here. `sohes evaluate` measures class-agnostic mask recall and
hierarchy scores.
"""


def _write(segmenter: TrainedSegmenter, folder: Path, card: str) -> Path:
    segmenter.save(folder)
    write_text(folder / CARD, card)
    return folder


def _check(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise WeightsError(f"'{repo_id}': not a name on the Hugging Face hub ({error}); write it user/name") from None
    if "/" not in repo_id:
        raise WeightsError(f"'{repo_id}': not a name on the Hugging Face hub; write it user/name")


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
