"""Saving during a run: which files are kept, going on with the latest, and what can fail."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from metaweight.engines.checkpoint.file import read_manifest
from support.resuming import difference, everything, seed_all, two_levels
from support.small import Point, numbers, problem, single

from metaweight import CheckpointError, ConfigurationError, Engine, EngineConfig, Hook
from metaweight.data import LabelledTensors, TensorLoader


def steps(folder: Path) -> list[int]:
    return sorted(int(p.name[5:-5]) for p in folder.iterdir() if p.suffix == ".ckpt")


class Scored(Engine):
    """Validates by a given list of numbers."""

    scores: tuple[float, ...] = (3.0, 1.0, 2.0, float("nan"), 0.5, 4.0)

    def validation(self) -> dict[str, float]:
        return {"acc": self.scores[self.global_step - 1]}


def run(folder: Path, count: int = 6, engine: type[Engine] = Engine, **settings: Any) -> Any:
    resume = settings.pop("resume", None)
    made = single(problem(), engine=engine, steps=count, checkpoint_dir=folder, **settings)
    made.run(resume=resume)
    return made


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    run(tmp_path, 8, checkpoint_step=2, keep_last=2)
    assert steps(tmp_path) == [6, 8]


def test_the_end_of_a_run_is_saved_whatever_the_steps(tmp_path: Path) -> None:
    run(tmp_path, 7, checkpoint_step=3, keep_last=None)
    assert steps(tmp_path) == [3, 6, 7]


def test_without_a_step_it_is_that_of_validation(tmp_path: Path) -> None:
    run(tmp_path, 6, valid_step=3, keep_last=None)
    assert steps(tmp_path) == [3, 6]


@pytest.mark.parametrize(
    ("mode", "kept"), [("min", [2, 5, 6]), ("max", [1, 6])], ids=["min", "max"]
)
def test_the_best_ones_are_kept_beside_the_last(mode: str, kept: list[int], tmp_path: Path) -> None:
    run(
        tmp_path,
        engine=Scored,
        valid_step=1,
        checkpoint_step=100,
        keep_last=1,
        keep_best=2,
        checkpoint_metric="acc",
        checkpoint_mode=mode,
    )
    assert steps(tmp_path) == kept
    manifest = read_manifest(tmp_path / f"step-{kept[0]:010d}.ckpt")
    assert (manifest.metric, manifest.value) == ("acc", Scored.scores[kept[0] - 1])


def test_the_best_are_remembered_when_resuming(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"engine": Scored, "valid_step": 1, "keep_last": 1, "keep_best": 1}
    settings |= {"checkpoint_metric": "acc", "checkpoint_step": 100}
    run(tmp_path, 3, **settings)
    assert steps(tmp_path) == [2, 3]
    run(tmp_path, 4, **settings, resume="auto")
    assert steps(tmp_path) == [2, 4]
    run(tmp_path, 6, **settings, resume="auto")
    assert steps(tmp_path) == [5, 6]


def test_a_metric_that_validation_does_not_return_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"ranks checkpoints by 'loss', but .*'acc'"):
        run(tmp_path, engine=Scored, valid_step=1, keep_best=1)


def test_ranking_without_a_validation_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="but Engine has none; override validation"):
        run(tmp_path, keep_best=1)


def test_auto_starts_anew_where_there_is_nothing_and_goes_on_where_there_is(
    tmp_path: Path,
) -> None:
    assert run(tmp_path / "saved", 3, resume="auto").global_step == 3
    engine = run(tmp_path / "saved", 5, resume="auto")
    assert (engine.global_step, engine.chase.count) == (5, 5)
    assert torch.equal(engine.chase.module.w, run(tmp_path / "other", 5).chase.module.w)


def test_a_run_that_has_ended_is_resumed_to_do_nothing(tmp_path: Path) -> None:
    first = run(tmp_path, 3)
    second = run(tmp_path, 3, resume="auto")
    assert not difference(everything(first), everything(second))


def test_auto_needs_a_folder() -> None:
    with pytest.raises(ConfigurationError, match=r"resume='auto'\) looks for .* was not given"):
        single(problem()).run(resume="auto")


def test_a_folder_with_another_run_is_refused(tmp_path: Path) -> None:
    run(tmp_path, 3)
    before = (tmp_path / "step-0000000003.ckpt").read_bytes()
    with pytest.raises(CheckpointError, match=r"holds checkpoints of another run, such as step-"):
        run(tmp_path, 3)
    assert (tmp_path / "step-0000000003.ckpt").read_bytes() == before


def test_a_second_run_of_the_same_engine_goes_on_saving(tmp_path: Path) -> None:
    engine = run(tmp_path, 2, keep_last=None)
    engine.run()
    assert steps(tmp_path) == [2, 4]


def test_later_steps_are_not_overwritten_by_going_back(tmp_path: Path) -> None:
    run(tmp_path, 4, checkpoint_step=1, keep_last=None)
    path = tmp_path / "step-0000000002.ckpt"
    with pytest.raises(CheckpointError, match=r"holds step-0000000003.ckpt, a later step of this"):
        run(tmp_path, 4, resume=path)
    assert steps(tmp_path) == [1, 2, 3, 4]
    # In a folder of its own it may.
    assert run(tmp_path / "new", 4, resume=path).global_step == 4


def test_a_damaged_file_is_set_aside_and_the_one_before_it_taken(tmp_path: Path) -> None:
    whole = run(tmp_path, 5, checkpoint_step=1)
    last = tmp_path / "step-0000000005.ckpt"
    last.write_bytes(last.read_bytes()[:-5])
    with listening() as said:
        again = run(tmp_path, 5, checkpoint_step=1, resume="auto")
    assert "is damaged" in said[0] and "renamed to step-0000000005.ckpt.damaged" in said[0]
    assert not difference(everything(whole), everything(again))
    assert last.exists()


def test_when_all_are_damaged_it_says_so_and_does_not_start_anew(tmp_path: Path) -> None:
    run(tmp_path, 2)
    for file in tmp_path.iterdir():
        file.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"All checkpoints in .* are damaged"):
        run(tmp_path, 3, resume="auto")


class Breaking(Hook):
    """Does something to the folder in the middle of a run."""

    only_shows = True

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def iteration_end(self, engine: Engine) -> None:
        if engine.global_step == self.step:
            self.action()


@contextmanager
def listening() -> Iterator[list[str]]:
    """What the package says meanwhile."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger, listener = logging.getLogger("metaweight"), Listener()
    logger.addHandler(listener)
    try:
        yield said
    finally:
        logger.removeHandler(listener)


