"""Checkpoints of parameters that processes share out: safe, and for any number of processes."""

from __future__ import annotations

import hashlib
import io
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from metaweight.engines.checkpoint.file import (
    HEADER,
    read_checkpoint,
    read_manifest,
    write_checkpoint,
)
from metaweight.engines.checkpoint.folder import CheckpointFolder
from support.fsdp_checks import AMID, EPOCHS, program
from support.shared_out import parameters
from support.two_processes import CLOSE, HELPERS, torchrun

from metaweight import CheckpointError

Found = list[dict[str, Any]]


@pytest.fixture
def copied(together_in_parts: Found, tmp_path: Path) -> Path:
    """A copy of a checkpoint that two processes wrote, to be skipped."""
    given = Path(together_in_parts[0]["saved"][0])
    shutil.copytree(given.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / given.name


def folder_of(path: Path) -> Path:
    (folder,) = path.parent.glob(f"{path.name}.parts-*")
    return folder


def described(path: Path) -> dict[str, Any]:
    """The state in the file alone."""
    content = io.BytesIO(path.read_bytes()[HEADER:])
    state: dict[str, Any] = torch.load(content, weights_only=True)
    return state


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the description of parts, as one may who can write a whole file."""
    state = described(path)
    change(state["parts"])
    write_checkpoint(path, read_manifest(path), state)


def sealed(path: Path) -> None:
    """Let the checksums be those of the files as they are."""
    sums = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder_of(path).iterdir()}
    rewrite(path, lambda parts: parts.update(files=sums))


def test_a_resumed_run_ends_bit_equal_and_keeps_as_many_checkpoints_as_asked(
    together_in_parts: Found,
) -> None:
    for found in together_in_parts:
        names, again, whole = found["kept"]
        torch.testing.assert_close(again, whole, rtol=0, atol=0)
        files = [name for name in names if name.endswith(".ckpt")]
        assert files == ["step-0000000004.ckpt", "step-0000000006.ckpt"]
        assert [name.rpartition(".parts-")[0] for name in names if name not in files] == files


@pytest.mark.slow
@pytest.mark.parametrize("name", AMID)
def test_a_run_resumed_amid_a_loop_ends_bit_equal(name: str, slowly_in_parts: Found) -> None:
    for found in slowly_in_parts:
        whole, again = found["resumed_amid_a_loop"][name]
        torch.testing.assert_close(again, whole, rtol=0, atol=0)


def test_what_two_processes_saved_goes_on_in_one_and_the_other_way_round(
    together_in_parts: Found,
) -> None:
    alone = program("sama", 0, 1, train_iters=EPOCHS + 6)
    alone.run()
    engine = program("sama", 0, 1, train_iters=EPOCHS + 6)
    engine.load(together_in_parts[0]["from_two"])
    engine.run()
    torch.testing.assert_close(parameters(engine), parameters(alone), **CLOSE)
    for found in together_in_parts:
        torch.testing.assert_close(found["into_two"], parameters(alone), **CLOSE)


def test_the_file_holds_nothing_that_is_shared_out(copied: Path) -> None:
    """And no pickle lies beside it; together they hold all."""
    state = described(copied)
    low = state["problems"]["low"]["state"]
    assert all(value is None or value.numel() == 1 for value in low["module"].values())
    assert low["optimizer"]["state"][0]["exp_avg"] is None
    assert sorted(f.name for f in folder_of(copied).iterdir()) == ["__0_0.distcp", "__1_0.distcp"]
    whole = read_checkpoint(copied)[1]["problems"]["low"]["state"]
    assert whole["module"]["layers.0.weight"].shape == (6, 3)
    assert whole["optimizer"]["state"][0]["exp_avg"].shape == (6, 3)


def test_a_tensor_that_was_on_a_device_is_put_under_its_label(copied: Path) -> None:
    state = described(copied)
    labelled = {"metaweight holds": "tensor", "device": "cuda:0", "value": None}
    state["problems"]["low"]["state"]["module"]["layers.0.weight"] = labelled
    write_checkpoint(copied, read_manifest(copied), state)
    found = read_checkpoint(copied)[1]["problems"]["low"]["state"]["module"]["layers.0.weight"]
    assert found["device"] == "cuda:0"
    assert found["value"].shape == (6, 3)


def test_a_checkpoint_that_is_written_again_has_one_folder(together_in_parts: Found) -> None:
    path, values = together_in_parts[0]["saved"]
    assert len(list(Path(path).parent.iterdir())) == 2
    engine = program("sama", 0, 1)
    engine.load(path)
    torch.testing.assert_close(parameters(engine), values, rtol=0, atol=0)


def test_what_could_not_be_written_leaves_nothing(together_in_parts: Found) -> None:
    first, second = (found["not_written"] for found in together_in_parts)
    assert "parts of a checkpoint could not be written" in first[0][0]
    assert "no such file or directory" in first[0][0]
    assert first[0][0] == second[0][0]
    assert "taken could not be written: is a directory" in first[0][1]
    assert first[1] == ["taken"]


@pytest.mark.parametrize("how", ["changed", "cut off", "missing"])
def test_a_damaged_part_is_noticed_and_the_checkpoint_before_it_taken(
    how: str, copied: Path
) -> None:
    folder = CheckpointFolder(copied.parent)
    for step in (3, 4):
        shutil.copy(copied, folder.file_of(step))
        shutil.copytree(folder_of(copied), named_for(folder.file_of(step), copied))
        rewrite(folder.file_of(step), name_of(folder.file_of(step), copied))
    file = folder_of(folder.file_of(4)) / "__1_0.distcp"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content if how == "changed" else content[:-100])
    if how == "missing":
        file.unlink()
    said: list[str] = []
    found = folder.newest(said.append)
    assert found is not None and found[0] == folder.file_of(3)
    assert "__1_0.distcp is missing or damaged" in said[0]
    assert (copied.parent / "step-0000000004.ckpt.damaged").exists()
    folder.prepare(read_manifest(copied).run, 6)
    assert not list(copied.parent.glob("step-0000000004.ckpt.parts-*"))
    assert folder_of(folder.file_of(3)).exists()


def named_for(path: Path, source: Path) -> Path:
    return path.with_name(folder_of(source).name.replace(source.name, path.name))


def name_of(path: Path, source: Path) -> Callable[[dict[str, Any]], None]:
    return lambda parts: parts.update(folder=named_for(path, source).name)


KILLED = """
import os, signal, sys, torch
from pathlib import Path
sys.path.insert(0, {helpers!r})
torch.set_num_threads(1)
from support.fsdp_checks import saving, whole
from metaweight import Hook

folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])

