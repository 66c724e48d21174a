"""The parts of the training loop."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from torch import Tensor

from sohes.engine import history as history_module
from sohes.engine import loop
from sohes.engine.checkpoints import checkpoints
from sohes.engine.history import HistoryHook, _panels, data_share, draw_history
from sohes.engine.loop import StepSampler, micro_batch_size
from sohes.errors import ConfigError, SohesError
from sohes.plotting import SERIES, Look
from tests.engine.toy import Line, Numbers, end, fit, optimiser


class Slow(Numbers):
    def __getitem__(self, position: int) -> Tensor:
        time.sleep(0.05)
        return super().__getitem__(position)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_step_that_is_no_number(tmp_path: Path, accumulate: int) -> None:
    """It stops the run before any weight changes, and names step, loss, norm and remedy."""
    model = Line(bad_call=3 * accumulate + accumulate - 1)
    fit(model, tmp_path, optim=optimiser(iterations=3, accumulate=accumulate))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(SohesError, match=r"loss is nan and .* gradient nan at step 3; no weight .* Lower lr"):
        fit(model, tmp_path, optim=optimiser(iterations=4, accumulate=accumulate))
    assert end(tmp_path)["step"] == 3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_gradient_that_is_no_number(tmp_path: Path) -> None:
    """The loss is finite, its gradient is not."""

    class Root(Line):
        def forward(self, x: Tensor, mode: str = "loss") -> dict[str, Tensor]:
            return {"loss_line": (self.layers(x) * 0).abs().sqrt().sum()}

    model = Root()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(SohesError, match=r"the loss is 0 and the norm of its gradient nan at step 0"):
        fit(model, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_micro_batches_make_the_same_steps(tmp_path: Path) -> None:
    """Equal losses here, for every micro-batch has the same number of targets; everything counts steps, not batches."""
    histories, weights = [], []
    for accumulate in (1, 2, 4):
        model, out = Line(), tmp_path / str(accumulate)
        fit(model, out, optim=optimiser(iterations=5, batch_size=4, accumulate=accumulate, warmup=2))
        assert model.calls == 5 * accumulate
        assert end(out)["step"] == 5
        assert [path.name for path in checkpoints(out)] == ["checkpoint-000005.pth", "checkpoint-000004.pth"]
        histories.append(pd.read_csv(out / "history.csv"))
        weights.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach())
    for history, found in zip(histories[1:], weights[1:], strict=True):
        for name in ("step", "loss", "lr", "grad_norm"):
            assert history[name].to_numpy() == pytest.approx(histories[0][name].to_numpy(), rel=1e-4), name
        assert torch.allclose(found, weights[0], atol=1e-6)


def test_batch_must_be_spread_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    assert micro_batch_size(12, 3) == 4
    monkeypatch.setattr(loop, "get_world_size", lambda: 2)
    assert micro_batch_size(12, 3) == 2
    for batch_size, accumulate in ((12, 4), (4, 4)):
        with pytest.raises(ConfigError, match=f"batch_size={batch_size} .* 2 processes with accumulate={accumulate}"):
            micro_batch_size(batch_size, accumulate)


def test_random_numbers_depend_on_seed_and_step(tmp_path: Path) -> None:
    draws = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        model = Line()
        fit(model, tmp_path / name, seed=seed, optim=optimiser(iterations=4))
        draws.append(model.draws)
    assert draws[0] == draws[1]
    assert len({*draws[0], *draws[2]}) == 8


def test_a_vanishing_learning_rate_changes_nothing(tmp_path: Path) -> None:
    """Nothing but the optimiser touches the weights: mmengine must not initialise them again."""
    model = Line()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, tmp_path, lr=1e-30)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("step", [1.0] * 9 + [0.1]),
        ("cosine", [0.5 * (1 + torch.cos(torch.tensor(i * torch.pi / 10)).item()) for i in range(10)]),
    ],
)
def test_schedules(tmp_path: Path, schedule: str, expected: list[float]) -> None:
    fit(Line(), tmp_path, lr=1.0, optim=optimiser(iterations=10, schedule=schedule, clip_norm=1e-3))
    assert pd.read_csv(tmp_path / "history.csv")["lr"].tolist() == pytest.approx(expected, rel=1e-3)


def test_gradients_are_clipped(tmp_path: Path) -> None:
    """Plain descent with rate 1: the step is as long as the limit."""
    model = Line()
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    fit(model, tmp_path, lr=1e-3, optim=optimiser(iterations=1, clip_norm=1e-4))
    state = end(tmp_path)["optimizer"]["state"]
    momentum = torch.cat([entry["exp_avg"].flatten() for entry in state.values()]) / 0.1  # the gradient of step 1
    assert float(momentum.norm()) == pytest.approx(1e-4, rel=1e-3)
    assert not torch.equal(torch.nn.utils.parameters_to_vector(model.parameters()).detach(), before)


def test_mmengine_has_nothing_to_warn_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fit(Line(), tmp_path, optim=optimiser(iterations=1))
    captured = capfd.readouterr()
    assert "WARNING" not in captured.out + captured.err


def test_gradients_need_not_be_clipped(tmp_path: Path) -> None:
    """The moving average of the first gradient is a tenth of it, whose norm is logged."""
    fit(Line(), tmp_path, optim=optimiser(iterations=1, clip_norm=None))
    state = end(tmp_path)["optimizer"]["state"]
    norm = float(torch.cat([entry["exp_avg"].flatten() for entry in state.values()]).norm()) / 0.1
    assert norm == pytest.approx(pd.read_csv(tmp_path / "history.csv")["grad_norm"].item(), rel=1e-3)
    assert norm > 1e-2


def positions(sampler: StepSampler, count: int) -> list[int]:
    return [position for position, _ in zip(sampler, range(count), strict=False)]


def test_order_of_one_process() -> None:
    assert positions(StepSampler(3), 7) == [0, 1, 2, 3, 4, 5, 6]
    sampler = StepSampler(3)
    sampler.skip(2 * 3)
    assert positions(sampler, 4) == [6, 7, 8, 9]


def test_two_processes_share_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "get_world_size", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(loop, "get_rank", lambda rank=rank: rank)
        sampler = StepSampler(2)
        shares.append(positions(sampler, 6))
        sampler.skip(2 * 2)  # two steps of this process
        assert positions(sampler, 2) == shares[-1][4:]
    assert shares == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]


def test_resumed_history_may_have_other_columns(tmp_path: Path) -> None:
    """Whole lines before the step stay; what an earlier attempt did not measure is NaN."""
    path, run = tmp_path / "history.csv", SimpleNamespace()
    first, second = HistoryHook(path), HistoryHook(path)
    for step in range(3):
        first.after_train_iter(run, step, outputs={"a": 1.0, "b": float(step)})  # type: ignore[arg-type]
    path.write_text(path.read_text() + "3,1")  # cut by a kill
    second.after_train_iter(run, 2, outputs={"b": 7.0, "c": torch.tensor(5.0)})  # type: ignore[arg-type]
    assert path.read_text() == "step,b,c\n0,0,nan\n1,1,nan\n2,7,5\n"


def test_curves_need_a_history(tmp_path: Path) -> None:
    draw_history(tmp_path / "none.csv", tmp_path / "curves.png", "line: numbers (train)")
    (tmp_path / "short.csv").write_text("step,lr,loss\n0,1,2\n")
    draw_history(tmp_path / "short.csv", tmp_path / "curves.png", "line: numbers (train)")
    assert not (tmp_path / "curves.png").exists()
    (tmp_path / "torn.csv").write_text("step,lr,loss\n0,1,2\n1,1,1\n2,")  # the last line was cut by a kill
    draw_history(tmp_path / "torn.csv", tmp_path / "curves.png", "line: numbers (train)")
    assert (tmp_path / "curves.png").exists()
    assert "line: numbers (train)" in (tmp_path / "curves.svg").read_text()  # text stays text in SVG


def test_curves_of_one_loss_share_a_panel() -> None:
    names = ["loss", "initial_labels", "teacher_labels", "mask_initial", "mask_teacher", "loss_dice", "tau_s", "tau_m"]
    assert _panels([*names, "grad_norm"]) == {
        "loss": {"": "loss"},
        "labels": {"initial": "initial_labels", "teacher": "teacher_labels"},
        "mask": {"initial": "mask_initial", "teacher": "mask_teacher"},
        "dice": {"": "loss_dice"},
        "tau": {"s": "tau_s", "m": "tau_m"},
        "grad norm": {"": "grad_norm"},
    }


def test_no_curve_of_a_full_panel_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"head_{index}" for index in range(2 * len(SERIES) + 1)]
    rows = [",".join(map(str, [step, 1, *range(len(names))])) for step in range(2)]
    (tmp_path / "history.csv").write_text("\n".join([",".join(["step", "lr", *names]), *rows]) + "\n")
    drawn: list[str] = []
    draw = history_module._draw_curve

    def noted(axes: Axes, curve: pd.DataFrame, look: Look, words: str) -> None:
        drawn.append(curve.columns[1])
        draw(axes, curve, look, words)

    monkeypatch.setattr(history_module, "_draw_curve", noted)
    draw_history(tmp_path / "history.csv", tmp_path / "curves.png", "line: numbers (train)")
    assert drawn == names


def test_curve_of_something_measured_now_and_then(tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text("step,lr,loss,now_and_then\n0,1,2,nan\n1,1,1,5\n2,1,1,nan\n")
    draw_history(tmp_path / "history.csv", tmp_path / "curves.png", "line: numbers (train)")
    assert (tmp_path / "curves.png").exists()


def test_time_of_data_and_step(tmp_path: Path) -> None:
    """Two images a step in two micro-batches, each image takes 0.05 s; a step holds its data time."""
    fit(Line(), tmp_path, Slow(), optim=optimiser(iterations=3, accumulate=2))
    table = pd.read_csv(tmp_path / "history.csv")
    assert table["data_seconds"].ge(0.099).all()
    assert table["step_seconds"].gt(table["data_seconds"]).all()
    share = 100 * table["data_seconds"].sum() / table["step_seconds"].sum()
    assert data_share(tmp_path / "history.csv") == pytest.approx(share)
