"""Progress on a log and in the file that a launcher reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sohes import progress
from sohes.progress import Reporter, track


class Clock:
    """A clock that stands still unless told otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


@pytest.fixture
def state_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "progress.json"
    monkeypatch.setenv("SOHES_PROGRESS", str(path))
    return path


def test_everything_passes_through_and_the_end_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track("abc", "letters")) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["letters: 1/3", "letters: 3/3"]


def test_a_generator_needs_a_total(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track((x for x in "ab"), "letters", total=2)) == ["a", "b"]
    assert "letters: 2/2" in capsys.readouterr().err
    with pytest.raises(TypeError):
        list(track((x for x in "ab"), "letters"))


def test_nothing_to_do_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([], "letters")) == []
    assert capsys.readouterr().err == ""


def test_a_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter("work", 100) as reporter:
        for _ in range(40):
            clock.now += 1
            reporter.advance(note="loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 4
    assert lines[-1].startswith("work: ")
    assert lines[-1].endswith("loss 0.5")
    assert "1.00/s" in lines[-1]


def test_rate_and_time_left_leave_out_what_an_earlier_run_did(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter("work", 100) as reporter:
        clock.now += 50
        reporter.resume_at(60)
        clock.now += 20
        reporter.advance(10)
        assert reporter.rate == pytest.approx(0.5)
    assert "work: 70/100  0.50/s  60 s left" in capsys.readouterr().err


def test_the_file_holds_the_state(state_file: Path, clock: Clock) -> None:
    with Reporter("work", 4, done=1) as reporter:
        assert json.loads(state_file.read_text())["done"] == 1
        clock.now += 2
        reporter.advance(note="fine")
        state = json.loads(state_file.read_text())
        assert state == {"description": "work", "done": 2, "total": 4, "rate": 0.5, "note": "fine"}
        reporter.advance()  # within the same half second: not written yet
        assert json.loads(state_file.read_text())["done"] == 2
    assert json.loads(state_file.read_text())["done"] == 3
    assert [path.name for path in state_file.parent.iterdir()] == [state_file.name]


def test_a_file_that_cannot_be_written_stops_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOHES_PROGRESS", str(tmp_path / "missing" / "progress.json"))
    assert list(track([1, 2], "work")) == [1, 2]


def test_an_exception_in_the_work_passes_and_the_state_stays(state_file: Path) -> None:
    def work() -> None:
        for item in track([1, 2, 3], "work"):
            if item == 2:
                raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        work()
    assert json.loads(state_file.read_text())["total"] == 3
