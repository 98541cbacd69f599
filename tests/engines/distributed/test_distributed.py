"""Two processes on halves of every batch do what one does on whole batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from metaweight.engines.distributed.process_group import FROM_TORCHRUN
from support import process_checks
from support.each_process import RESULTS
from support.fork_server import start_module
from support.once import once
from support.shared_out import program
from support.small import problem
from support.two_processes import CLOSE, SECONDS, free_port, same

from metaweight import CheckpointError, ConfigurationError, Engine, EngineConfig


@pytest.fixture(scope="module")
def methods_alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return once(tmp_path_factory, "alone", lambda folder: process_checks.methods(0, 1, folder))


@pytest.mark.parametrize(("kind", "accumulation"), [case[:2] for case in process_checks.CASES])
def test_two_processes_end_where_one_does(
    kind: str, accumulation: int, together: list[dict[str, Any]], methods_alone: Any
) -> None:
    """With accumulation gradients are clipped too."""
    found = [each["methods"] for each in together]
    assert isinstance(found[0], dict), found[0]
    first, second = (each[kind, accumulation] for each in found)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, methods_alone[kind, accumulation], **CLOSE)


@pytest.mark.parametrize(
    "name",
    [
        "states_shared_out",
        "shared_out_rolled_back",
        "chains",
        "rolled_back",
        "batch_norm_together",
        "gradients_seen",
        "plateau",
        "averages",
        "unused",
        "redrawn",
        "graphs_where_one_has_no_memory",
    ],
)
def test_so_do(name: str, together: list[dict[str, Any]], tmp_path: Path) -> None:
    same(together, name, RESULTS[name](0, 1, tmp_path))


def test_batch_norms_of_their_own_still_keep_the_same_running_statistics(
    together: list[dict[str, Any]],
) -> None:
    first, second = (found["batch_norm_apart"] for found in together)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_validations_are_averaged(together: list[dict[str, Any]]) -> None:
    for found in together:
        assert len(found["validations"]) == 2
        for stats in found["validations"]:
            assert stats["loss"] == 1.5
            assert torch.equal(stats["table"], torch.tensor([0.5, 4.0]))
            assert stats["name"] == "text"


def test_an_evaluation_takes_one_reduction_of_the_vector_and_one_of_the_gradient(
    together: list[dict[str, Any]],
) -> None:
    """Two lower steps, of which the second is followed by an upper one: one, and three. The first
    upper step takes one more, to learn whether some process has a hypergradient."""
    for found in together:
        assert found["reductions"] == [0, 1, 5, 6, 9]


@pytest.mark.parametrize(
    "name", ["shuffled", "own generator", "in order", "tensors", "replacement", "own sampler"]
)
def test_batches_are_shared_out(name: str, together: list[dict[str, Any]], tmp_path: Path) -> None:
    """11 samples, 4 at a time: an epoch ends with a batch of 3, of which one is given twice."""
    halves = [found["loaders"][name] for found in together]
    assert all(len(part) == 2 for half in halves for part in half[:2])
    whole = [sorted(a + b) for a, b in zip(*halves, strict=True)]
    if name != "replacement":
        assert {sample for batch in whole[:3] for sample in batch} == set(range(11))
    if name == "in order":
        assert halves[0][:3] == [[0.0, 2.0], [4.0, 6.0], [8.0, 10.0]]
    if name != "in order":
        assert whole[:3] != whole[3:6]
    if name in ("tensors", "replacement"):
        alone = process_checks.loaders(0, 1, tmp_path)[name]
        full = [i for i, batch in enumerate(alone) if len(batch) == 4]
        assert [whole[i] for i in full] == [sorted(alone[i]) for i in full]


def test_lists_are_taken_as_they_are(together: list[dict[str, Any]]) -> None:
    assert [found["loaders"]["list"][0] for found in together] == [[0.0], [1.0]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_batches", "takes its batches from Pairs, which cannot be shared out among 2"),
        (
            "different_modules",
            "of problem 'fit' is (1, 3) float32 in process 0",
        ),
        ("different_names", "the list of problems is ['same'] in process 0 and ['other'] in"),
        (
            "different_precisions",
            "Config(precision) of problem 'top' is fp32 in process 0 and bf16 in process 1",
        ),
        ("one_state_for_all", "LBFGS, which keeps one state for all parameters"),
        (
            "different_lengths",
            "the number of batches of loader 0 of problem 'fit' is 3 in process 0 and 4 in",
        ),
        ("wrapped", "'0' of problem 'fit' is a DistributedDataParallel, which averages"),
        ("reinforce", "asks for Reinforce in 2 processes"),
    ],
)
def test_what_cannot_be_is_refused_in_both(
    name: str, message: str, together: list[dict[str, Any]]
) -> None:
    for found in together:
        assert message in found[name]


def test_processes_draw_different_numbers_and_the_first_as_if_it_were_alone(
    together: list[dict[str, Any]], tmp_path: Path
) -> None:
    first, second = (found["streams"] for found in together)
    assert not torch.equal(first, second)
    torch.default_generator.manual_seed(0)
    assert torch.equal(first, process_checks.streams(0, 1, tmp_path))


def test_a_check_of_hypergradients_runs(together: list[dict[str, Any]]) -> None:
    for found in together:
        assert max(found["audited"]) < 1e-2


def test_one_process_stops_all(together: list[dict[str, Any]]) -> None:
    assert [found["stopped_by_one"] for found in together] == [3, 3]


def test_a_signal_to_one_process_ends_all_alike(together: list[dict[str, Any]]) -> None:
    assert [found["signalled"] for found in together] == [(3, [15]), (3, [15])]


@pytest.mark.parametrize("name", ["resumed", "resumed_inside_a_loop", "shared_out_resumed"])
def test_a_resumed_run_ends_bit_equal(name: str, together: list[dict[str, Any]]) -> None:
    for found in together:
        whole, again = found[name]
        torch.testing.assert_close(again, whole, rtol=0, atol=0)


def test_what_two_processes_saved_goes_on_in_one(
    together: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = Path(together[0]["place"])
    engine = process_checks.saving(0, 1, tmp_path, 9)
    engine.load(folder / "resumed" / "parts" / "step-0000000007.ckpt")
    saved = together[0]["resumed"][1]
    torch.testing.assert_close(process_checks.parameters(engine), saved, rtol=0, atol=0)
    engine.run()
    assert engine.global_step == 9
    inside = program("unroll one-sided", 0, 1, accumulation=2)
    with pytest.raises(CheckpointError, match=r"saved by 2 processes inside a loop.*go on with 2"):
        inside.load(folder / "resumed_inside_a_loop" / "inside.pt")


def test_the_first_process_writes(together: list[dict[str, Any]]) -> None:
    assert [found["rank_zero"] for found in together] == [(True, True), (False, False)]


def test_each_process_keeps_a_part_of_the_state_and_saves_all(
    together: list[dict[str, Any]], tmp_path: Path
) -> None:
    numbers, whole = process_checks.states_kept(0, 1, tmp_path)
    kept = [found["states_kept"][0] for found in together]
    assert sorted(kept[0] + kept[1]) == numbers
    assert all(kept)
    for found in together:
        torch.testing.assert_close(found["states_kept"][1], whole, **CLOSE)


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of two processes of which one is killed, started again, and then fails."""

    def start(folder: Path) -> dict[str, Any]:
        ended = start_module("support.restarted", str(folder), str(free_port())).wait()
        assert (folder / "killed").exists(), ended.stderr
        ends = [torch.load(folder / f"end_{rank}.pt", weights_only=True) for rank in range(2)]
        return {"code": ended.returncode, "said": ended.stderr, "ends": ends}

    found: dict[str, Any] = once(tmp_path_factory, "launched", start)
    return found


