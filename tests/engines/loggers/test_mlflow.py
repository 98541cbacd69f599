"""Logs in MLflow, read back: from a stand-in, and from MLflow's own files where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from metaweight.engines.loggers import make_run_logger
from support.fake_mlflow import FakeMlflow
from support.small import problem, single

from metaweight import Config


@pytest.fixture(params=["stand-in", "mlflow"])
def mlflow(request: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    if request.param == "stand-in":
        fake = FakeMlflow()
        monkeypatch.setitem(sys.modules, "mlflow", fake)
        return fake
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    real = pytest.importorskip("mlflow")
    real.set_tracking_uri(f"file://{tmp_path}/mlruns")
    request.addfinalizer(real.end_run)
    return real


def logger(tmp_path: Path) -> Any:
    return make_run_logger(["mlflow"], tmp_path / "logs")


def runs(mlflow: Any) -> list[Any]:
    """The runs, the first one first."""
    if isinstance(mlflow, FakeMlflow):
        return list(mlflow.runs.values())
    found = mlflow.search_runs(output_format="list", order_by=["attributes.start_time ASC"])
    return [mlflow.get_run(run.info.run_id) for run in found]


def scalars(mlflow: Any, run: Any, key: str) -> list[tuple[int, float]]:
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, key)
    return [(record.step, record.value) for record in history]


pytestmark = pytest.mark.filterwarnings("ignore")


def test_values_are_tagged_and_the_run_is_gone_on_with_after_closing(
    mlflow: Any, tmp_path: Path
) -> None:
    log = logger(tmp_path)
    log.log({"loss": 0.5, "acc@5": 1.0}, tag="inner", step=3)
    log.close()
    assert mlflow.active_run() is None
    log.log({"loss": 0.25}, tag="inner", step=4)
    log.close()
    (run,) = runs(mlflow)
    assert scalars(mlflow, run, "inner/loss") == [(3, 0.5), (4, 0.25)]
    assert scalars(mlflow, run, "inner/acc_5") == [(3, 1.0)]
    assert run.info.status == "FINISHED"
    assert not (tmp_path / "logs").exists()


def test_a_run_it_did_not_start_is_used_and_left_open(mlflow: Any, tmp_path: Path) -> None:
    started = mlflow.start_run()
    log = logger(tmp_path)
    log.log({"loss": 0.5}, tag="inner", step=3)
    assert log.position()["loggers"] == [["MLflowLogger", {"run": None, "last": {}}]]
    log.close()
    assert mlflow.active_run().info.run_id == started.info.run_id
    assert scalars(mlflow, started, "inner/loss") == [(3, 0.5)]


def test_a_resumed_run_has_no_record_from_after_the_checkpoint(mlflow: Any, tmp_path: Path) -> None:
    first = logger(tmp_path)
    first.log({"loss": 1.0}, tag="inner", step=1)
    mlflow.log_params({"lr": "0.1"})
    first.log({"loss": 2.0, "acc": 0.5}, tag="inner", step=2)
    position = first.position()
    for step in (3, 4):
        first.log({"loss": -1.0, "acc": -1.0, "late": -1.0}, tag="inner", step=step)
    first.log({"loss": -1.0}, tag="validation", step=4)
    first.close()

    second = logger(tmp_path)
    second.resume_from(position)
    assert len(runs(mlflow)) == 1
    second.log({"loss": 3.0}, tag="inner", step=3)
    second.close()
    old, new = runs(mlflow)
    assert scalars(mlflow, new, "inner/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert scalars(mlflow, new, "inner/acc") == [(2, 0.5)]
    assert sorted(new.data.metrics) == ["inner/acc", "inner/loss"]
    assert (new.info.run_name, new.data.params) == (old.info.run_name, {"lr": "0.1"})
    assert old.data.tags["resumed_as"] == new.info.run_id
    assert (old.info.status, new.info.status) == ("KILLED", "FINISHED")
    assert second.position()["loggers"][0][1]["last"] == {"inner/loss": 3, "inner/acc": 2}


def test_a_run_without_later_records_is_gone_on_with(mlflow: Any, tmp_path: Path) -> None:
    first = logger(tmp_path)
    first.log({"loss": 1.0}, tag="inner", step=1)
    position = first.position()
    first.close()
    second = logger(tmp_path)
    second.resume_from(position)
    second.log({"loss": 2.0}, tag="inner", step=2)
    second.close()
    (run,) = runs(mlflow)
    assert scalars(mlflow, run, "inner/loss") == [(1, 1.0), (2, 2.0)]


def test_a_run_that_is_gone_is_begun_anew_with_a_warning(
    mlflow: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = logger(tmp_path)
    saved = {"run": "0123456789abcdef0123456789abcdef", "last": {"inner/loss": 7}}
    log.resume_from({"folder": None, "loggers": [["MLflowLogger", saved]]})
    log.log({"loss": 1.0}, tag="inner", step=1)
    log.close()
    assert "MLflow has no run 0123456789abcdef0123456789abcdef to go on with" in caplog.text
    assert log.position()["loggers"][0][1]["last"] == {"inner/loss": 1}
    (run,) = runs(mlflow)
    assert scalars(mlflow, run, "inner/loss") == [(1, 1.0)]


def test_an_interrupted_program_logs_what_the_whole_one_does(mlflow: Any, tmp_path: Path) -> None:
    def program() -> Any:
        chosen = {"logger_type": "mlflow", "log_dir": tmp_path / "logs"}
        return single(problem(config=Config(log_step=1)), steps=4, **chosen)

    program().run()
    first = program()
    first.train_iters = 2
    first.run()
    first.save(tmp_path / "saved.pt")
    first.train_iters = 1
    first.run()
    program().run(resume=tmp_path / "saved.pt")
    whole, interrupted, resumed = runs(mlflow)
    assert [step for step, _ in scalars(mlflow, whole, "chase/loss")] == [1, 2, 3, 4]
    assert [step for step, _ in scalars(mlflow, interrupted, "chase/loss")] == [1, 2, 3]
    assert scalars(mlflow, resumed, "chase/loss") == scalars(mlflow, whole, "chase/loss")
