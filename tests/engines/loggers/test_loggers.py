"""Where the numbers of a run end up, read back from where they were written."""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from metaweight.engines import RunLogger
from metaweight.engines.loggers import (
    JSONLinesLogger,
    Logger,
    console,
    flatten_stats,
    make_run_logger,
)
from support.small import Chase, bilevel, problem, single

from metaweight import Config, ConfigurationError, Engine


def test_values_become_plain_numbers() -> None:
    flat = flatten_stats(
        {
            "zero_dim": torch.tensor(0.5, requires_grad=True),
            "one": torch.tensor([[2.0]]),
            "vector": torch.tensor([1.0, 2.0]),
            "nested": {"a": 1, "deep": {"b": torch.tensor(3)}},
            "list": [4, {"c": 5.0}],
            "tuple": (6.0,),
            "flag": True,
            "array": np.array([7.0, 8.0]),
            "scalar_array": np.array([9.0]),
            "numpy": np.float32(10.0),
            "text": "left out",
            "none": None,
        }
    )
    assert flat == {
        "zero_dim": 0.5,
        "one": 2.0,
        "vector_0": 1.0,
        "vector_1": 2.0,
        "nested_a": 1.0,
        "nested_deep_b": 3.0,
        "list_0": 4.0,
        "list_1_c": 5.0,
        "tuple_0": 6.0,
        "flag": 1.0,
        "array_0": 7.0,
        "array_1": 8.0,
        "scalar_array": 9.0,
        "numpy": 10.0,
    }
    assert {type(value) for value in flat.values()} == {float}


def run_folder(log_dir: Path) -> Path:
    (folder,) = log_dir.iterdir()
    return folder


def test_csv_has_one_header_and_a_row_per_value_also_after_closing(tmp_path: Path) -> None:
    logger = make_run_logger(["csv"], tmp_path)
    logger.log({"loss": torch.tensor(0.5), "acc": 1}, tag="inner", step=3)
    logger.close()
    logger.log({"loss": float("nan")}, tag="validation", step=4)
    logger.close()
    with (run_folder(tmp_path) / "metrics.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["step", "tag", "name", "value"],
            ["3", "inner", "loss", "0.5"],
            ["3", "inner", "acc", "1.0"],
            ["4", "validation", "loss", "nan"],
        ]


