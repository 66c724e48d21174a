"""The stage that brings the start weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from sohes.configuration import settings
from sohes.files import read_json
from sohes.records import StageResult

if TYPE_CHECKING:
    from sohes.backbones.provenance import Provenance

# A launcher reads the configuration without loading torch; so what the stage needs is imported inside it.

_WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


@settings
class WeightsConfig:
    """Starting weights: see `sohes.backbones.weights.resolve_weights`."""

    source: str = "vit_base_patch16_224.dino"
    """Of the backbone that is trained: a timm name, a weights file, a timm folder, or random:NAME [paper]."""
    clustering_source: str | None = None
    """Of the frozen backbone of phase 1, if it is another one."""
    architecture: str | None = None
    """timm name of a weights file, with tag, where it cannot be told."""
    clustering_architecture: str | None = None
    """The same of the file of clustering_source."""

    def outside_inputs(self) -> list[Path]:
        """Files whose change makes the stage run again; one that is named as a file is to be there."""
        paths = [Path(source).expanduser() for source in (self.source, self.clustering_source) if source]
        return [path for path in paths if path.exists() or path.suffix in _WEIGHT_SUFFIXES]

    @property
    def patch_px(self) -> int | None:
        """Patch of the ViT that is trained, None where only reading all of the weights tells, and of a ResNet."""
        path = Path(self.source).expanduser()
        name = self.architecture or self.source
        if path.is_file():
            if path.suffix == ".safetensors" and (patch := _patch_in_header(path)):
                return patch
            name = self.architecture or ""
        elif path.is_dir() and (path / "config.json").exists():
            name = str(read_json(path / "config.json").get("architecture", ""))
        match = re.search(r"(?:patch|vit[tsblg])(\d+)", name)
        return int(match[1]) if match else None


def _patch_in_header(path: Path) -> int | None:
    """Side of the patches that the header of a safetensors file tells."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), 2**24)))
        shapes = [entry["shape"] for key, entry in header.items() if key.endswith("patch_embed.proj.weight")]
        return int(shapes[0][-1]) if shapes else None
    except (OSError, ValueError, AttributeError, LookupError, TypeError):
        return None  # what is wrong with it is the stage's to say


def weights(config: WeightsConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Bring the starting weights into timm folders: `backbone/`, and `clustering/` for phase 1."""
    from sohes.backbones.timm_folder import save_backbone_folder
    from sohes.backbones.weights import resolve_weights

    model, provenance = resolve_weights(config.source, architecture=config.architecture)
    save_backbone_folder(out / "backbone", model, provenance)
    notes = ["start backbone: " + _origin(provenance)]
    clustering = out / "clustering"
    if config.clustering_source:
        model, provenance = resolve_weights(config.clustering_source, architecture=config.clustering_architecture)
        save_backbone_folder(clustering, model, provenance)
        notes.append("clustering backbone: " + _origin(provenance))
    elif not clustering.is_symlink():
        clustering.symlink_to("backbone")
    return StageResult(notes=notes)


def _origin(provenance: Provenance) -> str:
    words = f"{provenance.timm_name}, {provenance.label}; supervision: {provenance.supervision}"
    return "; ".join(filter(None, (words, provenance.steps[0].note)))
