"""What Weights & Biases gets, from a stand-in for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from metaweight.engines.loggers import make_run_logger


class Error(Exception):
    pass


class Run:
    def __init__(self, number: int) -> None:
        self.id = f"run{number}"
        self.records: list[dict[str, float]] = []
        self.finished = 0

    @property
    def step(self) -> int:
        return len(self.records)


class FakeWandB:
    """The names of wandb a logger uses, and runs that can be rewound if ``rewinds``."""

    Error = Error

    def __init__(self) -> None:
        self.run: Any = None
        self.runs: dict[str, Run] = {}
        self.rewinds = True
        self.settings: list[dict[str, Any]] = []

    def init(
        self, *, id: str | None = None, resume_from: str | None = None, **settings: Any
    ) -> Run:
        self.settings.append({"id": id, "resume_from": resume_from, **settings})
        if resume_from is not None:
            if not self.rewinds:
                raise Error("not enabled")
            name, _, step = resume_from.partition("?_step=")
            self.run = self.runs[name]
            del self.run.records[int(step) + 1 :]
        else:
            self.run = Run(len(self.runs)) if id is None else self.runs[id]
            self.run.finish = self.finish
            self.runs[self.run.id] = self.run
        return self.run

    def log(self, record: dict[str, float]) -> None:
        self.run.records.append(record)

    def finish(self) -> None:
        self.run.finished += 1
        self.run = None


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandB:
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_it_gets_tagged_values_and_a_run_the_logger_did_not_start_is_left_open(
    wandb: FakeWandB, tmp_path: Path
) -> None:
    logger = make_run_logger(["wandb"], tmp_path)
    logger.log({"loss": 0.5}, tag="inner", step=7)
    logger.close()
    (run,) = wandb.runs.values()
    assert run.records == [{"inner/loss": 0.5, "global_step": 7}]
    assert run.finished == 1
    wandb.run = other = Run(9)
    logger.log({"loss": 0.25}, tag="inner", step=8)
    logger.close()
    assert other.finished == 0
    assert len(other.records) == 1


def interrupted(tmp_path: Path) -> Any:
    """Log three records, and return the position after two of them."""
    logger = make_run_logger(["wandb"], tmp_path)
    for step in (1, 2):
        logger.log({"a": float(step)}, step=step)
    position = logger.position()
    logger.log({"a": -1.0}, step=3)
    logger.close()
    return position


def resumed(position: Any, tmp_path: Path, steps: range) -> Any:
    logger = make_run_logger(["wandb"], tmp_path)
    logger.resume_from(position)
    for step in steps:
        logger.log({"a": float(step)}, step=step)
    found = logger.position()
    logger.close()
    return found


def test_a_run_is_rewound_to_the_checkpoint_and_gone_on_with(
    wandb: FakeWandB, tmp_path: Path
) -> None:
    position = interrupted(tmp_path)
    position = resumed(position, tmp_path, range(3, 5))
    resumed(position, tmp_path, range(5, 6))
    (run,) = wandb.runs.values()
    assert run.records == [{"run/a": float(n), "global_step": n} for n in range(1, 6)]
    assert [given["resume_from"] for given in wandb.settings] == [
        None,
        "run0?_step=1",
        "run0?_step=3",
    ]


def test_records_are_marked_where_a_run_cannot_be_rewound(
    wandb: FakeWandB, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wandb.rewinds = False
    position = interrupted(tmp_path)
    position = resumed(position, tmp_path, range(3, 4))
    resumed(position, tmp_path, range(4, 5))
    (run,) = wandb.runs.values()
    marks = [(record["global_step"], record.get("resumed")) for record in run.records]
    assert marks == [(1, None), (2, None), (3, None), (3, 1), (4, 2)]
    assert wandb.settings[-1]["id"] == "run0"
    assert wandb.settings[-1]["resume"] == "allow"
    assert caplog.messages[0] == (
        "W&B does not rewind run run0 (not enabled). Its records from after the checkpoint remain; "
        "those of the resumed run have resumed=1."
    )


def test_a_checkpoint_of_an_earlier_version_marks_records(wandb: FakeWandB, tmp_path: Path) -> None:
    folder = interrupted(tmp_path)["folder"]
    saved = {"folder": folder, "loggers": [["WandBLogger", {"run": "run0"}]]}
    resumed(saved, tmp_path, range(4, 5))
    assert wandb.runs["run0"].records[-1] == {"run/a": 4.0, "resumed": 1, "global_step": 4}


def test_its_run_is_gone_on_with_where_the_folder_is_gone(wandb: FakeWandB, tmp_path: Path) -> None:
    position = interrupted(tmp_path / "a")
    resumed(position, tmp_path / "b", range(3, 4))
    assert list(wandb.runs) == ["run0"]
    assert wandb.runs["run0"].step == 3
