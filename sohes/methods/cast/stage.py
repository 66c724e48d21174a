"""CAST's training from files to files: backbone folder and images in, backbone folder out."""

from __future__ import annotations

from pathlib import Path

from sohes.methods.cast.settings import CastConfig
from sohes.records import StageResult

# A launcher reads the configuration without loading torch; so what the stage needs is imported inside it.

CLASSES = "classes.json"


def cast(config: CastConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Train a backbone, on images without labels by MoCo-v3 or on the folders that they lie in.

    Inputs: backbone, images. Writes `backbone/` (a timm folder), `head.safetensors` (projector and predictor) and
    curves; of classification also `average/` (the moving average, a timm folder) and `classes.json`, and the head is
    that of the classes.

    Raises:
        ConfigError: settings that do not fit the backbone.
        DataError: no image, or to classify no two folders of them.
    """
    import torch
    from mmengine.dist import is_main_process
    from safetensors.torch import save_file
    from timm.layers import convert_sync_batchnorm

    from sohes.backbones.precision import default_device
    from sohes.backbones.projector import HEAD
    from sohes.backbones.provenance import Step
    from sohes.backbones.timm_folder import load_backbone_folder, save_backbone_folder
    from sohes.data.coco import read_coco
    from sohes.data.sources import data_name
    from sohes.engine.history import CURVES, HISTORY, data_share
    from sohes.engine.runner import join_processes, train
    from sohes.errors import DataError
    from sohes.files import atomic_path, write_json
    from sohes.methods.cast.encoder import takes_superpixels
    from sohes.methods.cast.objectives import OBJECTIVES
    from sohes.records import config_hash

    join_processes()
    start = load_backbone_folder(inputs["backbone"])
    file, data = inputs["images"] / "train.json", data_name(inputs["images"])
    items = read_coco(file).items
    if not items:
        raise DataError(f"{file}: holds no image; there is nothing to learn from, give other images")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        training = OBJECTIVES[config.objective](start, items, inputs["images"], config)
    module, samples = training.module, training.samples
    module.check(**training.collate([samples[0], samples[1]]))
    if torch.distributed.is_initialized() and default_device().type == "cuda":
        convert_sync_batchnorm(module)  # in place; torch has none on processors (README §3)
    train(
        module,
        training.groups,
        samples,
        out=out,
        description="cast",
        data=data,
        optim=config,
        settings=config,
        seed=config.seed,
        collate=training.collate,
        hooks=training.hooks,
        identity={"config": config_hash(config), "backbone": start.provenance.sha256},
    )
    notes = [
        f"{training.method}: {config.iterations} steps of {config.batch_size} images, of {len(items)}; data loading "
        f"took {data_share(out / HISTORY):.1f} % of the time"
    ]
    if (chosen := config.chosen_superpixels()) and not takes_superpixels(start.model):
        notes.append(f"{', '.join(chosen)}: no effect, since {start.provenance.timm_name} takes no superpixels")
    if is_main_process():
        notes += training.notes(out / HISTORY)
        step = Step(
            method=training.method,
            data=data,
            images=len(items),
            supervision=training.supervision,
        )
        module.cpu()
        for folder, encoder in module.encoders().items():
            save_backbone_folder(out / folder, encoder, start.provenance.then(step))
        with atomic_path(out / HEAD) as temporary:
            save_file(torch.nn.ModuleDict(module.heads()).state_dict(), temporary)
        if training.classes:
            write_json(out / CLASSES, list(training.classes))
    return StageResult(notes=notes, artefacts=[out / CURVES])
