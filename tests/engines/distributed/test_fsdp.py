"""Two processes with sharded parameters do what one does on whole batches."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support import fsdp_checks
from support.fsdp_checks import FORMS, RESULTS
from support.once import once
from support.two_processes import CLOSE, found_together

from metaweight import CheckpointError

Found = list[dict[str, Any]]


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found, Found, Path]:
    """What two processes found in all checks, then four and two in those of handing on."""
    return once(tmp_path_factory, "sharded", _found)


def _found(folder: Path) -> Any:
    one = folder / "one"
    one.mkdir()
    (one / "handed_on").mkdir()
    fsdp_checks.handed_on(0, 1, one / "handed_on")
    found = []
    for name, world, checks in (
        ("two", 2, list(RESULTS)),
        ("four", 4, ["handed_on"]),
        ("two again", 2, ["handed_on"]),
    ):
        (folder / name).mkdir()
        found.append(found_together(folder / name, "support.fsdp_checks", *checks, world=world))
    return (*found, str(folder))


@pytest.fixture(scope="session")
def two(sharded: Any) -> Found:
    found: Found = sharded[0]
    return found


def same(found: Found, name: str, key: Any, alone: Any, **close: float) -> None:
    values = [each[name] for each in found]
    assert not isinstance(values[0], str), values[0]
    first, second = (value if key is None else value[key] for value in values)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, alone if key is None else alone[key], **(close or CLOSE))


@pytest.fixture(scope="session")
def methods_alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return once(tmp_path_factory, "sharded alone", lambda folder: fsdp_checks.methods(0, 1, folder))


@pytest.mark.parametrize("kind", FORMS)
def test_two_processes_end_where_one_does(kind: str, two: Found, methods_alone: Any) -> None:
    # Differences are divided by the length of a displacement, of which there are many steps.
    same(two, "methods", kind, methods_alone, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_so_do_other_forms_and_plain_steps(tmp_path: Path) -> None:
    found = found_together(tmp_path, "support.fsdp_checks", "other_methods")
    alone = fsdp_checks.other_methods(0, 1, tmp_path)
    for kind in alone:
        same(found, "other_methods", kind, alone, rtol=1e-8, atol=1e-8)


def test_so_do_they_in_single_precision(two: Found, tmp_path: Path) -> None:
    alone = fsdp_checks.in_single_precision(0, 1, tmp_path)
    for kind in alone:
        same(two, "in_single_precision", kind, alone, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_so_do_other_forms_in_single_precision(tmp_path: Path) -> None:
    name = "other_forms_in_single_precision"
    alone = fsdp_checks.other_forms_in_single_precision(0, 1, tmp_path)
    found = found_together(tmp_path, "support.fsdp_checks", name)
    for kind in alone:
        same(found, name, kind, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["in_groups", "rolled_back", "skipped", "corrected"])
def test_so_do(name: str, two: Found, tmp_path: Path) -> None:
    same(two, name, None, RESULTS[name](0, 1, tmp_path))


def test_averages_are_sharded_too(two: Found, tmp_path: Path) -> None:
    alone = fsdp_checks.averages(0, 1, tmp_path)
    for found in two:
        values, said = found["averages"]
        torch.testing.assert_close(values, alone[0], **CLOSE)
        assert "use 'with ema.applied():'" in said


def test_a_process_holds_its_shards(two: Found, tmp_path: Path) -> None:
    alone, top = fsdp_checks.held(0, 1, tmp_path)
    held = [found["held"][0] for found in two]
    assert sum(held) == alone
    assert max(held) < 0.6 * alone
    assert all(found["held"][1] == top for found in two)


def test_a_run_resumed_amid_a_loop_ends_bit_equal(two: Found) -> None:
    for found in two:
        assert not isinstance(found["resumed"], str), found["resumed"]
        whole, again = found["resumed"]
        torch.testing.assert_close(again, whole, rtol=0, atol=0)


def test_a_run_keeps_the_shards_of_its_checkpoints(two: Found) -> None:
    for found in two:
        names, _ = found["kept"]
        files = [name for name in names if name.endswith(".ckpt")]
        folders = [name for name in names if ".ckpt.shards-" in name]
        assert len(files) == 2
        assert sorted(name.split(".shards-")[0] for name in folders) == files


@pytest.mark.parametrize(("reader", "saved_by"), [(0, 1), (1, 1), (1, 2), (2, 1), (2, 2), (2, 4)])
def test_checkpoints_go_on_in_other_numbers_of_processes(
    reader: int, saved_by: int, sharded: Any
) -> None:
    """Readers: two processes, four, and two again."""
    saver = {2: sharded[0], 4: sharded[1]}
    folder = Path(sharded[3])
    for found in sharded[reader]:
        assert not isinstance(found["handed_on"], str), found["handed_on"]
        loaded = found["handed_on"][0][saved_by]
        if saved_by == 1:
            engine = fsdp_checks.program("sama", 0, 1)
            engine.load(folder / "1.ckpt")
            expected = fsdp_checks.state_of(engine)
        else:
            expected = saver[saved_by][0]["handed_on"][1]
        torch.testing.assert_close(loaded, expected, rtol=0, atol=0)


@pytest.mark.parametrize("saved_by", [2, 4])
def test_one_process_goes_on_too(saved_by: int, sharded: Any) -> None:
    folder = Path(sharded[3])
    engine = fsdp_checks.program("sama", 0, 1)
    engine.load(folder / f"{saved_by}.ckpt")
    # "two again" has written its own over that of two, with the same program.
    expected = {2: sharded[2], 4: sharded[1]}[saved_by][0]["handed_on"][1]
    torch.testing.assert_close(fsdp_checks.state_of(engine), expected, rtol=0, atol=0)
    engine.run()


@pytest.fixture
def copied(sharded: Any, tmp_path: Path) -> Path:
    """A checkpoint of four processes and its folder."""
    for path in Path(sharded[3]).glob("4.ckpt*"):
        if path.is_dir():
            shutil.copytree(path, tmp_path / path.name)
        else:
            shutil.copy(path, tmp_path / path.name)
    return tmp_path / "4.ckpt"


def test_the_folder_holds_safetensors_that_others_read(copied: Path) -> None:
    from safetensors import safe_open

    (folder,) = copied.parent.glob("4.ckpt.shards-*")
    files = sorted(folder.iterdir())
    assert [file.suffix for file in files] == [".safetensors"] * 4
    names = set()
    for file in files:
        with safe_open(file, "pt") as opened:
            names |= set(opened.keys())
    assert any(name.endswith("module.first.weight") for name in names)


def test_nothing_is_unpickled(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    engine = fsdp_checks.program("sama", 0, 1)
    engine.load(copied)


def test_a_damaged_shard_is_found(copied: Path) -> None:
    (folder,) = copied.parent.glob("4.ckpt.shards-*")
    file = sorted(folder.iterdir())[1]
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    engine = fsdp_checks.program("sama", 0, 1)
    with pytest.raises(CheckpointError, match="is missing or damaged"):
        engine.load(copied)
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="is missing or damaged"):
        engine.load(copied)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cg", "asks for ConjugateGradient, which differentiates twice.*type='darts'"),
        ("neumann", "asks for Neumann, which differentiates twice"),
        ("nystrom", "asks for Nystrom, which differentiates twice"),
        ("forward mode", "asks for Reweighting, which differentiates twice or forward"),
        ("exact", "asks for SAMA, which differentiates twice"),
        ("adamax", "asks for SAMA, which differentiates twice.*type='sama' with SGD, Adam"),
        ("lbfgs", "LBFGS, the optimizer of problem 'low', wants closure"),
        ("fp16", r"has Config\(precision='fp16'\), which does not go with sharded"),
        ("bf16", r"has EngineConfig\(precision='bf16'\), which does not go with sharded"),
        ("stepped", "the optimizer Adam, which has taken steps already"),
        ("checked", "check_hypergradient"),
    ],
)
def test_what_cannot_be_is_refused_in_all(name: str, message: str, two: Found) -> None:
    for found in two:
        assert not isinstance(found["refused"], str), found["refused"]
        said = found["refused"][name]
        assert __import__("re").search(message, said), said


def test_a_module_that_was_sharded_by_hand(two: Found, tmp_path: Path) -> None:
    """It is trained where problems are sharded, and refused where they are whole."""
    end, said = fsdp_checks.sharded_by_hand(0, 1, tmp_path)
    assert set(said.values()) == {"taken"}
    for found in two:
        assert not isinstance(found["sharded_by_hand"], str), found["sharded_by_hand"]
        values, refused = found["sharded_by_hand"]
        torch.testing.assert_close(values, end, **CLOSE)
        for words in refused.values():
            assert "'first.weight' in the module of problem 'fit' is a DTensor" in words
            assert (
                "EngineConfig(strategy='fsdp') shards what the problem's shard_modules()" in words
            )
