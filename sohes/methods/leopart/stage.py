"""Leopart from files to files: backbone folder and images in, backbone folder out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sohes.methods.leopart.settings import LeopartConfig
from sohes.records import StageResult

if TYPE_CHECKING:
    from sohes.data.coco import ImageItem

# A launcher reads the configuration without loading torch; so what the stage needs is imported inside it.

METHOD = "Leopart"
HEAD = "head.safetensors"
_FEW_PROTOTYPES, _FEW_CELLS = 0.1, 0.05  # shares below which the notes warn


def leopart(config: LeopartConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Train a backbone on images without labels.

    Inputs: backbone, images. Writes `backbone/` (the student, a timm folder), `head.safetensors` (its projection head
    and prototypes of unit length) and curves.
    """
    import torch
    from mmengine.dist import is_main_process
    from safetensors.torch import save_file

    from sohes.backbones.provenance import NONE, Step
    from sohes.backbones.timm_folder import load_backbone_folder, save_backbone_folder
    from sohes.data.coco import read_coco
    from sohes.data.sources import data_name
    from sohes.engine.history import CURVES, HISTORY, data_share
    from sohes.engine.hooks import BeforeStepHook, WeightDecayHook
    from sohes.engine.optimizer import parameter_groups
    from sohes.engine.runner import join_processes, train
    from sohes.files import atomic_path
    from sohes.methods.leopart.module import LeopartModule
    from sohes.methods.leopart.views import CropSamples, collate
    from sohes.records import config_hash

    join_processes()
    start = load_backbone_folder(inputs["backbone"])
    patch_px = int(start.vit.patch_embed.patch_size[0])
    sides = config.sides(patch_px)
    file, data = inputs["images"] / "train.json", data_name(inputs["images"])
    listed = read_coco(file).items
    items = usable_images(listed, patch_px, file)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        module = LeopartModule(start.vit, config, iterations=config.iterations, bf16=config.bf16)
    student = module.student
    train(
        module,
        parameter_groups(
            student,
            lr=config.lr,
            weight_decay=config.weight_decay,
            factors=dict.fromkeys(student.vit.parameters(), config.backbone_lr_factor),
            decay_embeddings=True,
        ),
        CropSamples(items, config, sides=sides, seed=config.seed),
        out=out,
        description="leopart",
        data=data,
        optim=config,
        settings=config,
        seed=config.seed,
        collate=collate,
        hooks=[BeforeStepHook(), WeightDecayHook(config.weight_decay, config.weight_decay_end)],
        identity={"config": config_hash(config), "backbone": start.provenance.sha256},
    )
    notes = [
        f"Leopart: {config.iterations} steps of {config.batch_size} images, of {len(items)}; data loading took "
        f"{data_share(out / HISTORY):.1f} % of the time",
        f"crops of {sides[0]} and {sides[1]} px, {sides[0] // patch_px} and {sides[1] // patch_px} patches of "
        f"{patch_px} px along a side",
        *collapse_notes(out / HISTORY),
    ]
    if len(items) < len(listed):
        notes.append(f"{len(listed) - len(items)} image(s) with a side below {patch_px} px were left out")
    if is_main_process():
        step = Step(
            method=METHOD,
            data=data,
            images=len(items),
            supervision=NONE,
        )
        student.cpu().normalise_prototypes()
        save_backbone_folder(out / "backbone", student.vit, start.provenance.then(step))
        with atomic_path(out / HEAD) as temporary:
            heads = {name: value for name, value in student.state_dict().items() if not name.startswith("vit.")}
            save_file(heads, temporary)
    return StageResult(notes=notes, artefacts=[out / CURVES])


def usable_images(listed: list[ImageItem], patch_px: int, file: Path) -> list[ImageItem]:
    """The images that are no smaller than a patch.

    Raises:
        DataError: there are none.
    """
    from sohes.errors import DataError

    items = [item for item in listed if min(item.size_hw) >= patch_px]
    if not items:
        what = f"{len(listed)} images, all with a side below the patch of {patch_px} px" if listed else "no image"
        raise DataError(f"{file}: holds {what}; there is nothing to learn from, give other images")
    return items


def collapse_notes(history: Path) -> list[str]:
    """Means over the last tenth of the steps that tell whether prototypes or foreground collapsed (README §8)."""
    import pandas as pd

    rows = pd.read_csv(history, on_bad_lines="skip")
    tenth = max(1, len(rows) // 10)
    last = rows.tail(tenth).mean()
    usage, cells = float(last["prototype_usage"]), float(last["aligned_cells"])
    notes = [
        f"over the last {tenth} steps: loss {last['loss']:.3f}, {100 * usage:.0f} % of the prototypes in use, "
        f"{100 * cells:.0f} % of the aligned cells count"
    ]
    if usage < _FEW_PROTOTYPES:
        notes.append("WARNING: nearly all patches go to few prototypes; lower lr, or raise queue or batch_size")
    if cells < _FEW_CELLS:
        notes.append("WARNING: hardly any aligned cell is all foreground; raise foreground_mass, or set mask=all")
    return notes
