"""Ctrl-C and SIGTERM: the step under way ends and is saved, and the process leaves as usual."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from metaweight.engines.stopping import stops_between_steps
from metaweight.problems.data.loaders import BatchSource
from support.fork_server import start_code
from support.resuming import Noisy, samples, seed_all
from support.small import problem, single
from torch.utils.data import DataLoader

from metaweight import Engine, Hook

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals as Unix has them")


@pytest.fixture(autouse=True)
def listening_to_ctrl_c() -> Iterator[None]:
    """What a shell starts in the background ignores Ctrl-C, and these tests would with it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


PROGRAM = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from support.small import numbers, problem, single
from metaweight import Hook

class Signalled(Hook):
    def after_step(self, engine, problem, result):
        if engine.global_step == 3:
            for name in sys.argv[3].split(","):
                os.kill(os.getpid(), getattr(signal, name))
                time.sleep(0.05)
            print("the step ended", flush=True)
    def run_end(self, engine):
        print("the run ended at", engine.global_step, flush=True)

engine = single(problem(), steps=6, checkpoint_dir=sys.argv[2], hooks=[Signalled()])
engine.run(resume="auto")
print("not reached" if engine.global_step < 6 else "done")
"""


def arguments(folder: Path, signals: str) -> tuple[str, ...]:
    return PROGRAM, str(Path(__file__).parents[1] / "helpers"), str(folder), signals


def interpreter(*arguments: str) -> Any:
    command = [sys.executable, "-c", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    "run",
    [
        lambda *arguments: start_code(*arguments).wait(),
        pytest.param(interpreter, marks=pytest.mark.slow),
    ],
    ids=["forked", "interpreter"],
)
def test_ctrl_c_saves_and_leaves_as_any_program_does(run: Any, tmp_path: Path) -> None:
    done = run(*arguments(tmp_path, "SIGINT"))
    # The system sees the signal, unless something at the interpreter's end hides it.
    assert done.returncode in (-signal.SIGINT, 1), done.stderr
    assert done.stderr.endswith("KeyboardInterrupt\n")
    left_after_the_step(done.stdout, tmp_path)


def test_the_signal_to_end_saves_and_leaves_with_its_code(tmp_path: Path) -> None:
    done = start_code(*arguments(tmp_path, "SIGTERM")).wait()
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert "Traceback" not in done.stderr
    left_after_the_step(done.stdout, tmp_path)


def left_after_the_step(printed: str, folder: Path) -> None:
    assert "the step ended\nthe run ended at 3" in printed
    assert "not reached" not in printed
    assert (folder / "step-0000000003.ckpt").exists()


def test_a_second_signal_leaves_at_once(tmp_path: Path) -> None:
    done = start_code(*arguments(tmp_path, "SIGTERM,SIGTERM")).wait()
    assert done.returncode == -signal.SIGTERM
    assert "the step ended" not in done.stdout
    assert not list(tmp_path.glob("step-*"))


class Raising(Hook):
    """Raises a signal in the middle of a step."""

    only_shows = True

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        self.step, self.number, self.moments = step, number, []

    def after_step(self, engine: Engine, problem: Any, result: Any) -> None:
        if engine.global_step == self.step:
            signal.raise_signal(self.number)
        self.moments.append(f"step {engine.global_step}")

    def run_end(self, engine: Engine) -> None:
        self.moments.append("end")


def test_ctrl_c_becomes_a_keyboard_interrupt_after_the_step(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    hook = Raising(2)
    engine = single(problem(), steps=4, hooks=[hook], checkpoint_dir=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        engine.run()
    assert hook.moments == ["step 1", "step 2", "end"]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    resumed = single(problem(), steps=4, checkpoint_dir=tmp_path)
    resumed.run(resume="auto")
    whole = single(problem(), steps=4)
    whole.run()
    assert torch.equal(resumed.chase.module.w, whole.chase.module.w)


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hook = Raising(2)
    single(problem(), steps=4, hooks=[hook]).run()
    assert hook.moments == ["step 1", "step 2", "step 3", "step 4", "end"]
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_validation_that_was_due_comes_when_resuming(tmp_path: Path) -> None:
    seen: list[int] = []

    class Validating(Engine):
        def validation(self) -> dict[str, float]:
            seen.append(self.global_step)
            return {"loss": 1.0}

    settings: dict[str, Any] = {"steps": 4, "valid_step": 2, "checkpoint_dir": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        single(problem(), engine=Validating, hooks=[Raising(2)], **settings).run()
    assert seen == []
    single(problem(), engine=Validating, **settings).run(resume="auto")
    assert seen == [2, 4]


def test_a_handler_of_the_program_is_called_after_the_step() -> None:
    calls: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: calls.append(number))
    try:
        hook = Raising(2, signal.SIGTERM)
        engine = single(problem(), steps=4, hooks=[hook])
        engine.run()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert calls == [signal.SIGTERM]
    assert engine.global_step == 2


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        engine = single(problem(), steps=4, hooks=[Raising(2, signal.SIGTERM)])
        engine.run()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert engine.global_step == 4


def test_an_exception_goes_its_way_and_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)

    class Failing(Engine):
        def train_step(self) -> None:
            signal.raise_signal(signal.SIGINT)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        single(problem(), engine=Failing).run()
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_no_handler_is_set() -> None:
    seen: list[Any] = []

    def work() -> None:
        with stops_between_steps() as request:
            seen.append(signal.getsignal(signal.SIGINT))
            engine = single(problem(), steps=2)
            engine.run()
            seen.append((engine.global_step, request.made))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT), (2, False)]


def test_the_death_of_loaders_workers_does_not_break_the_step_under_way() -> None:
    def make() -> BatchSource:
        seed_all(0)
        loader = DataLoader(Noisy(samples(24, 0)), batch_size=4, shuffle=True, num_workers=2)
        return BatchSource("p", [loader], lambda: None)

    def drawn(source: BatchSource, number: int) -> list[Any]:
        batches = [source.draw(0, torch.device("cpu")) for _ in range(number)]
        return [[part.tolist() for part in batch] for batch in batches]

    whole = make()
    expected = drawn(whole, 6)
    source = make()
    found = drawn(source, 1)
    with pytest.raises(KeyboardInterrupt), stops_between_steps() as request:
        # As when both reach the whole group of processes.
        signal.raise_signal(signal.SIGINT)
        iterator: Any = source.readings[0].iterator
        for worker in iterator._workers:
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
        with pytest.warns(UserWarning, match="A worker of loader 0 of problem 'p' has died"):
            found += drawn(source, 5)
        assert request.made
        for one in (whole, source):
            one.readings[0].iterator = None
    assert found == expected


def test_a_forked_worker_leaves_the_end_to_its_parent() -> None:
    with stops_between_steps() as request:
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGINT)
            os._exit(1 if request.made else 0)
        assert os.waitpid(child, 0)[1] == 0
        assert not request.made
