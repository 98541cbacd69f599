"""Logging to MLflow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from metaweight.problems import ConfigurationError

from .base import Logger
from .console import console

BATCH = 1000
"""Records that one request may hold."""


class MLflowLogger(Logger):
    """Log scalars ``tag/name`` to the active MLflow run, starting one if there is none.

    Where and under which experiment is MLflow's to say: ``mlflow.set_tracking_uri``,
    ``mlflow.set_experiment``, or its environment variables. Characters that MLflow does not take in
    a name become ``_``.

    Raises:
        ConfigurationError: When the package ``mlflow`` is not installed.
    """

    def __init__(self) -> None:
        try:
            import mlflow  # noqa: PLC0415
        except ImportError as error:
            raise ConfigurationError(
                "logger_type='mlflow' needs the package mlflow; pip install 'metaweight[mlflow]', "
                "or choose 'tensorboard', 'csv' or 'jsonl'."
            ) from error
        self._mlflow: Any = mlflow
        self._run: str | None = None
        self._is_open = False
        self._is_resumed = False
        self._last: dict[str, int] = {}

    def log(self, stats: Mapping[str, float], tag: str, step: int) -> None:
        if self._mlflow.active_run() is None:
            self._begin()
        values = {re.sub(r"[^\w\-. /]", "_", f"{tag}/{name}"): v for name, v in stats.items()}
        self._mlflow.log_metrics(values, step=step)
        if self._is_open:
            self._last.update(dict.fromkeys(values, step))

    def position(self) -> dict[str, Any]:
        """Return the id of the run, if this logger has started it, and the last step of each
        value."""
        return {"run": self._run, "last": dict(self._last)}

    def resume_from(self, position: Mapping[str, Any]) -> None:
        """Continue that run, or, where it has records of later steps, a copy without these.

        MLflow cannot remove records. The earlier run gets the tag ``resumed_as``, and
        is ended. A run that the program has started itself is its own to choose.
        """
        self.close()
        self._run, self._last = position["run"], dict(position["last"])
        self._is_resumed = self._run is not None

    def close(self) -> None:
        if self._is_open:
            self._mlflow.end_run()
            self._is_open = False

    def _begin(self) -> None:
        run = None
        if self._is_resumed:
            run = self._resumed()
        elif self._run is not None:
            run = self._mlflow.start_run(run_id=self._run)
        if run is None:
            run, self._last = self._mlflow.start_run(), {}
        self._run, self._is_open, self._is_resumed = run.info.run_id, True, False

    def _resumed(self) -> Any:
        client = self._mlflow.MlflowClient()
        try:
            earlier = client.get_run(self._run)
        except self._mlflow.exceptions.MlflowException as error:
            console().warning(
                f"MLflow has no run {self._run} to go on with ({error}); a new one is begun."
            )
            return None
        names = earlier.data.metrics
        history = [m for name in names for m in client.get_metric_history(self._run, name)]
        kept = [m for m in history if m.step <= self._last.get(m.key, -1)]
        if len(kept) == len(history):
            return self._mlflow.start_run(run_id=self._run)
        own_tags = {k: v for k, v in earlier.data.tags.items() if not k.startswith("mlflow.")}
        run = self._mlflow.start_run(
            experiment_id=earlier.info.experiment_id, run_name=earlier.info.run_name, tags=own_tags
        )
        self._mlflow.log_params(earlier.data.params)
        for batch in _batches(kept):
            client.log_batch(run.info.run_id, metrics=batch)
        client.set_tag(self._run, "resumed_as", run.info.run_id)
        client.set_terminated(self._run, status="KILLED")
        return run


def _batches(records: list[Any]) -> Iterator[list[Any]]:
    return (records[i : i + BATCH] for i in range(0, len(records), BATCH))
