from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sohes.errors import SohesError
from sohes.installation import MAKE
from sohes.mm import check

pytestmark = [pytest.mark.transfer, pytest.mark.usefixtures("mm_stack")]


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probe again, not from the cache."""
    monkeypatch.setattr(check, "probe", check.probe.__wrapped__)


def break_import(monkeypatch: pytest.MonkeyPatch, module: str, error: Exception) -> None:
    genuine = importlib.import_module

    def fake(name: str, *rest: Any) -> ModuleType:
        if name == module:
            raise error
        return genuine(name, *rest)

    monkeypatch.setattr(importlib, "import_module", fake)


def test_a_working_stack_says_what_was_tried(capsys: pytest.CaptureFixture[str]) -> None:
    found = check.probe()
    assert found.works
    assert found.remedy == ""
    assert [check.name for check in found.checks] == ["MM packages", "mmcv ops", "MMSegmentation", "MMDetection"]
    assert "roi_align right on cpu" in found.message
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("fresh")
def test_missing_ops_are_mended_by_building_them(monkeypatch: pytest.MonkeyPatch) -> None:
    break_import(monkeypatch, "mmcv._ext", ModuleNotFoundError("No module named 'mmcv._ext'", name="mmcv._ext"))
    found = check.probe()
    assert not found.works
    assert "mmcv._ext" in found.message
    assert found.remedy == check.BUILD_OPS
    with pytest.raises(SohesError, match="Mend it with: MMCV_WITH_OPS=1"):
        check.require()


@pytest.mark.usefixtures("fresh")
def test_a_missing_helper_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    break_import(monkeypatch, "mmseg.models", ModuleNotFoundError("No module named 'ftfy'", name="ftfy"))
    found = check.probe()
    assert "MMSegmentation" in found.message
    assert "ftfy" in found.message
    assert found.remedy == MAKE


@pytest.mark.usefixtures("fresh")
def test_two_packages_with_one_import_name_are_named_both(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["onedl-mmengine", "onedl-mmcv", "mmcv", "onedl-mmdetection", "onedl-mmsegmentation"]
    fakes = [SimpleNamespace(metadata={"Name": name}) for name in names]
    monkeypatch.setattr(check.metadata, "distributions", lambda: fakes)
    found = check.probe()
    assert found.remedy == f"{sys.executable} -m pip uninstall -y onedl-mmcv mmcv && {MAKE}"


@pytest.mark.usefixtures("fresh")
def test_nothing_installed_is_one_command_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check.metadata, "distributions", lambda: [])
    found = check.probe()
    assert "not installed: onedl-mmengine, onedl-mmcv" in found.message
    assert found.remedy == MAKE


@pytest.mark.usefixtures("fresh")
def test_wrong_results_are_not_taken_for_working(monkeypatch: pytest.MonkeyPatch) -> None:
    import mmcv.ops

    monkeypatch.setattr(mmcv.ops, "roi_align", lambda features, rois, size: features[:, :, :2, :2] * 0)
    assert "wrong results on cpu" in check.probe().message
