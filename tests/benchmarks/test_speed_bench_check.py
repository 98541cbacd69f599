"""The check of recorded ratios: what fails it, what it says, what it records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("benchmark_modules")

TITLE = "mlp"


def measured(**seconds: float) -> dict[str, Any]:
    """What contenders might have measured, in two rounds on a machine whose speed drifts."""
    return {
        name: SimpleNamespace(
            turns=[SimpleNamespace(wall=k * s, cpu=k * s, peak=100 * s) for k in (1, 3)],
            error=None,
        )
        for name, s in seconds.items()
    }


def recorded(**more: Any) -> Any:
    from bench_check import Ratio

    given: dict[str, Any] = {"of": "time", "ratio": 2.0, "tolerance": 0.15} | more
    return Ratio(TITLE, "ours", "plain", **given)


def outcome_of(one: Any, **seconds: float) -> tuple[str, int]:
    from bench_check import compared, report

    found: tuple[str, int] = report(compared([one], {TITLE: measured(**seconds)}))
    return found


def test_a_ratio_within_its_tolerance_passes() -> None:
    text, status = outcome_of(recorded(), ours=2.29, plain=1.0)
    assert status == 0
    assert "| as recorded |" in text
    assert "0 of 1 ratios are worse than the tolerance allows." in text


def test_a_ratio_beyond_its_tolerance_fails_with_a_sentence() -> None:
    text, status = outcome_of(recorded(), ours=2.4, plain=1.0)
    assert status == 1
    assert (
        "worse: mlp: 'ours' takes 2.4 times as long as 'plain'; recorded: 2, allowed: 15% "
        "more." in text
    )
    assert "1 of 1 ratios are worse than the tolerance allows." in text


def test_peak_memory_is_compared_too() -> None:
    text, status = outcome_of(recorded(of="peak memory", ratio=1.1), ours=1.5, plain=1.0)
    assert status == 1
    assert "worse: mlp: 'ours' peaks at 1.5 times 'plain'; recorded: 1.1" in text


def test_an_improvement_is_said_and_passes() -> None:
    text, status = outcome_of(recorded(), ours=1.5, plain=1.0)
    assert status == 0
    assert "improved: mlp: 'ours' takes 1.5 times as long as 'plain'" in text
    assert "Record those that improved with --record." in text


def test_what_is_not_a_number_fails() -> None:
    assert outcome_of(recorded(), ours=float("nan"), plain=1.0)[1] == 1


def test_a_peer_that_is_not_there_is_left_out_and_said() -> None:
    text, status = outcome_of(recorded(), ours=9.0)
    assert status == 0
    assert "left out: mlp: 'ours' against 'plain'" in text


def test_a_ratio_nobody_recorded_fails() -> None:
    text, status = outcome_of(recorded(ratio=None), ours=3.0, plain=1.0)
    assert status == 1
    assert (
        "not recorded: mlp: 'ours' takes 3 times as long as 'plain'; this ratio is not recorded, "
        "do so with --record." in text
    )


def test_recording_replaces_ratios_and_keeps_what_was_left_out(tmp_path: Path) -> None:
    from bench_check import read, write

    path = tmp_path / "ratios.json"
    one, other = recorded(), recorded(of="peak memory")
    write(path, {one: 3.14159, other: None}, {"processor": "some"})
    assert read(path) == [replace(one, ratio=3.1416), other]
    assert json.loads(path.read_text())["recorded with"] == {"processor": "some"}


@pytest.mark.parametrize("wrong", [{"of": "energy"}, {"ratio": 0.0}, {"tolerance": 15.0}])
def test_entries_that_make_no_sense_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    from bench_check import read, write

    path = tmp_path / "ratios.json"
    write(path, {recorded(**wrong): None}, {})
    with pytest.raises(ValueError, match="'of' is one of time, peak memory"):
        read(path)


def test_a_workload_there_is_not_is_refused() -> None:
    from bench_check import measure

    with pytest.raises(ValueError, match="'mlp' is recorded but not a workload; those are toy 1"):
        measure([recorded()], {"toy 1": None}, 1)  # type: ignore[dict-item]


def test_every_recorded_ratio_is_of_contenders_there_are() -> None:
    from bench_check import RECORDED, read
    from speed_workloads import workloads

    known = {w.title: set(w.contenders()) for listed in workloads().values() for w in listed}
    peers = ("betty-ml", "higher", "torchopt")
    for one in read(RECORDED):
        for name in (one.contender, one.against):
            assert name in known[one.workload] or name.startswith(peers), name
    assert len(read(RECORDED)) == len(set(read(RECORDED)))


def test_ratios_are_read_from_what_the_benchmark_wrote(tmp_path: Path) -> None:
    from bench_check import main, told

    rows = [
        {"contender": "ours", "times plain": 3.0, "peak times plain": 1.2},
        {"contender": "plain", "times plain": 1.0, "peak times plain": 1.0},
        {"contender": "peer", "times plain": 6.0, "peak times plain": 1.5},
        {"contender": "failed", "times plain": None, "peak times plain": None},
    ]
    ratios = [
        recorded(),
        replace(recorded(), against="peer", ratio=0.5),
        replace(recorded(), of="peak memory", against="peer"),
        replace(recorded(), against="failed"),
        replace(recorded(), workload="another"),
    ]
    found = told(ratios, {TITLE: {"rows": rows}})
    assert list(found.values()) == pytest.approx([3.0, 0.5, 0.8, None, None])
    written, file = tmp_path / "speed.json", tmp_path / "recorded.json"
    written.write_text(json.dumps({TITLE: {"rows": rows}}))
    file.write_text(json.dumps({"ratios": [vars(one) for one in ratios[:2]]}))
    assert main(["--told", str(written), "--file", str(file)]) == 1
    assert main(["--told", str(written), "--file", str(file), "--record"]) == 0
    assert main(["--told", str(written), "--file", str(file)]) == 0
