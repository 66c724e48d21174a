from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sohes
from sohes import cli
from sohes.backbones.timm_folder import save_backbone_folder
from sohes.backbones.weights import resolve_weights
from sohes.data.label_maps import LabelMap
from sohes.errors import ConfigError, SohesError
from sohes.probes import outcome, registry
from sohes.probes.pictures import features_as_colours
from sohes.probes.scoring import Scored, Task
from sohes.probes.settings import ProbeConfig
from sohes.probes.stage import probe
from sohes.records import read_record
from tests.probes.synthetic import write_folder

SMALL = ProbeConfig(size_px=64, pictures=2, neighbours=5)


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    model, provenance = resolve_weights("random:test_vit")
    save_backbone_folder(tmp_path / "backbone", model, provenance)
    return {"backbone": tmp_path / "backbone", "data": write_folder(tmp_path / "bands", train=8, val=5)}


@pytest.mark.parametrize("name", ["linear", "linear_sgd", "knn"])
def test_colours_are_told_apart(name: str, inputs: dict[str, Path], tmp_path: Path) -> None:
    """Even random features know colours: all but the borders of the bands are right."""
    config = replace(SMALL, probe=name, classes=("sky", "rose"), seeds=1, sgd_batch=2)
    result = probe(config, inputs, tmp_path / "out")
    method = {"linear": "linear probe", "linear_sgd": "linear probe (SGD)", "knn": "k-NN probe"}[name]
    values = {row.metric: row.value for row in result.measurements}
    assert set(values) == {"miou_dataset", "acc_pixel", "miou_2_classes"}
    assert values["miou_dataset"] > 65
    assert values["acc_pixel"] > 80
    row = result.measurements[0]
    assert (row.method, row.protocol, row.backbone) == (method, f"probe_{name}_64_full_v1", "test_vit")
    assert (row.dataset, row.split, row.n_images, row.of_images, row.arm) == ("bands", "val", 5, None, "")
    assert (row.init, row.supervision, row.trained_by) == ("random weights", "none", "random weights")
    json.dumps([asdict(row) for row in result.measurements], allow_nan=False)  # plain numbers, not NumPy's
    assert result.notes[0].startswith(
        f"{method} on random weights: mIoU {values['miou_dataset']:.1f} over the 3 classes"
    )
    assert [path.name for path in result.artefacts] == ["classes.csv", "classes.png", "label_maps.png", "features.png"]
    assert all(path.exists() for path in result.artefacts)
    header, *lines = (tmp_path / "out" / "classes.csv").read_text().splitlines()
    assert header == f"class,{method}"
    by_class = {line.split(",")[0]: float(line.split(",")[1]) for line in lines}
    assert np.mean(list(by_class.values())) == pytest.approx(values["miou_dataset"], abs=0.01)
    assert (by_class["sky"] + by_class["rose"]) / 2 == pytest.approx(values["miou_2_classes"], abs=0.01)


def test_a_resnet_is_probed_as_a_vit_is(inputs: dict[str, Path], tmp_path: Path) -> None:
    """Its map has a feature for 32 x 32 px; random ones know these colours as well."""
    config = replace(SMALL, size_px=320, probe="linear", seeds=1, pictures=1)
    result = probe(config, inputs | {"backbone": Path("random:resnet18")}, tmp_path / "out")
    row = result.measurements[0]
    assert (row.backbone, row.init, row.supervision) == ("resnet18", "random weights", "none")
    assert (row.metric, row.protocol, row.n_images) == ("miou_dataset", "probe_linear_320_full_v1", 5)
    assert row.value > 50
    small = replace(config, size_px=150, probe="knn", pictures=0)
    notes = probe(small, inputs | {"backbone": Path("random:resnet18")}, tmp_path / "knn").notes
    assert "images at 160 px, the multiple of the patch of 32 px nearest to size_px" in notes


