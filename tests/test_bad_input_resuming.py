"""What users get wrong when they resume: refused by name, and the program stays as it was."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bad_input import Inner, Point, Row, assert_refused, bilevel, numbers, problem
from support.small import single
from torch import nn

from metaweight import CheckpointError, Config, ConfigurationError, Engine


def build(
    data: tuple[float, ...] = (1.0, 2.0),
    config: Config | None = None,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    start: tuple[float, ...] = (0.0,),
    **settings: Any,
) -> Engine:
    module = Point(*start)
    made = torch.optim.SGD(module.parameters(), 0.1) if optimizer is None else optimizer(module)
    inner = problem(
        Inner,
        "inner",
        module=module,
        optimizer=made,
        data=numbers(*data),
        config=Config(unroll_steps=2) if config is None else config,
    )
    return bilevel(inner=inner, **{"steps": 3, **settings})


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def saved(folder: Path) -> Path:
    """The checkpoint of a program inside a loop."""
    path = folder / "saved.ckpt"
    if not path.exists():
        engine = build()
        engine.run()
        engine.save(path)
    return path


def written(change: Callable[[bytearray], Any]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        content = bytearray(saved(folder).read_bytes())
        (folder / "other.ckpt").write_bytes(bytes(change(content)))
        return folder / "other.ckpt"

    return write


def flipped(position: float) -> Callable[[bytearray], bytearray]:
    def flip(content: bytearray) -> bytearray:
        content[int(position * len(content))] ^= 1
        return content

    return flip


def pickled(folder: Path) -> Path:
    (folder / "bomb.ckpt").write_bytes(pickle.dumps(Bomb(folder / "executed")))
    return folder / "bomb.ckpt"


def of_torch(folder: Path) -> Path:
    torch.save({"bomb": Bomb(folder / "executed")}, folder / "bomb.pt")
    return folder / "bomb.pt"


DAMAGED = "is no checkpoint of metaweight … give a file that engine.save"
CHANGED = "other.ckpt is damaged … checksum … use another checkpoint"
PATH = "give the path of a file"

Case = tuple[type[Exception], str, Callable[[Path], Any], Callable[[], Engine]]
FILES: dict[str, Case] = {
    "no such file": (
        CheckpointError,
        "absent.ckpt could not be opened: no such file … give the path",
        lambda f: f / "absent.ckpt",
        build,
    ),
    "a folder": (
        CheckpointError,
        "could not be opened: is a directory … give the path",
        lambda f: f,
        build,
    ),
    "an empty file": (CheckpointError, f"other.ckpt {DAMAGED}", written(lambda c: c[:0]), build),
    "a truncated file": (CheckpointError, CHANGED, written(lambda c: c[:-100]), build),
    "a bit flipped": (CheckpointError, CHANGED, written(flipped(0.7)), build),
    "a bit of its header flipped": (
        CheckpointError,
        f"other.ckpt {DAMAGED}",
        written(flipped(0.01)),
        build,
    ),
    "a pickle that runs code": (CheckpointError, f"bomb.ckpt {DAMAGED}", pickled, build),
    "a file of torch.save": (CheckpointError, f"bomb.pt {DAMAGED}", of_torch, build),
    "a number": (ConfigurationError, f"received 5; {PATH}", lambda f: 5, build),
    "no text": (ConfigurationError, f"received ''; {PATH}", lambda f: "", build),
    "bytes": (ConfigurationError, f"received b'a'; {PATH}", lambda f: b"a", build),
    "a dictionary": (
        ConfigurationError,
        "received {}; give the path of a file",
        lambda f: {},
        build,
    ),
    "other problems": (
        CheckpointError,
        "its problems are outer; inner below outer, and here they are chase … build the program",
        saved,
        lambda: single(problem(), steps=3),
    ),
    "other shapes": (
        CheckpointError,
        "'w' in the module of problem 'inner' was (1,) float64 and is (2,)",
        saved,
        lambda: build(start=(0.0, 1.0)),
    ),
    "another optimizer": (
        CheckpointError,
        "optimizer of problem 'inner' was SGD and is Adam here",
        saved,
        lambda: build(optimizer=lambda m: torch.optim.Adam(m.parameters())),
    ),
    "more parameter groups": (
        CheckpointError,
        "parameter groups of the optimizer of problem 'inner' was",
        saved,
        lambda: build(
            optimizer=lambda m: torch.optim.SGD(
                [{"params": [m.w]}, {"params": [nn.Parameter(torch.ones(1))]}], 0.1
            )
        ),
    ),
    "another unroll_steps": (
        CheckpointError,
        "settings of problem 'inner', saved inside a loop … 'unroll_steps': 2 … 'unroll_steps': 3",
        saved,
        lambda: build(config=Config(unroll_steps=3)),
    ),
    "another type": (
        CheckpointError,
        "settings of problem 'inner', saved inside a loop … FiniteDifference … Unroll",
        saved,
        lambda: build(config=Config(unroll_steps=2, type="unroll")),
    ),
    "longer loaders": (
        CheckpointError,
        "number of batches of loader 0 of problem 'inner' was 2 and is 3",
        saved,
        lambda: build(data=(1.0, 2.0, 3.0)),
    ),
    "shorter loaders": (
        CheckpointError,
        "number of batches of loader 0 of problem 'inner' was 2 and is 1",
        saved,
        lambda: build(data=(1.0,)),
    ),
}


@pytest.mark.parametrize("way", ["run", "load"])
@pytest.mark.parametrize("name", FILES)
def test_what_cannot_be_resumed_is_refused_and_nothing_changes(
    name: str, way: str, tmp_path: Path
) -> None:
    error, words, make, builder = FILES[name]
    path = make(tmp_path)

    def act(engine: Engine) -> None:
        if way == "run":
            engine.run(resume=path)
        else:
            engine.load(path)

    assert_refused(Row(error, words, act, builder))
    assert not (tmp_path / "executed").exists()


def test_the_bombs_are_live(tmp_path: Path) -> None:
    torch.load(of_torch(tmp_path), weights_only=False)
    assert (tmp_path / "executed").is_dir()


def in_folder(**settings: Any) -> Callable[[Path], Engine]:
    return lambda folder: build(checkpoint_dir=folder / "run", **settings)


def ran(folder: Path) -> None:
    in_folder()(folder).run()


def damaged(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "step-0000000003.ckpt").write_bytes(saved(folder).read_bytes()[:-5])


def a_file(folder: Path) -> None:
    (folder / "run").write_text("no folder")


def no_folder(folder: Path) -> None:
    pass


RUNS: dict[
    str, tuple[type[Exception], str, Callable[[Path], Any], Callable[[Path], Engine], Any]
] = {
    "auto without a folder": (
        ConfigurationError,
        "resume='auto' … checkpoint_dir … was not given",
        no_folder,
        lambda f: build(),
        "auto",
    ),
    "auto in a file": (
        CheckpointError,
        "checkpoint_dir= … cannot be written to … folder that can",
        a_file,
        in_folder(),
        "auto",
    ),
    "auto where all are damaged": (
        CheckpointError,
        "All checkpoints in … are damaged … another folder",
        damaged,
        in_folder(),
        "auto",
    ),
    "auto of another program": (
        CheckpointError,
        "step-0000000003.ckpt … its problems are",
        ran,
        lambda f: single(problem(), steps=3, checkpoint_dir=f / "run"),
        "auto",
    ),
    "auto beyond the end": (
        ConfigurationError,
        "step-0000000003.ckpt was saved at iteration 3, beyond … train_iters=2 … raise",
        ran,
        in_folder(steps=2),
        "auto",
    ),
    "a file beyond the end": (
        ConfigurationError,
        "saved.ckpt was saved at iteration 3, beyond … train_iters=2 … engine.load()",
        no_folder,
        lambda f: build(steps=2),
        saved,
    ),
    "a new run in the folder of another": (
        CheckpointError,
        "holds checkpoints of another run, such as step-0000000003.ckpt",
        ran,
        in_folder(),
        None,
    ),
    "a file in the folder of another run": (
        CheckpointError,
        "holds checkpoints of another run, such as step-0000000003.ckpt",
        ran,
        in_folder(steps=5),
        saved,
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_cannot_go_on_is_refused_and_nothing_changes(name: str, tmp_path: Path) -> None:
    error, words, prepare, builder, resume = RUNS[name]
    prepare(tmp_path)
    where = resume(tmp_path) if callable(resume) else resume
    assert_refused(Row(error, words, lambda e: e.run(resume=where), lambda: builder(tmp_path)))


def test_an_empty_folder_and_a_run_at_its_end_are_no_errors(tmp_path: Path) -> None:
    for _ in range(2):
        engine = in_folder()(tmp_path)
        engine.run(resume="auto")
        assert engine.global_step == 3