def test_json_lines_are_strict_json(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    logger = make_run_logger(["jsonl"], tmp_path)
    logger.log({"loss": float("nan"), "norm": float("inf"), "acc": 0.25}, tag="a", step=1)
    logger.log({"loss": 2.0})
    text = (run_folder(tmp_path) / "metrics.jsonl").read_text()
    logger.close()
    assert [json.loads(line, parse_constant=refuse) for line in text.splitlines()] == [
        {"step": 1, "tag": "a", "loss": None, "norm": None, "acc": 0.25},
        {"step": 0, "tag": "run", "loss": 2.0},
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_tensorboard_events_read_back_as_they_were_logged(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
    )
    logger = make_run_logger(["tensorboard"], tmp_path)
    logger.log({"loss": 0.5}, tag="inner", step=1)
    logger.close()
    logger.log({"loss": 0.25, "acc": 1.0}, tag="inner", step=2)
    logger.close()
    events = accumulator.EventAccumulator(str(run_folder(tmp_path)))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["inner/acc", "inner/loss"]
    assert [(e.step, e.value) for e in events.Scalars("inner/loss")] == [(1, 0.5), (2, 0.25)]


@pytest.mark.parametrize(
    ("logger_type", "module"),
    [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow")],
)
def test_a_missing_package_is_named(
    logger_type: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ConfigurationError,
        match=rf"needs the package {logger_type};\s+pip install 'metaweight\[{logger_type}\]'",
    ):
        make_run_logger([logger_type], tmp_path)


def test_several_loggers_share_a_folder_made_at_the_first_record(tmp_path: Path) -> None:
    log_dir = tmp_path / "logs"
    logger = make_run_logger(["none", "csv", "jsonl"], log_dir)
    logger.log({})
    logger.close()
    assert not log_dir.exists()
    logger.log({"loss": 1.0})
    logger.close()
    names = sorted(path.name for path in run_folder(log_dir).iterdir())
    assert names == ["metrics.csv", "metrics.jsonl"]


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    for value in (1.0, 2.0, 3.0):
        logger = make_run_logger(["jsonl"], tmp_path)
        logger.log({"loss": value})
        logger.close()
    losses = [
        json.loads((folder / "metrics.jsonl").read_text())["loss"] for folder in tmp_path.iterdir()
    ]
    assert sorted(losses) == [1.0, 2.0, 3.0]


class Kept(Logger):
    def __init__(self) -> None:
        self.records: list[tuple[dict[str, float], str, int]] = []
        self.closed = 0

    def log(self, stats: Any, tag: str, step: int) -> None:
        self.records.append((dict(stats), tag, step))

    def close(self) -> None:
        self.closed += 1


class WithAccuracy(Chase):
    def training_step(self, batch: Any) -> Any:
        return {"loss": super().training_step(batch), "acc": torch.tensor([0.75])}


def test_an_engine_writes_what_its_configuration_asks_for(tmp_path: Path) -> None:
    class Validating(Engine):
        def validation(self) -> dict[str, float]:
            return {"acc": 0.125}

    lower = problem(WithAccuracy, config=Config(log_step=2))
    single(
        lower, engine=Validating, steps=4, valid_step=3, logger_type="jsonl", log_dir=tmp_path
    ).run()
    text = (run_folder(tmp_path) / "metrics.jsonl").read_text()
    # The loss at step n is 0.5 (0.9^(n-1))².
    assert [json.loads(line) for line in text.splitlines()] == [
        {"step": 2, "tag": "chase", "loss": pytest.approx(0.5 * 0.81), "acc": 0.75},
        {"step": 3, "tag": "validation", "acc": 0.125},
        {"step": 4, "tag": "chase", "loss": pytest.approx(0.5 * 0.9**6), "acc": 0.75},
    ]


@pytest.mark.parametrize(("local", "steps"), [(False, [11, 12]), (True, [1, 2])])
def test_log_local_step_chooses_the_step_logged_against(local: bool, steps: list[int]) -> None:
    engine = single(problem(config=Config(log_step=1, log_local_step=local)), steps=2)
    engine.global_step = 10
    kept = Kept()
    engine.logger.loggers = (kept,)
    engine.run()
    assert [(tag, step) for _, tag, step in kept.records] == [("chase", s) for s in steps]


def test_a_logger_of_ones_own_is_given_in_place_of_a_name_or_beside_it(tmp_path: Path) -> None:
    chosen: list[Any] = [Kept(), (Kept(), "jsonl", Kept())]
    for given in chosen:
        lower = problem(config=Config(log_step=1))
        single(lower, steps=2, logger_type=given, log_dir=tmp_path / "logs").run()
        for own in [given] if isinstance(given, Kept) else [given[0], given[2]]:
            assert [(tag, step) for _, tag, step in own.records] == [("chase", 1), ("chase", 2)]
            assert own.closed == 1
    assert rows_of(tmp_path / "logs") == [(1, "chase"), (2, "chase")]


class Cutting(Kept):
    """Keeps its records elsewhere, and can cut them."""

    def __init__(self, records: list[Any]) -> None:
        super().__init__()
        self.records = records

    def position(self) -> dict[str, Any]:
        return {"records": len(self.records)}

    def resume_from(self, position: Any) -> None:
        del self.records[position["records"] :]


def test_loggers_of_ones_own_are_resumed_each_from_its_position(tmp_path: Path) -> None:
    kept: list[list[Any]] = [[], [("earlier", "a", 0)]]

    def built() -> Engine:
        own = tuple(Cutting(records) for records in kept)
        return single(problem(config=Config(log_step=1)), steps=3, logger_type=own)

    first = built()
    first.train_iters = 1
    first.run()
    first.save(tmp_path / "saved.pt")
    first.train_iters = 2
    first.run()
    built().run(resume=tmp_path / "saved.pt")
    assert [step for _, _, step in kept[0]] == [1, 2, 3]
    assert kept[1] == [("earlier", "a", 0), *kept[0]]


@contextmanager
def fresh_console() -> Iterator[None]:
    """The package's logger as if nobody had set it up, root handlers included."""
    loggers = [logging.getLogger("metaweight"), logging.getLogger()]
    before = [(logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    for logger in loggers:
        logger.handlers.clear()
    loggers[0].setLevel(logging.NOTSET)
    try:
        yield
    finally:
        restore(loggers, before)


def restore(loggers: list[logging.Logger], before: list[Any]) -> None:
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers
        logger.propagate = propagate
        logger.setLevel(level)


def test_console_lines_say_which_problem_and_step(capsys: pytest.CaptureFixture[str]) -> None:
    with fresh_console():
        single(problem(name="inner", config=Config(log_step=1)), steps=1).run()
    line = capsys.readouterr().out.rstrip("\n")
    stamp, message = line.split(" [INFO] ")
    assert len(stamp) == len("[2024-01-01 00:00:00]")
    assert message == '[Problem "inner"] [Global Step 1] [Local Step 1] loss: 0.5'


def test_console_is_set_up_once_and_a_set_up_one_is_left_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with fresh_console():
        RunLogger()
        RunLogger().warning("mind %s", "this")
        assert capsys.readouterr().out.count("mind this") == 1
        logger = logging.getLogger("metaweight")
        own = logging.NullHandler()
        logger.handlers[:] = [own]
        logger.setLevel(logging.ERROR)
        assert console().handlers == [own]
        assert console().level == logging.ERROR


def rows_of(log_dir: Path) -> list[tuple[int, str]]:
    text = (run_folder(log_dir) / "metrics.jsonl").read_text()
    return [(row["step"], row["tag"]) for row in map(json.loads, text.splitlines())]


@pytest.mark.parametrize(
    ("steps", "logged"),
    [(1, [1]), (3, [3]), (99, [99]), (100, [100]), (250, [100, 200])],
)
def test_a_logger_that_was_asked_for_gets_losses_without_being_told_how_often(
    steps: int, logged: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with fresh_console():
        single(problem(), steps=steps, logger_type="jsonl", log_dir=tmp_path).run()
    assert rows_of(tmp_path) == [(n, "chase") for n in logged]
    assert capsys.readouterr().out == ""


class Looking(Engine):
    def validation(self) -> dict[str, float]:
        return {"acc": 0.5}


def test_every_level_is_logged_beside_validations(tmp_path: Path) -> None:
    bilevel(
        inner_config=Config(unroll_steps=50),
        engine=Looking,
        steps=110,
        valid_step=60,
        logger_type="jsonl",
        log_dir=tmp_path,
    ).run()
    assert rows_of(tmp_path) == [(60, "validation"), (100, "inner"), (100, "outer")]


def test_a_resumed_run_logs_what_the_whole_one_does(tmp_path: Path) -> None:
    def built(**settings: Any) -> Engine:
        chosen = {"logger_type": "jsonl", "log_dir": tmp_path / "logs", **settings}
        return single(problem(), steps=130, **chosen)

    first = built()
    first.train_iters = 120
    first.run()
    first.save(tmp_path / "saved.pt")
    resumed = built()
    resumed.run(resume=str(tmp_path / "saved.pt"))
    assert rows_of(tmp_path / "logs") == [(100, "chase")]


def test_never_is_never(tmp_path: Path) -> None:
    lower = problem(config=Config(log_step=-1))
    single(lower, steps=3, logger_type="csv", log_dir=tmp_path).run()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_not_asked_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with fresh_console():
        single(problem(), steps=3, log_dir=tmp_path).run()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_messages_do_not_stand_in_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with fresh_console(), redirect_stderr(Terminal()) as terminal:
        single(problem(config=Config(log_step=1)), steps=2).run()
    assert capsys.readouterr().out.count("[Local Step") == 2
    # Wiped for each message and drawn again: without that, it is drawn twice.
    assert terminal.getvalue().count("\r") > 4


def test_values_named_as_the_records_own_replace_nothing(tmp_path: Path) -> None:
    logger = JSONLinesLogger(lambda: tmp_path)
    logger.log({"loss": 1.0, "step": 77.0, "tag": 3.0}, "net", 5)
    logger.close()
    record = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert record == {"step": 5, "tag": "net", "loss": 1.0, "net/step": 77.0, "net/tag": 3.0}