def test_a_start_backbone_is_compared_image_by_image(inputs: dict[str, Path], tmp_path: Path) -> None:
    model, provenance = resolve_weights("random:test_vit")
    model.norm.weight.data.zero_()  # features that know nothing
    save_backbone_folder(tmp_path / "blind", model, provenance)
    result = probe(SMALL, inputs | {"start": tmp_path / "blind"}, tmp_path / "out")
    arms = {(row.arm, row.metric): row.value for row in result.measurements}
    assert set(arms) == {(arm, metric) for arm in ("trained", "start") for metric in ("miou_dataset", "acc_pixel")}
    assert arms["trained", "miou_dataset"] > arms["start", "miou_dataset"] + 30
    gain = arms["trained", "miou_dataset"] - arms["start", "miou_dataset"]
    (note,) = [note for note in result.notes if "against the start backbone" in note]
    assert note.startswith(f"linear probe: {gain:+.1f} mIoU against the start backbone, 95 % interval +")
    assert "no difference" not in note
    back = probe(SMALL, inputs | {"start": inputs["backbone"]}, tmp_path / "same")
    assert any(note.endswith("no difference is shown") for note in back.notes)


def drawn(task: Task, seed: int) -> list[Scored]:
    """A probe whose scores are those of chance: two methods."""
    rng = np.random.default_rng(seed)
    confusions = rng.integers(1, 100, (2, len(task.data.val), 3, 3))
    CALLS.append(seed)

    def label_map(place: int) -> LabelMap:
        return np.zeros(task.data.val[place].size_hw, np.uint8)

    return [
        Scored(method=f"drawn {k}", protocol=f"drawn_{k}", confusions=confusions[k], label_map=label_map)
        for k in (0, 1)
    ]


CALLS: list[int] = []


@pytest.fixture
def drawn_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS.clear()
    monkeypatch.setitem(registry.PROBES, "drawn", registry.Probe(f"{__name__}:drawn", seeds=3))


@pytest.mark.usefixtures("drawn_probe")
def test_seeds_give_mean_and_standard_deviation(inputs: dict[str, Path], tmp_path: Path) -> None:
    config = replace(SMALL, probe="drawn", seeds=4)
    result = probe(config, inputs, tmp_path / "out")
    assert CALLS == [0, 1, 2, 3]
    accuracy = []
    for seed in range(4):
        total = np.random.default_rng(seed).integers(1, 100, (2, 5, 3, 3)).sum(1)[1]
        accuracy.append(100 * np.trace(total) / total.sum())
    row = next(row for row in result.measurements if (row.method, row.metric) == ("drawn 1", "acc_pixel"))
    assert (row.value, row.sd, row.n_seeds) == pytest.approx((np.mean(accuracy), np.std(accuracy, ddof=1), 4))
    json.dumps([asdict(row) for row in result.measurements], allow_nan=False)
    assert {row.method: row.protocol for row in result.measurements} == {"drawn 0": "drawn_0", "drawn 1": "drawn_1"}
    assert any("(4 seeds)" in note for note in result.notes)
    assert {"classes_0.png", "classes_1.png"} < {path.name for path in result.artefacts}


@pytest.mark.usefixtures("drawn_probe")
def test_finished_seeds_are_kept_until_data_or_settings_change(inputs: dict[str, Path], tmp_path: Path) -> None:
    config = replace(SMALL, probe="drawn", seeds=2)
    first = probe(config, inputs, tmp_path / "out")
    (tmp_path / "out" / "label_maps.png").unlink()
    again = probe(config, inputs, tmp_path / "out")
    assert CALLS == [0, 1]
    assert [row.value for row in again.measurements] == [row.value for row in first.measurements]
    probe(replace(config, neighbours=6), inputs, tmp_path / "out")
    assert CALLS == [0, 1, 0, 1]
    mask = inputs["data"] / "masks" / "val" / "00.png"
    Image.fromarray(np.asarray(Image.open(mask))[:, ::-1]).save(mask)
    probe(config, inputs, tmp_path / "out")
    assert CALLS == [0, 1] * 3
    file = next((tmp_path / "out").glob("scores-*-0.npz"))
    for file in (tmp_path / "out").glob("scores-*-0.npz"):
        file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(SohesError, match=r"scores-.*-0\.npz: damaged .*; delete it"):
        probe(config, inputs, tmp_path / "out")


