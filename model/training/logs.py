"""Where the numbers and pictures of a run go besides its lines: TensorBoard, W&B or MLflow."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NamedTuple, Protocol
from uuid import uuid4

import numpy as np
from pydantic import Field

from maskdepth.convert.schema import Schema
from maskdepth.model.errors import ModelError
from maskdepth.model.files import replace_bytes

PROJECT = "maskdepth"
"""The project of W&B, and the experiment of MLflow, unless theirs is set in the environment."""
IDS = "logs.json"
"""File of a run: how services name it, so that a resumed run continues there."""

_Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")]


class LogIds(Schema):
    """What W&B and MLflow call a run."""

    wandb: _Id | None = None
    mlflow: _Id | None = None


class LoggedRun(NamedTuple):
    """What a log needs to know of a run."""

    folder: Path
    step: int
    """Where the run begins or resumes."""
    config: Mapping[str, object]
    """Plain values."""
    about: str
    """What depth maps are, if that has to be said."""

    def ids(self) -> LogIds:
        """As an earlier process saved them. Raises ModelError if the file is not valid."""
        path = self.folder / IDS
        try:
            return LogIds.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return LogIds()
        except (OSError, ValueError):
            raise ModelError(f"{path}: cannot be read; remove it to log a new run") from None

    def save_id(self, **named: str) -> None:
        """Add the name that a service gave to the run."""
        content = self.ids().changed(**named).model_dump_json(indent=1)
        replace_bytes(self.folder / IDS, content.encode())


class Log(Protocol):
    """One place to which a run writes. Methods raise ModelError if that fails."""

    remote: bool
    """Whether it may become unreachable; the run then continues without it."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, at a step of the run."""

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """uint8 (H, W, 3)."""

    def close(self, *, finished: bool) -> None:
        """Write what is left. finished: whether the run has reached its end."""


class TensorBoardLog:
    """Files in RUN_DIR/tensorboard; what was written after the step of a resumed run is hidden."""

    remote = False

    def __init__(self, run: LoggedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = run.folder / "tensorboard"
        with self._writing():
            self._writer = SummaryWriter(str(self._folder), purge_step=run.step + 1)
            if run.about:
                self._writer.add_text("about", run.about, run.step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        with self._writing():
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        with self._writing():
            self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self, *, finished: bool) -> None:
        with self._writing():
            self._writer.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise ModelError(f"{self._folder}: cannot be written: {reason}") from None


class WandbLog:
    """A run of Weights & Biases, with its files in RUN_DIR/wandb.

    The library's own variables decide where it goes: WANDB_MODE=offline, WANDB_PROJECT and others.
    """

    remote = True

    def __init__(self, run: LoggedRun) -> None:
        import wandb

        self._wandb = wandb
        name = run.ids().wandb or uuid4().hex[:12]
        settings = wandb.Settings(console="off", init_timeout=30)
        with self._writing():
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT), name=run.folder.name, id=name,
                resume="allow", dir=str(run.folder), config=dict(run.config),
                notes=run.about or None, settings=settings,
            )  # fmt: skip
            # W&B takes no step twice, but a resumed run repeats those after its last state.
            self._run.define_metric("*", step_metric="step")
        run.save_id(wandb=name)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        with self._writing():
            self._run.log({"step": step, **values})

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        with self._writing():
            self._run.log({"step": step, name: self._wandb.Image(image)})

    def close(self, *, finished: bool) -> None:
        with self._writing():
            self._run.finish(exit_code=0 if finished else 1)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (self._wandb.errors.Error, OSError) as error:
            raise ModelError(
                f"Weights & Biases: {_first_line(error)}; WANDB_MODE=offline writes to RUN_DIR "
                "alone, and `wandb sync` uploads that later"
            ) from None


class MlflowLog:
    """A run of the MLflow server, or of the data base, that MLFLOW_TRACKING_URI names."""

    remote = True

    def __init__(self, run: LoggedRun) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            raise ModelError(
                "--log mlflow needs to know where to write: set MLFLOW_TRACKING_URI, for example "
                "to http://127.0.0.1:5000 or sqlite:////path/of/mlflow.db"
            )
        # Its defaults repeat a request for minutes, in which training would wait.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException

        self._error, self._metric = MlflowException, Metric
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        with self._writing():
            self._client = MlflowClient(uri)
            self._run = run.ids().mlflow
            if self._run is None:
                found = self._client.get_experiment_by_name(name)
                experiment = found.experiment_id if found else self._client.create_experiment(name)
                started = self._client.create_run(experiment, run_name=run.folder.name)
                self._run = started.info.run_id
                params = [Param(key, str(value)[:500]) for key, value in run.config.items()]
                self._client.log_batch(self._run, params=params)
                if run.about:
                    self._client.set_tag(self._run, "about", run.about)
            else:
                self._client.update_run(self._run, status="RUNNING")
        run.save_id(mlflow=self._run)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = time.time_ns() // 1_000_000
        metrics = [self._metric(name, value, now, step) for name, value in values.items()]
        with self._writing():
            self._client.log_batch(self._run, metrics=metrics)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        with self._writing():
            self._client.log_image(self._run, image, key=name, step=step)

    def close(self, *, finished: bool) -> None:
        with self._writing():
            self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (self._error, OSError) as error:
            raise ModelError(f"MLflow (MLFLOW_TRACKING_URI): {_first_line(error)}") from None


LOGS: dict[str, Callable[[LoggedRun], Log]] = {
    "tensorboard": TensorBoardLog,
    "wandb": WandbLog,
    "mlflow": MlflowLog,
}
"""What `--log` takes. Each needs the extra of its name."""


def require_installed(name: str) -> None:
    """Raise ModelError unless the library of a log is installed."""
    if not find_spec(name):
        raise ModelError(
            f"--log {name} needs {name}, which is not installed: pip install 'maskdepth[{name}]', "
            "or leave the option out"
        )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
