"""CAST's training from files to files: backbone folder and images in, backbone folder out."""

from __future__ import annotations

from pathlib import Path

from sohes.methods.cast.settings import CastConfig
from sohes.records import StageResult

# A launcher reads the configuration without loading torch; so what the stage needs is imported inside it.

METHOD = "MoCo-v3"
HEAD = "head.safetensors"
_LITTLE_LEARNT, _SMALL_STD = 0.1, 0.05  # of the way from chance to certainty, and of the features; below, notes warn


def cast(config: CastConfig, inputs: dict[str, Path], out: Path) -> StageResult:
    """Train a backbone on images without labels, by MoCo-v3.

    Inputs: backbone, images. Writes `backbone/` (the query encoder, a timm folder), `head.safetensors` (its projector
    and predictor) and curves.

    Raises:
        ConfigError: settings that do not fit the backbone.
        DataError: no image.
    """
    import torch
    from mmengine.dist import is_main_process
    from safetensors.torch import save_file

    from sohes.backbones.provenance import NONE, UNKNOWN, Step
    from sohes.backbones.timm_folder import load_backbone_folder, save_backbone_folder
    from sohes.data.coco import read_coco
    from sohes.engine.history import CURVES, HISTORY, data_share
    from sohes.engine.runner import join_processes, train
    from sohes.errors import DataError
    from sohes.files import atomic_path, read_json
    from sohes.methods.cast.encoder import encoder_to_train
    from sohes.methods.cast.module import KeyHook, MocoModule, normalised_together
    from sohes.methods.cast.views import ViewPairs, collate
    from sohes.records import config_hash

    join_processes()
    start = load_backbone_folder(inputs["backbone"])
    encoder, superpixels = encoder_to_train(start, config)
    file = inputs["images"] / "train.json"
    items = read_coco(file).items
    if not items:
        raise DataError(f"{file}: holds no image; there is nothing to learn from, give other images")
    samples = ViewPairs(items, config, seed=config.seed, superpixels=superpixels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        module = MocoModule(encoder, config, iterations=config.iterations, bf16=config.bf16)
    module.check(**collate([samples[0]]))
    train(
        normalised_together(module),
        [
            {
                "params": [parameter for parameter in module.parameters() if parameter.requires_grad],
                "lr": config.lr,
                "weight_decay": config.weight_decay,
            }
        ],
        samples,
        out=out,
        description="cast",
        optim=config,
        settings=config,
        seed=config.seed,
        collate=collate,
        hooks=[KeyHook()],
        identity={"config": config_hash(config), "backbone": start.provenance.sha256},
    )
    notes = [
        f"MoCo-v3: {config.iterations} steps of {config.batch_size} images, of {len(items)}; data loading took "
        f"{data_share(out / HISTORY):.1f} % of the time",
        *collapse_notes(out / HISTORY, keys=config.batch_size // config.accumulate),
    ]
    if is_main_process():
        source = inputs["images"] / "source.json"
        step = Step(
            method=METHOD,
            data=read_json(source)["name"] if source.exists() else UNKNOWN,
            images=len(items),
            supervision=NONE,
        )
        module.cpu()
        save_backbone_folder(out / "backbone", encoder, start.provenance.then(step))
        with atomic_path(out / HEAD) as temporary:
            save_file(module.heads(), temporary)
    return StageResult(notes=notes, artefacts=[out / CURVES])


def collapse_notes(history: Path, *, keys: int) -> list[str]:
    """Means over the last tenth of the steps that tell whether the features collapsed (README §6)."""
    import pandas as pd

    rows = pd.read_csv(history, on_bad_lines="skip")
    tenth = max(1, len(rows) // 10)
    last = rows.tail(tenth).mean()
    accuracy, std = float(last["accuracy"]), float(last["feature_std"])
    notes = [
        f"over the last {tenth} steps: loss {last['loss']:.3f}; {100 * accuracy:.0f} % of the queries are nearest to "
        f"their own of {keys} keys; standard deviation of the features {std:.2f}"
    ]
    if accuracy < 1 / keys + _LITTLE_LEARNT * (1 - 1 / keys):
        notes.append("WARNING: queries hardly find their own keys; train longer, or lower lr, or raise warmup")
    if std < _SMALL_STD:
        notes.append("WARNING: the features of all images are nearly alike; lower lr, or raise warmup or batch_size")
    return notes