def test_the_same_command_gives_the_same_bytes(inputs: dict[str, Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        probe(SMALL, inputs | {"start": inputs["backbone"]}, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 5  # both backbones are the same: one file of scores
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_command(inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "probe",
        str(inputs["backbone"]),
        "--data",
        str(inputs["data"]),
        "--probe",
        "knn",
        "--out",
        str(tmp_path / "out"),
    ]
    assert cli.main([*arguments, "--set", "size_px=70", "neighbours=5", "pictures=0", "score_px=20", "max_val=2"]) == 0
    printed = capsys.readouterr().out
    assert "probe_knn_64_20_v1" in printed
    assert "images at 64 px, the multiple of the patch of 16 px nearest to size_px" in printed
    record = read_record(tmp_path / "out" / "record.json")
    assert (record.recipe, record.config["probe"], record.config["size_px"]) == ("sohes probe", "knn", 70)
    assert (record.measurements[0].n_images, record.measurements[0].of_images) == (2, 5)
    assert record.artefacts == ["classes.csv", "classes.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--probe", "liner"], "unknown probe 'liner'; did you mean 'linear'?"),
        (["--set", "neighbors=3"], "unknown key of probe 'neighbors'; did you mean 'neighbours'?"),
        (["--set", "size_px"], "write it as key=value"),
        (["--seeds", "0"], "probe.seeds must be int of at least 1 or null, given 0"),
        (["--probe", "knn", "--set", "neighbours=5000", "size_px=32"], "neighbours=5000: there are only"),
        (["--set", "classes=[sky, rosse]", "size_px=32"], "unknown class of bands 'rosse'; did you mean 'rose'?"),
        (["--start", "nowhere/at/all", "--set", "size_px=32"], "nowhere/at/all: no such file or folder"),
    ],
)
def test_bad_input(
    arguments: list[str], words: str, inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["probe", str(inputs["backbone"]), "--data", str(inputs["data"]), "--out", str(tmp_path / "out")]
    assert cli.main([*command, *arguments]) == 1
    assert words in capsys.readouterr().err


def test_python(inputs: dict[str, Path], tmp_path: Path) -> None:
    config = sohes.ProbeConfig(size_px=32, pictures=0, data=str(inputs.pop("data")))
    assert config.outside_inputs() == [tmp_path / "bands"]
    assert sohes.probe(config, inputs, tmp_path / "out").measurements
    with pytest.raises(ConfigError, match="no labelled data"):
        probe(SMALL, inputs, tmp_path / "none")


def test_colours_of_features_are_fitted_over_all_images() -> None:
    """Two images of one gradient each: in one scale, whatever the sign of the features."""
    rng = np.random.default_rng(0)
    direction = np.linalg.qr(rng.normal(size=(8, 8)))[0][:3]
    scores = [rng.uniform(0, 1, (5, 6, 3)) * [9, 3, 1], rng.uniform(1, 2, (4, 4, 3)) * [9, 3, 1]]
    first, second = features_as_colours([(one @ direction).astype(np.float32) for one in scores])
    assert (first.shape, second.shape) == ((5, 6, 3), (4, 4, 3))
    for channel in range(3):
        pooled = np.concatenate([first[..., channel].ravel(), second[..., channel].ravel()])
        truth = np.concatenate([one[..., channel].ravel() for one in scores])
        assert pooled.min() == 0
        assert pooled.max() == 1
        if channel == 0:
            assert abs(np.corrcoef(pooled, truth)[0, 1]) > 0.95


def test_all_probes_are_named_for_the_command() -> None:
    page: Any = next(action for action in cli.make_parser()._actions if action.choices).choices["probe"]
    assert all(name in page.format_help() for name in registry.probe_names())
    assert outcome.PROBES is registry.PROBES