@pytest.mark.parametrize("policy", ["warn", "raise"])
def test_a_vanished_folder(policy: str, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    hook = Breaking(3, lambda: shutil.rmtree(folder))
    settings: dict[str, Any] = {"checkpoint_step": 1, "checkpoint_failure": policy}
    with listening() as said:
        if policy == "raise":
            with pytest.raises(CheckpointError, match="no such file or directory"):
                run(folder, 5, hooks=[hook], **settings)
        else:
            assert run(folder, 5, hooks=[hook], **settings).global_step == 5
            assert "no such file or directory" in said[0]
            assert "The run goes on without it." in said[0]


@pytest.mark.parametrize("policy", ["warn", "raise"])
def test_a_full_disk(
    policy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fill() -> None:
        def full(*args: Any) -> None:
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr(os, "fsync", full)

    settings: dict[str, Any] = {"checkpoint_step": 1, "checkpoint_failure": policy}
    with listening() as said:
        if policy == "raise":
            with pytest.raises(CheckpointError, match="no space left on device"):
                run(tmp_path, 5, hooks=[Breaking(3, fill)], **settings)
        else:
            assert run(tmp_path, 5, hooks=[Breaking(3, fill)], **settings).global_step == 5
            # At steps 3, 4 and 5, and once more at the end.
            assert sum("no space left on device" in text for text in said) == 4
    assert steps(tmp_path) == [1, 2]
    assert not list(tmp_path.glob(".*"))
    monkeypatch.undo()
    assert run(tmp_path, 5, resume="auto").global_step == 5


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="cannot be written to: Permission denied"):
            run(tmp_path, 2)
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_cannot_be_made_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    engine = single(problem(), checkpoint_dir=tmp_path / "file" / "saved")
    with pytest.raises(CheckpointError, match=r"cannot be written to: .*; give a folder that can"):
        engine.run()
    assert engine.global_step == 0


def test_leftovers_of_a_killed_process_are_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".step-0000000007.ckpt.partial").write_bytes(b"half")
    run(tmp_path, 2)
    assert not list(tmp_path.glob(".*"))


def test_a_loader_two_problems_share_is_refused_where_it_cannot_be_resumed(tmp_path: Path) -> None:
    data = LabelledTensors(
        torch.zeros(4, 1, dtype=torch.float64), *[torch.arange(4)] * 3, num_classes=4
    )
    shared = TensorLoader(data, 2)
    levels = [problem(name=name, data=shared, module=Point(0.0)) for name in ("one", "two")]
    engine = Engine(levels, EngineConfig(strategy="cpu", checkpoint_dir=tmp_path))
    with pytest.raises(ConfigurationError, match="'two' is the TensorLoader that problem 'one'"):
        engine.run()


@pytest.mark.filterwarnings("ignore:.*is an iterator of type")
def test_an_iterator_is_not_put_back_once_it_was_read(tmp_path: Path) -> None:
    def build() -> Any:
        return single(problem(data=iter(numbers(*range(9)))), steps=3)

    engine = build()
    engine.run()
    engine.save(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"is an iterator .* has already given batches"):
        engine.load(tmp_path / "a.ckpt")
    fresh = build()
    fresh.train_iters = 5
    fresh.run(resume=tmp_path / "a.ckpt")
    assert fresh.chase.cur_batch.item() == 4.0


def test_the_random_streams_of_a_resumed_run_do_not_depend_on_what_hooks_draw(
    tmp_path: Path,
) -> None:
    class Drawing(Hook):
        def run_start(self, engine: Engine) -> None:
            torch.rand(3)

    build = two_levels(hooks=lambda: [Drawing()], logger_type="none")
    seed_all(0)
    whole = build(checkpoint_dir=tmp_path, checkpoint_step=4, keep_last=None)
    whole.run()
    resumed = build()
    resumed.run(resume=tmp_path / "step-0000000004.ckpt")
    assert not difference(everything(whole), everything(resumed))