class Killed(Hook):
    only_shows = True

    def iteration_end(self, engine):
        mark = folder / "killed"
        if rank == 1 and engine.global_step == 9 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

engine = saving(rank, 2, folder / "run", 12, hooks=[Killed()])
engine.run(resume="auto")
torch.save(whole(engine), folder / f"end_{{rank}}.pt")
"""


@pytest.mark.slow
def test_a_killed_process_is_restarted_and_the_run_ends_as_if_nothing_had_been(
    together_in_parts: Found, tmp_path: Path
) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(helpers=str(HELPERS)))
    ended = torchrun(script, str(tmp_path), restarts=1)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "killed").exists()
    for rank, found in enumerate(together_in_parts):
        end = torch.load(tmp_path / f"end_{rank}.pt", weights_only=True)
        torch.testing.assert_close(end, found["kept"][2], rtol=0, atol=0)


class Executed:
    """A pickle of it writes to a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_nothing_in_the_folder_is_executed(copied: Path, tmp_path: Path) -> None:
    mark, folder = tmp_path / "executed", folder_of(copied)
    pickle.loads(pickle.dumps(Executed(mark)))
    mark.unlink()
    (folder / ".metadata").write_bytes(pickle.dumps(Executed(mark)))
    assert read_checkpoint(copied)
    (folder / ".metadata").unlink()
    torch.save(Executed(mark), folder / "__0_0.distcp")
    sealed(copied)
    with pytest.raises(CheckpointError, match="describes parts of tensors that do not fit"):
        read_checkpoint(copied)
    assert not mark.exists()


def matrix(parts: dict[str, Any]) -> dict[str, Any]:
    """The description of a tensor of 6 by 3."""
    found: dict[str, Any] = next(t for t in parts["tensors"] if t["shape"] == (6, 3))
    return found


def first_chunk(parts: dict[str, Any]) -> list[Any]:
    chunk: list[Any] = matrix(parts)["chunks"][0]
    return chunk


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another folder": lambda parts: parts.update(folder="../elsewhere"),
    "a folder of another checkpoint": lambda parts: parts.update(
        folder=parts["folder"].replace("twice", "other")
    ),
    "no folder": lambda parts: parts.pop("folder"),
    "another file": lambda parts: parts["files"].update({"../twice.ckpt": "0"}),
    "a file that is not listed": lambda parts: first_chunk(parts).__setitem__(2, "__2_0.distcp"),
    "behind the end": lambda parts: first_chunk(parts).__setitem__(3, 10**9),
    "before the start": lambda parts: first_chunk(parts).__setitem__(3, -1),
    "too short": lambda parts: first_chunk(parts).__setitem__(4, 1),
    "a gap": lambda parts: first_chunk(parts).__setitem__(0, 1),
    "more than there is": lambda parts: matrix(parts).update(shape=(10**6, 10**6)),
    "overlapping": lambda parts: matrix(parts).update(stride=(1, 1)),
    "negative": lambda parts: matrix(parts).update(shape=(-6, -3)),
    "no dtype": lambda parts: matrix(parts).update(dtype="float64"),
    "another place": lambda parts: matrix(parts).update(place=("low", "nowhere")),
    "a place that is taken": lambda parts: matrix(parts).update(place=("low", "count")),
    "no chunks": lambda parts: matrix(parts).update(chunks=[]),
    "no mapping": lambda parts: parts.update(tensors=7),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_description_that_does_not_fit_is_refused(wrong: str, copied: Path) -> None:
    rewrite(copied, WRONG[wrong])
    with pytest.raises(CheckpointError, match="describes parts of tensors that do not fit"):
        read_checkpoint(copied)


def test_files_that_were_changed_and_sealed_again_are_read_or_refused(copied: Path) -> None:
    """Whatever a byte of a part becomes."""
    file = folder_of(copied) / "__0_0.distcp"
    content, chance = file.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(40):
        changed = bytearray(content)
        for _ in range(chance.randrange(1, 5)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        file.write_bytes(changed)
        sealed(copied)
        try:
            read_checkpoint(copied)
        except CheckpointError:
            refused += 1
    assert 0 < refused < 40
