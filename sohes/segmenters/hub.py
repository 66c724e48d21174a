"""Segmenter folders on the Hugging Face hub: fetched by name, pushed with a model card (README §6).

Nothing fetched is executed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from sohes.backbones.card import CARD
from sohes.backbones.provenance import PROVENANCE
from sohes.backbones.timm_folder import CONFIG, WEIGHTS
from sohes.errors import WeightsError
from sohes.files import file_digest, write_text
from sohes.segmenters.card import segmenter_card

if TYPE_CHECKING:
    from sohes.segmenters.segmenter import TrainedSegmenter

HUB = "hf-hub:"
FILES = (CONFIG, WEIGHTS, PROVENANCE)  # of a segmenter folder, beside its card


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
    if dry_run is not None:
        return str(_write(segmenter, Path(dry_run), repo_id, license))
    with tempfile.TemporaryDirectory() as scratch:
        folder = _write(segmenter, Path(scratch) / "segmenter", repo_id, license)
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


def _write(segmenter: TrainedSegmenter, folder: Path, repo_id: str, license: str) -> Path:
    segmenter.save(folder)
    card = segmenter_card(
        segmenter.description,
        segmenter.provenance,
        file_digest(folder / WEIGHTS),
        source=HUB + repo_id,
        name=repo_id.rpartition("/")[2],
        license=license,
        results=segmenter.results,
    )
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
