"""The script for a CUDA card: its steps, their time limits, and what it writes."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("benchmark_modules")


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def step(name: str, code: str, seconds: float = 30.0, part: str = "speed") -> Any:
    from gpu import Step

    # Without site-packages a process starts in some milliseconds.
    return Step(part, name, [sys.executable, "-S", "-c", code], seconds)


@pytest.mark.usefixtures("no_card")
def test_without_a_card_nothing_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import gpu

    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Nothing was run: torch sees no CUDA card here")
    assert "--device cpu" in said
    assert not (tmp_path / "out").exists()


def test_steps_that_fail_or_take_too_long_are_reported_and_the_others_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpu

    steps = [
        step("broken", "print('so it was'); raise SystemExit(4)"),
        # Longer than its time, as is the process that it has started.
        step("slow", "import subprocess as s, sys; s.run([sys.executable, '-S', '-c', WAIT])", 0.5),
        step("sound", "print('well')"),
        step("study", "raise SystemExit(3)", part="protocol"),
    ]
    left = tmp_path / "left"
    wait = f"import time; time.sleep(3); open({str(left)!r}, 'w')"
    steps[1].command[-1] = steps[1].command[-1].replace("WAIT", repr(wait))
    start = time.perf_counter()
    assert not gpu.run_all(steps, tmp_path, "cpu")
    assert time.perf_counter() - start < 3
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["environment"]["torch"] == torch.__version__
    outcomes = {found["step"]: found["outcome"] for found in report["steps"]}
    assert outcomes == {
        "broken": "failed",
        "slow": "took too long",
        "sound": "passed",
        "study": "not finished",
    }
    assert [found["exit code"] for found in report["steps"]] == [4, None, 0, 3]
    assert report["steps"][0]["last lines"] == ["so it was"]
    assert (tmp_path / "sound.log").read_text() == "well\n"
    assert "    so it was" in capsys.readouterr().out
    assert gpu.run_all(steps[2:], tmp_path, "cpu")
    time.sleep(max(0.0, 3.5 - (time.perf_counter() - start)))
    assert not left.exists()


def test_the_exit_code_says_whether_a_step_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu

    steps = [step("sound", ""), step("broken", "raise SystemExit(1)", part="tests")]
    monkeypatch.setattr(gpu, "all_steps", lambda asked: steps)
    given = ["--device", "cpu", "--out", str(tmp_path), "--only"]
    assert [gpu.main([*given, part]) for part in ("tests", "speed")] == [1, 0]


def test_everything_takes_at_most_25_minutes() -> None:
    import gpu

    steps = gpu.all_steps(gpu.parse([]))
    assert [s.part for s in steps] == ["tests", "speed", "speed", "speed", "language", "protocol"]
    assert sum(s.seconds for s in steps) <= 25 * 60
    with pytest.raises(SystemExit):
        gpu.parse(["--minutes", "0"])


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_scripts_take_the_words_of_the_steps(
    device: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import gpu
    import lm_cost
    import speed
    from study import options

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(options, "fastest_precision", lambda device: "bf16")
    steps = gpu.all_steps(gpu.parse(["--device", device, "--out", str(tmp_path)]))
    tests, *timed, language, protocol = (list(s.command) for s in steps)
    assert ("gpu" in tests) == (device == "cuda")
    assert (gpu.ROOT / tests[-1]).exists()
    for command in timed:
        assert command[1] == "benchmarks/speed.py"
        found = speed.parse(command[2:])
        assert found.device == device
        assert speed.chosen(found)[0].device == device
    assert language[1] == "benchmarks/lm_cost.py"
    words = lm_cost.parse(language[2:])
    assert (words.device, words.precision) == (device, "bf16")
    assert words.method == ["central", "every 4"]
    assert (words.width == 2048) == (device == "cuda")
    assert protocol[1] == "benchmarks/imbalanced_cifar.py"
    defaults = {"dataset": "cifar10", "imbalance_factor": 100.0}
    asked = options.parse(protocol[2:], "", defaults)
    assert asked is not None
    assert [method.name for method in asked.methods] == list(gpu.METHODS)
    assert (asked.device, asked.minutes, asked.seeds) == (device, gpu.MINUTES, [0])
    assert asked.setting.network == ("resnet32" if device == "cuda" else "digits-net")
