"""FS4 (reconstruction) from files to files: backbone folder and images in, backbone folder out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sohes.methods.fs4.settings import Fs4Config
from sohes.records import StageResult

if TYPE_CHECKING:
    from sohes.backbones.provenance import Provenance
    from sohes.methods.fs4.pyramid import PyramidLabels

# A launcher reads the configuration without loading torch; so what the stage needs is imported inside it.

METHOD, PICIE = "FS4 (reconstruction)", "PiCIE"  # the latter where neither pyramid nor context takes part
DECODER = "decoder.safetensors"


def fs4(config: Fs4Config, inputs: dict[str, Path], out: Path) -> StageResult:
    """Train a backbone on images without labels.

    Inputs: backbone, images. Writes `backbone/` (a timm folder), `decoder.safetensors` (what makes pixel embeddings of
    its tokens: context and decoder), and for each round a folder with curves, `epochs.csv` and labels of regions.
    """
    import logging
    import shutil

    import pandas as pd
    import torch
    from mmengine.dist import is_main_process

    from sohes.backbones.provenance import NONE, Step
    from sohes.backbones.timm_folder import load_backbone_folder, save_backbone_folder
    from sohes.data.coco import read_coco
    from sohes.data.sources import data_name
    from sohes.engine.history import CURVES, HISTORY, data_share
    from sohes.engine.optimizer import parameter_groups
    from sohes.engine.runner import join_processes, train
    from sohes.errors import DataError
    from sohes.methods.fs4.module import Fs4Module
    from sohes.methods.fs4.network import save_network
    from sohes.methods.fs4.rounds import EPOCHS, LABELS, PixelLabelHook, region_labels
    from sohes.methods.fs4.views import Fs4Samples, check_files, collate, usable_images
    from sohes.records import config_hash

    join_processes()
    start = load_backbone_folder(inputs["backbone"])
    notes = supervision_notes(start.provenance, strict=config.strict)
    config.check_patch(start.patch_px)
    file, data = inputs["images"] / "train.json", data_name(inputs["images"])
    try:
        items, small = usable_images(read_coco(file).items, config)
        check_files(items)
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    if is_main_process():
        for note in small:
            logging.getLogger(__name__).warning("%s: %s", file, note)
    notes += small
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        module = Fs4Module(start.model, config)
    network = module.network
    folders = [out / f"round-{number}" for number in range(1, config.rounds + 1)]
    first_epoch = 0
    regions: list[PyramidLabels] = []
    for number, folder in enumerate(folders):
        samples = Fs4Samples(items, config, batch_size=config.batch_size, seed=config.seed, first_epoch=first_epoch)
        if config.pgg:
            regions.append(region_labels(replace(start, model=network.trunk), items, config, folder))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed + number)
                module.begin_round(first_epoch, regions[-1])
        first_epoch += -(-config.iterations // samples.steps)
        train(
            module,
            parameter_groups(
                module,
                lr=config.lr,
                weight_decay=config.weight_decay,
                factors=dict.fromkeys(network.trunk.parameters(), config.backbone_lr_factor),
            ),
            samples,
            out=folder,
            description=f"fs4 round {number + 1}",
            data=data,
            optim=config,
            settings=config,
            seed=config.seed,
            collate=collate,
            hooks=[PixelLabelHook(samples, config, folder)],
            identity={"config": config_hash(config), "backbone": start.provenance.sha256, "round": number},
        )
        last = pd.read_csv(folder / EPOCHS).iloc[-1]
        notes.append(
            f"round {number + 1}: {config.iterations} steps of {config.batch_size} images, of {len(items)}; data "
            f"loading took {data_share(folder / HISTORY):.1f} % of the time. In its last epoch the pixels used "
            f"{last['clusters_1']:.0f} and {last['clusters_2']:.0f} of {config.clusters} clusters, the largest held "
            f"{last[['largest_share_1', 'largest_share_2']].max():.0%}, and the views agreed on "
            f"{last['agreement']:.0%} of the pixels"
        )
    notes += region_notes(regions)
    if is_main_process():
        step = Step(
            method=METHOD if config.pgg or config.cae != "none" else PICIE,
            data=data,
            images=len(items),
            supervision=NONE,
        )
        save_backbone_folder(out / "backbone", network.cpu().trunk, start.provenance.then(step))
        save_network(out / DECODER, network)
        for folder in folders:
            shutil.rmtree(folder / LABELS, ignore_errors=True)
    return StageResult(notes=notes, artefacts=[folder / name for folder in folders for name in (CURVES, EPOCHS)])


def region_notes(rounds: list[PyramidLabels]) -> list[str]:
    """What each round's labels of regions share with the places in the grid, and with those of the round before."""

    def words(shares: list[float]) -> str:
        return ", ".join(f"{share:.2f}" for share in shares)

    notes = []
    for number, labels in enumerate(rounds):
        note = f"round {number + 1}: labels of regions share {words(labels.information_of_layout())} with their places"
        if number:
            note += f" and {words(labels.information_shared_with(rounds[number - 1]))} with those of the round before"
        notes.append(f"{note} (mutual information adjusted for chance, level by level)")
    return notes


def supervision_notes(start: Provenance, *, strict: bool) -> list[str]:
    """A warning where the start weights are not free of labels by people, as far as is known.

    Raises:
        ConfigError: the same where `strict`.
    """
    from sohes.backbones.provenance import NONE
    from sohes.errors import ConfigError

    if start.supervision == NONE:
        return []
    told = f"the start weights are {start.label}, and what people gave to them is: {start.supervision}"
    if strict:
        raise ConfigError(f"strict=true, but {told}; give weights that were trained without, or set strict=false")
    return [f"WARNING: {told}"]
