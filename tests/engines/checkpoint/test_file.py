"""The file of a checkpoint: whole or not at all, checked, and never executed."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from metaweight.engines.checkpoint import file as checkpoint_file
from metaweight.engines.checkpoint import migrations
from metaweight.engines.checkpoint.file import (
    HEADER,
    Manifest,
    _header,
    read_checkpoint,
    read_manifest,
    write_checkpoint,
)
from support.fork_server import start_code
from support.resuming import difference, everything, seed_all, two_levels

from metaweight import CheckpointError, MetaweightError

STATE = {"weights": torch.arange(4.0), "names": ["a", "b"], "step": 3}
BOMB = "__import__('pathlib').Path({!r}).write_text('executed')"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "state.ckpt"
    write_checkpoint(file, Manifest(3, "run", "acc", 0.5), STATE)
    return file


def sealed(path: Path, manifest: Manifest, content: bytes) -> Path:
    """Write a file whose checksum is right, whatever it holds."""
    path.write_bytes(_header(manifest, hashlib.sha256(content).hexdigest()) + content)
    return path


def test_what_was_written_is_read(path: Path) -> None:
    manifest, state = read_checkpoint(path)
    assert not difference(STATE, state)
    assert manifest == read_manifest(path) == Manifest(3, "run", "acc", 0.5)
    assert set(manifest.versions) == {"metaweight", "torch", "python"}
    assert path.read_bytes().startswith(b'metaweight checkpoint {"format": 2')


def test_nothing_else_is_left_beside_it(path: Path) -> None:
    assert os.listdir(path.parent) == ["state.ckpt"]


@pytest.mark.parametrize("length", [0, 10, HEADER - 1, HEADER, HEADER + 1, -1, -200])
def test_a_truncated_file_is_refused(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"is damaged|is no checkpoint of metaweight"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"PK\x03\x04" + b"x" * 5000, b"[1]" * 900])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "foreign"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="is no checkpoint of metaweight"):
        read_checkpoint(file)


def test_files_of_torch_and_a_folder_are_refused(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "torch.pt")
    with pytest.raises(CheckpointError, match="is no checkpoint of metaweight"):
        read_checkpoint(tmp_path / "torch.pt")
    with pytest.raises(CheckpointError, match="could not be opened: is a directory"):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="could not be opened: no such file"):
        read_checkpoint(tmp_path / "absent.ckpt")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return eval, (BOMB.format(str(self.target)),)


def bombs(target: Path, folder: Path) -> Iterator[bytes]:
    """Files that write ``target`` where pickles in them are executed."""
    bomb = {"problems": Bomb(target)}
    for settings in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save(bomb, folder / "bomb.pt", **settings)
        yield (folder / "bomb.pt").read_bytes()
    yield pickle.dumps(bomb)


def test_a_bomb_with_the_right_checksum_does_nothing(tmp_path: Path) -> None:
    target = tmp_path / "executed"
    for content in bombs(target, tmp_path):
        file = sealed(tmp_path / "bomb.ckpt", Manifest(1, "run"), content)
        with pytest.raises(CheckpointError, match="holds something other than plain data"):
            read_checkpoint(file)
        with pytest.raises(CheckpointError):
            two_levels()(logger_type="none").load(file)
    assert not target.exists()
    # The bombs are live ones.
    torch.load(tmp_path / "bomb.pt", weights_only=False)
    assert target.read_text() == "executed"


def test_content_that_is_no_state_of_an_engine_is_refused(tmp_path: Path) -> None:
    engine = two_levels()(logger_type="none")
    before = everything(engine)
    for number, content in enumerate([[1, 2], {}, {"graph": 3}, {"graph": {}, "problems": {}}]):
        torch.save(content, tmp_path / "content")
        data = (tmp_path / "content").read_bytes()
        file = sealed(tmp_path / f"{number}.ckpt", Manifest(1, "run"), data)
        with pytest.raises(CheckpointError):
            engine.load(file)
    assert not difference(before, everything(engine))


def test_a_newer_format_is_refused_and_an_older_one_without_a_way_too(tmp_path: Path) -> None:
    content = b"whatever"
    newer = sealed(tmp_path / "newer.ckpt", Manifest(1, "run", format=99), content)
    with pytest.raises(CheckpointError, match=r"of format 99, of a newer metaweight.*Install"):
        read_manifest(newer)
    torch.save({}, tmp_path / "content")
    data = (tmp_path / "content").read_bytes()
    older = sealed(tmp_path / "older.ckpt", Manifest(1, "run", format=-1), data)
    with pytest.raises(CheckpointError, match=r"of format -1, which this version .* no longer"):
        read_checkpoint(older)


def test_an_older_format_is_brought_up_to_date_step_by_step(tmp_path: Path) -> None:
    # As if format 1 had called the weights otherwise, and format 0 had kept them in a list.
    torch.save({"w": [1.0, 2.0]}, tmp_path / "content")
    data = (tmp_path / "content").read_bytes()
    file = sealed(tmp_path / "old.ckpt", Manifest(7, "run", format=-1), data)
    ways = {
        -1: lambda state: {"w": torch.tensor(state["w"])},
        0: lambda state: {"weights": state["w"]},
        1: lambda state: state,
    }
    assert migrations.FORMAT == 2
    assert not difference({"weights": torch.tensor([1.0, 2.0])}, read_checkpoint(file, ways)[1])
    with pytest.raises(CheckpointError, match=r"of format 0, but its content does.*KeyError"):
        read_checkpoint(file, ways | {0: lambda state: {"weights": state["v"]}})


def test_format_1_is_read_under_the_names_of_format_2() -> None:
    way = migrations.MIGRATIONS[1]
    hooks = [
        {"class": "Other", "state": {"parts": 3}},
        {"class": "NormLogger", "state": {"parts": 4}},
    ]
    found = way({"problems": {"a": {"count": 1, "spoiled": True}}, "hooks": hooks, "run": 2})
    assert found == {
        "problems": {"a": {"count": 1, "skipped": True}},
        "hooks": [hooks[0], {"class": "NormLogger", "state": {"terms": 4}}],
        "run": 2,
    }
    with pytest.raises(ValueError, match="sharded in a folder that is no longer read"):
        way({"problems": {}, "hooks": [], "parts": {"folder": "x"}})


class Full:
    """Fails as a full disk does, after so many writes."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, file: Any, data: Any) -> int:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file._file.write(data)
        file._sum.update(data)
        return len(data)


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_full_disk_leaves_the_last_good_file(
    path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()
    full = Full(after)

    def write(self: Any, data: Any) -> int:
        try:
            return full(self, data)
        except OSError as error:
            self.failure = error
            raise

    monkeypatch.setattr(checkpoint_file._Hashing, "write", write)
    with pytest.raises(CheckpointError, match="could not be written: no space left on device"):
        write_checkpoint(path, Manifest(4, "run"), STATE)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["state.ckpt"]


def test_a_failing_rename_leaves_the_last_good_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def fail(*args: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(CheckpointError, match="could not be written: input/output error"):
                write_checkpoint(path, Manifest(4, "run"), STATE)
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == ["state.ckpt"]


LIMITED = """
import resource, sys, torch
from pathlib import Path
from metaweight import CheckpointError
from metaweight.engines.checkpoint.file import Manifest, write_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    write_checkpoint(Path(sys.argv[1]), Manifest(1, "run"), {"w": torch.zeros(1_000_000)})
except CheckpointError as error:
    print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="limits of files are Unix")
def test_a_real_limit_of_the_system_is_met_in_the_same_way(path: Path) -> None:
    before = path.read_bytes()
    done = start_code(LIMITED, str(path)).wait()
    assert done.returncode == 0, done.stderr
    assert "could not be written: file too large" in done.stdout
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["state.ckpt"]


def test_no_such_folder_and_a_file_for_a_folder(path: Path) -> None:
    for wrong in (path.parent / "absent" / "a.ckpt", path / "a.ckpt"):
        with pytest.raises(CheckpointError, match=r"could not be written: (no such|not a dir)"):
            write_checkpoint(wrong, Manifest(1, "run"), STATE)


def mutated(content: bytes, generator: random.Random) -> bytes:
    """Return a file with one thing wrong: bytes flipped, cut, repeated, swapped or put in."""
    data = bytearray(content)
    kind = generator.randrange(6)
    place = generator.randrange(len(data))
    length = generator.choice([1, 2, 16, 300])
    if kind == 0:
        data[place] ^= 1 << generator.randrange(8)
    elif kind == 1:
        del data[place:]
    elif kind == 2:
        del data[place : place + length]
    elif kind == 3:
        data[place:place] = generator.randbytes(length)
    elif kind == 4:
        data[place : place + length] = generator.randbytes(len(data[place : place + length]))
    else:
        data[place:place] = data[place : place + length]
    return bytes(data)


def refused_or_right(number: int, folder: Path) -> int:
    """Load mutated files, with wrong checksums and right ones; return how many were loaded."""
    build = two_levels(logger_type="none")
    seed_all(0)
    program = build()
    program.train_iters = 2
    program.run()
    good = folder / "good.ckpt"
    program.save(good)
    expected, content = everything(program), good.read_bytes()
    fresh = build()
    untouched = everything(fresh)
    generator, loaded = random.Random(0), 0
    for case in range(number):
        file = folder / "mutated.ckpt"
        if case % 2:
            file.write_bytes(mutated(content, generator))
        else:
            sealed(file, read_manifest(good), mutated(content[HEADER:], generator))
        try:
            fresh.load(file)
        except MetaweightError:
            assert not difference(untouched, everything(fresh)), case
        else:
            loaded += 1
            if case % 2:
                assert not difference(expected, everything(fresh)), case
            fresh = build()
        seed_all(1)
        untouched = everything(fresh)
    return loaded


def test_a_hundred_mutated_files_are_refused_or_right(tmp_path: Path) -> None:
    refused_or_right(100, tmp_path)


@pytest.mark.slow
def test_a_thousand_mutated_files_are_refused_or_right(tmp_path: Path) -> None:
    refused_or_right(1000, tmp_path)
