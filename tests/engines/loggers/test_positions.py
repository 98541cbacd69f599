"""Logs of a run that goes on: in the same folder, without a row too many or too few."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from metaweight.engines.loggers import make_run_logger
from support.small import problem, single

from metaweight import Config


def folders(log_dir: Path) -> list[Path]:
    return sorted(p for p in log_dir.iterdir() if p.is_dir())


def scalars(folder: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return [(e.step, e.value) for e in events.Scalars("run/loss")]


def log_to(kind: str, log_dir: Path, position: Any, steps: range) -> Any:
    """Log in a new process, as it were, and return where the records stood after two."""
    logger = make_run_logger([kind], log_dir)
    if position is not None:
        logger.resume_from(position)
    found = None
    for number, step in enumerate(steps):
        logger.log({"loss": float(step)}, step=step)
        if number == 1:
            found = logger.position()
    logger.close()
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["csv", "jsonl", "tensorboard"])
def test_rows_after_the_checkpoint_are_not_doubled(kind: str, tmp_path: Path) -> None:
    first = log_to(kind, tmp_path, None, range(1, 6))
    log_to(kind, tmp_path, first, range(3, 5))
    second = log_to(kind, tmp_path, first, range(3, 8))
    log_to(kind, tmp_path, second, range(5, 7))
    (folder,) = folders(tmp_path)
    if kind == "tensorboard":
        assert scalars(folder) == [(n, float(n)) for n in range(1, 7)]
        return
    whole = tmp_path / "whole"
    log_to(kind, whole, None, range(1, 7))
    (expected,) = folders(whole)
    name = "metrics.csv" if kind == "csv" else "metrics.jsonl"
    assert (folder / name).read_text() == (expected / name).read_text()


def test_a_run_that_has_logged_nothing_yet_has_no_folder_to_go_on_in(tmp_path: Path) -> None:
    position = make_run_logger(["csv"], tmp_path).position()
    assert position == {"folder": None, "loggers": [["CSVLogger", {"bytes": 0}]]}
    make_run_logger(["csv"], tmp_path).resume_from(position)
    assert not folders(tmp_path)


def test_a_folder_that_is_gone_is_begun_anew_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    logger = make_run_logger(["csv"], tmp_path)
    monkeypatch.setattr(logger, "warning", said.append)
    logger.resume_from({"folder": "20240101-000000", "loggers": [["CSVLogger", {"bytes": 5}]]})
    assert "is not below log_dir" in said[0]
    logger.log({"a": 1.0})
    logger.close()
    assert len(folders(tmp_path)) == 1


@pytest.mark.parametrize("name", ["..", ".", "", "../outside", "/etc", "a/../../outside"])
def test_a_folder_elsewhere_is_not_touched(name: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "logs").mkdir()
    for place in (outside, tmp_path):
        (place / "metrics.csv").write_text("precious")
    logger = make_run_logger(["csv"], tmp_path / "logs")
    logger.resume_from({"folder": name, "loggers": [["CSVLogger", {"bytes": 0}]]})
    logger.log({"a": 1.0})
    logger.close()
    assert (outside / "metrics.csv").read_text() == "precious"
    assert (tmp_path / "metrics.csv").read_text() == "precious"


def test_a_logger_the_saved_run_had_not_begins_in_the_same_folder(tmp_path: Path) -> None:
    first = make_run_logger(["csv"], tmp_path)
    first.log({"a": 1.0})
    second = make_run_logger(["jsonl", "csv"], tmp_path)
    second.resume_from(first.position())
    second.log({"a": 2.0})
    for logger in (first, second):
        logger.close()
    (folder,) = folders(tmp_path)
    assert (folder / "metrics.csv").read_text().count("\n") == 3
    assert (folder / "metrics.jsonl").read_text().count("\n") == 1


def test_loading_alone_cuts_no_log(tmp_path: Path) -> None:
    def build() -> Any:
        config = Config(log_step=1)
        return single(problem(config=config), steps=4, logger_type="csv", log_dir=tmp_path / "logs")

    engine = build()
    engine.train_iters = 2
    engine.run()
    engine.save(tmp_path / "a.ckpt")
    engine.train_iters = 1
    engine.run()
    (folder,) = folders(tmp_path / "logs")
    before = (folder / "metrics.csv").read_text()
    other = build()
    other.load(tmp_path / "a.ckpt")
    assert (folder / "metrics.csv").read_text() == before
    other.run()
    assert (folder / "metrics.csv").read_text().count("\n") == 5
