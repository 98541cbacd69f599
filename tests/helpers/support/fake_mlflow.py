"""The names of MLflow that a logger uses, with runs in memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple


class Record(NamedTuple):
    key: str
    step: int
    value: float


class MlflowException(Exception):
    pass


class Run:
    def __init__(self, number: int, name: str | None, tags: Mapping[str, str] | None) -> None:
        self.info = SimpleNamespace(
            run_id=f"run{number}", run_name=name or f"name{number}", experiment_id="0"
        )
        self.info.status = "RUNNING"
        self.params: dict[str, str] = {}
        self.tags = {"mlflow.user": "somebody", **(tags or {})}
        self.history: dict[str, list[Record]] = defaultdict(list)

    @property
    def data(self) -> Any:
        latest = {key: records[-1].value for key, records in self.history.items()}
        return SimpleNamespace(metrics=latest, params=self.params, tags=self.tags)


class FakeMlflow:
    exceptions = SimpleNamespace(MlflowException=MlflowException)

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self._active: Run | None = None

    def MlflowClient(self) -> FakeMlflow:
        return self

    def active_run(self) -> Run | None:
        return self._active

    def start_run(
        self,
        run_id: str | None = None,
        experiment_id: str | None = None,
        run_name: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Run:
        assert self._active is None
        assert experiment_id in (None, "0")
        self._active = (
            Run(len(self.runs), run_name, tags) if run_id is None else self.get_run(run_id)
        )
        self._active.info.status = "RUNNING"
        self.runs[self._active.info.run_id] = self._active
        return self._active

    def end_run(self) -> None:
        if self._active is not None:
            self._active.info.status, self._active = "FINISHED", None

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        assert self._active is not None
        found = [Record(key, step, value) for key, value in values.items()]
        self.log_batch(self._active.info.run_id, found)

    def log_params(self, params: Mapping[str, str]) -> None:
        assert self._active is not None
        self._active.params.update(params)

    def log_batch(self, run_id: str, metrics: Iterable[Record]) -> None:
        for record in metrics:
            self.runs[run_id].history[record.key].append(record)

    def get_run(self, run_id: str) -> Run:
        if run_id not in self.runs:
            raise MlflowException(f"Run {run_id!r} not found")
        return self.runs[run_id]

    def get_metric_history(self, run_id: str, key: str) -> list[Record]:
        return self.runs[run_id].history[key]

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self.runs[run_id].tags[key] = value

    def set_terminated(self, run_id: str, status: str) -> None:
        self.runs[run_id].info.status = status
