"""Where the values of a training can be watched: TensorBoard, Weights & Biases or MLflow (README §8)."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.visualization import MLflowVisBackend, TensorboardVisBackend, WandbVisBackend
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from sohes.engine.history import CURVES, picture_path
from sohes.engine.settings import Tracker
from sohes.errors import SohesError
from sohes.files import read_json, write_json

RUNS = "tracker.json"  # tracker -> id of the training's run there
PROJECT = "sohes"  # unless the tracker's own variable names another
_REMEDY = {
    "tensorboard": "Look at the folder's rights",
    "wandb": "Log in with `wandb login`, or keep the run here with WANDB_MODE=offline",
    "mlflow": "Look at MLFLOW_TRACKING_URI; without it the run is kept here",
}


class TrackerHook(Hook):
    """Hands every value of a step's outputs, and the picture that a hook left of it, to a tracker.

    Whoever trains holds it as a context: when that ends, the tracker gets the curves and learns whether the training
    failed. A tracker that fails after it has started is given up with a warning, not the training.

    Args:
        out: folder of the training.
        tracker: which one.
        config: settings, JSON-able.
    """

    priority = "LOW"

    def __init__(self, out: Path, tracker: Tracker, config: Mapping[str, Any]) -> None:
        self.out, self.tracker, self.config = out, tracker, config
        self._backend: _Backend | None = None
        self._is_started = False
        self._step = 0

    def __enter__(self) -> TrackerHook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show("curves", self.out / CURVES, self._step)
        self._send(lambda backend: backend.end(failed=kind is not None))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Start before the first step of this process, whose number says whether it resumes.

        Raises:
            SohesError: the tracker cannot be started.
        """
        if self._is_started:
            return
        self._is_started = True
        runs = read_json(self.out / RUNS) if batch_idx and (self.out / RUNS).exists() else {}
        try:
            self._backend = _BACKENDS[self.tracker](self.out, batch_idx, runs.get(self.tracker))
            if self._backend.run not in (None, runs.get(self.tracker)):
                write_json(self.out / RUNS, runs | {self.tracker: self._backend.run})
            if self.tracker not in runs:
                self._backend.add_config(Config(dict(self.config)))
        except Exception as cause:  # no account, no network, ...: each client has its own
            raise SohesError(f"tracker={self.tracker} cannot be started ({cause}). {_REMEDY[self.tracker]}.") from cause

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._step = batch_idx
        values = {name: float(value) for name, value in outputs.items() if not np.isnan(float(value))}
        self._send(lambda backend: backend.add_scalars(values, batch_idx))
        self._show("watch", picture_path(self.out, batch_idx + 1), batch_idx)

    def _show(self, name: str, picture: Path, step: int) -> None:
        if picture.exists():
            with Image.open(picture) as image:
                pixels = np.asarray(image.convert("RGB"))
            self._send(lambda backend: backend.add_image(name, pixels, step))

    def _send(self, send: Callable[[_Backend], None]) -> None:
        if self._backend is None:
            return
        try:
            send(self._backend)
        except Exception as error:  # the network went, or a signal to all processes ended the client's own
            self._backend = None
            logging.getLogger(__name__).warning(
                "tracker=%s failed and gets no more of this training (%s); history.csv has all of it",
                self.tracker,
                error,
            )


class _Backend(Protocol):
    """One of mmengine's, and what it lacks.

    Attributes:
        run: id by which a resumed training finds its run again; None where it needs none.
    """

    run: str | None

    def add_config(self, config: Config) -> None: ...

    def add_scalars(self, scalar_dict: dict[str, float], step: int) -> None: ...

    def add_image(self, name: str, image: np.ndarray, step: int) -> None: ...

    def end(self, *, failed: bool) -> None: ...


class _TensorBoard(TensorboardVisBackend):
    """mmengine's, which forgets the steps that a resumed training makes again, and keeps what a killed one wrote."""

    run = None

    def __init__(self, out: Path, step: int, run: str | None) -> None:
        super().__init__(str(out / "tensorboard"))
        self._step = step

    def _init_env(self) -> None:
        self._tensorboard = _writer(Path(self._save_dir), self._step)

    def add_scalars(self, scalar_dict: dict[str, float], step: int = 0, **kwargs: Any) -> None:
        super().add_scalars(scalar_dict, step)
        self.experiment.flush()

    def end(self, *, failed: bool) -> None:
        self.close()


class _Wandb(WandbVisBackend):
    """mmengine's, with the step as its own axis, since wandb's count of what was logged cannot go back."""

    def __init__(self, out: Path, step: int, run: str | None) -> None:
        super().__init__(
            str(out),
            init_kwargs={
                "project": os.environ.get("WANDB_PROJECT", PROJECT),
                "name": _name(out),
                "id": run,
                "resume": "allow",
                "settings": {"console": "off"},  # what is printed is in the log already
            },
            define_metric_cfg=[{"name": "step"}, {"name": "*", "step_metric": "step"}],
        )
        self.run: str = self.experiment.run.id

    def add_config(self, config: Config, **kwargs: Any) -> None:
        self.experiment.config.update(config.to_dict())  # mmengine's also uploads the code in the current folder

    def add_scalars(self, scalar_dict: dict[str, float], step: int = 0, **kwargs: Any) -> None:
        super().add_scalars({"step": step, **scalar_dict})

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
        super().add_scalars({"step": step, name: self.experiment.Image(image)})

    def end(self, *, failed: bool) -> None:
        self.experiment.finish(exit_code=int(failed))


class _MLflow(MLflowVisBackend):
    """mmengine's, in a database: new versions of MLflow refuse the folders of files that mmengine asks for."""

    def __init__(self, out: Path, step: int, run: str | None) -> None:
        super().__init__(str(out / "mlflow"))
        self.run, self._out = run, out
        assert self.experiment  # connects

    def _init_env(self) -> None:
        import mlflow

        self._mlflow = mlflow
        folder, artefacts = Path(self._save_dir).absolute(), None
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            folder.mkdir(parents=True, exist_ok=True)
            mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
            artefacts = (folder / "artifacts").as_uri()  # or they would go to the current folder
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        if mlflow.get_experiment_by_name(name) is None:
            mlflow.create_experiment(name, artifact_location=artefacts)
        mlflow.set_experiment(name)
        self.run = mlflow.start_run(self.run, run_name=None if self.run else _name(self._out)).info.run_id

    def add_scalars(self, scalar_dict: dict[str, float], step: int = 0, **kwargs: Any) -> None:
        self.experiment.log_metrics(scalar_dict, step)  # mmengine's waits for a lost server again in every step

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
        self.experiment.log_image(image, f"{name}/step-{step + 1:06d}.png")

    def end(self, *, failed: bool) -> None:
        self.experiment.end_run("FAILED" if failed else "FINISHED")  # mmengine's uploads every JSON file of the run


_BACKENDS: dict[str, Callable[[Path, int, str | None], _Backend]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _MLflow,
}


def _name(out: Path) -> str:
    """What a tracker calls a training: run and stage."""
    return "/".join(out.absolute().parts[-2:])


def _writer(folder: Path, step: int) -> SummaryWriter:
    """Of a file that TensorBoard reads after those there: it goes by their names, which hold whole seconds."""
    seconds = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*")]
    wait = max(seconds, default=0) + 1 - time.time()
    time.sleep(min(max(wait, 0.0), 1.0))  # not for hours, where another machine's clock was ahead
    return SummaryWriter(str(folder), purge_step=step)