def test_a_killed_process_is_restarted_and_the_run_ends_as_if_nothing_had_been(
    together: list[dict[str, Any]], launched: dict[str, Any]
) -> None:
    for end, found in zip(launched["ends"], together, strict=True):
        torch.testing.assert_close(end, found["resumed"][0], rtol=0, atol=0)


def test_an_error_in_one_process_ends_all(launched: dict[str, Any]) -> None:
    """The other one has hundreds of steps left."""
    assert launched["code"] != 0
    assert "broken on purpose" in launched["said"]


LEAVES = """
import atexit, torch.distributed as dist
atexit.register(lambda: print("left" if not dist.is_initialized() else "still there"))
from metaweight import EngineConfig
from metaweight.engines.distributed.process_group import join_processes
import torch
join_processes(EngineConfig(strategy="distributed", backend="gloo"), torch.device("cpu"))
assert dist.is_initialized()
"""


@pytest.mark.slow
def test_a_process_leaves_the_group_before_it_ends() -> None:
    """Threads that still wait for messages would now and then end it with an abort."""
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    ended = subprocess.run(
        [sys.executable, "-c", LEAVES],
        env={**os.environ, **alone, "MASTER_PORT": str(free_port())},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "left"


def test_a_program_of_several_processes_is_started_as_such(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in FROM_TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError, match=r"RANK, WORLD_SIZE.*torchrun --nproc-per-node"):
        program("darts", 0, 1, strategy="distributed", backend="gloo")


def test_each_process_needs_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigurationError, match="process 1 of this machine finds 1"):
        Engine([problem()], EngineConfig(strategy="distributed"))
