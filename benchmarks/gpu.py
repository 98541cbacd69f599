"""What has to be seen on a CUDA card, in at most 25 minutes.

::

    python benchmarks/gpu.py                        # everything, as `make gpu`
    python benchmarks/gpu.py --only tests
    python benchmarks/gpu.py --only protocol --minutes 60   # goes on with it

============  ====================================================================================
``tests``     the tests marked ``gpu``
``speed``     steps of ResNet-32, MLP and transformer against the peers, on the card
``language``  data weights of a Llama of a billion parameters in bf16 against plain fine-tuning
              of all of it, and with LoRA; needs ``pip install 'metaweight[trl]'``
``protocol``  ResNet-32 on long-tailed CIFAR-10 by the published protocol of Meta-Weight-Net, with
              ``--minutes`` of time; its records go on from run to run
============  ====================================================================================

Each step is a process with a time limit. One that fails or takes too long is reported, and the
others are run; the exit code is then 1. ``gpu.json`` has the outcome of each and the card, a folder
each its JSON, and ``NAME.log`` what it printed. Without a card nothing is run, and the exit code is
2; ``--device cpu`` is a short trial of the same parts there.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from devices import DEVICES
from turns import environment

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("tests", "speed", "language", "protocol")
WORKLOADS = {"resnet32": 240, "mlp": 180, "transformer": 180}
"""The workloads of ``speed.py`` that are timed, with the seconds that each may take."""
METHODS = ("ce+meta", "meta-weight-net+meta", "class-aware+meta/one-sided")
TRIED = "tests/engines/test_on_a_gpu.py"
"""The tests of a trial on the processor."""
MINUTES, LOADING, GRACE = 5.0, 120, 20
"""Minutes of the protocol; seconds to load its data, and for a step to end when it is told to."""
UNFINISHED = 3
"""The exit code of a study whose time was up; the same command goes on with it."""
SHOWN = 15


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        part: What it belongs to, one of :data:`PARTS`.
        name: Its name, which its log has too.
        command: Its words.
        seconds: After which it is ended.
    """

    part: str
    name: str
    command: Sequence[str]
    seconds: float


def all_steps(asked: argparse.Namespace) -> list[Step]:
    """Return the steps of all parts, in order."""
    return [
        Step("tests", "tests", _python("-m", "pytest", "-q", *_tests(asked)), 240),
        *(
            Step("speed", f"speed-{name}", _python(*_speed(asked, name)), seconds)
            for name, seconds in (WORKLOADS if _on_a_card(asked) else {"toy": 240}).items()
        ),
        Step("language", "language", _python(*_language(asked)), 240),
        Step("protocol", "protocol", _python(*_protocol(asked)), 60 * asked.minutes + LOADING),
    ]


def _python(*words: str) -> list[str]:
    return [sys.executable, *words]


def _on_a_card(asked: argparse.Namespace) -> bool:
    return bool(asked.device != "cpu")


def _tests(asked: argparse.Namespace) -> list[str]:
    return ["-m", "gpu", "tests"] if _on_a_card(asked) else [TRIED]


def _speed(asked: argparse.Namespace, workload: str) -> list[str]:
    words = ["benchmarks/speed.py", "--device", asked.device, "--workload", workload]
    words += [] if _on_a_card(asked) else ["--rounds", "2"]
    return [*words, "--out", str(asked.out / f"speed-{workload}")]


def _language(asked: argparse.Namespace) -> list[str]:
    words = ["benchmarks/lm_cost.py", "--device", asked.device, "--method", "central", "every 4"]
    sizes = {"width": 2048, "layers": 16, "words": 32_000, "length": 1024, "rounds": 3}
    sizes = sizes if _on_a_card(asked) else {"rounds": 1}
    words += [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    return [*words, "--precision", "bf16", "--out", str(asked.out / "language")]


def _protocol(asked: argparse.Namespace) -> list[str]:
    words = ["benchmarks/imbalanced_cifar.py", "--device", asked.device, "--seeds", "1"]
    words += [word for method in METHODS for word in ("--method", method)]
    words += ["--minutes", f"{asked.minutes:g}", "--out", str(asked.out / "protocol")]
    if _on_a_card(asked):
        return [*words, "--network", "resnet32", "--data", str(asked.data)]
    return [*words, "--dataset", "digits", "--imbalance-factor", "10", "--steps", "20"]


def run(step: Step, out: Path, grace: float = GRACE) -> dict[str, Any]:
    """Run a step, and return what became of it.

    Args:
        step: The step.
        out: Folder of its log.
        grace: Seconds that its processes have to end themselves when its time is up.
    """
    log = out / f"{step.name}.log"
    start = time.perf_counter()
    with log.open("w") as sink:
        process = subprocess.Popen(
            step.command, stdout=sink, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True
        )
        try:
            code: int | None = process.wait(step.seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process, grace)
    return {
        "step": step.name,
        "outcome": _outcome(step, code),
        "seconds": round(time.perf_counter() - start, 1),
        "limit": step.seconds,
        "exit code": code,
        "command": list(step.command),
        "last lines": log.read_text(errors="replace").splitlines()[-SHOWN:],
    }


def _end(process: subprocess.Popen[bytes], grace: float) -> None:
    """End a process and those that it has started; a run that is told to is saved."""
    with suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _outcome(step: Step, code: int | None) -> str:
    if code is None:
        return "took too long"
    if code == UNFINISHED and step.part == "protocol":
        return "not finished"
    return "failed" if code else "passed"


def run_all(steps: Sequence[Step], out: Path, device: str) -> bool:
    """Run the steps, write ``gpu.json`` after each, and return whether none failed."""
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"environment": environment(torch.get_num_threads(), device)}
    report["steps"] = []
    for step in steps:
        found = run(step, out)
        report["steps"].append(found)
        (out / "gpu.json").write_text(json.dumps(report, indent=2))
        print(f"{step.name}: {found['outcome']} after {found['seconds']} s", flush=True)
        if found["outcome"] in ("failed", "took too long"):
            print("\n".join(f"    {line}" for line in found["last lines"]), flush=True)
    return all(f["outcome"] in ("passed", "not finished") for f in report["steps"])


def parse(given: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of the protocol")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of CIFAR-10")
    parser.add_argument(
        "--device", choices=DEVICES, default="cuda", help="cpu: a short trial (default: cuda)"
    )
    parser.add_argument("--out", type=Path, default=Path("results/gpu"))
    asked = parser.parse_args(given)
    if not 0 < asked.minutes < float("inf"):
        parser.error(f"argument --minutes: {asked.minutes} is not positive and finite")
    asked.out, asked.data = asked.out.resolve(), asked.data.resolve()
    return asked


def main(given: Sequence[str] | None = None) -> int:
    """Run what is asked for; return the exit code."""
    asked = parse(given)
    if _on_a_card(asked) and not torch.cuda.is_available():
        print(
            "Nothing was run: torch sees no CUDA card here; run this where there is one, or try "
            "the parts by --device cpu.",
            file=sys.stderr,
        )
        return 2
    steps = [step for step in all_steps(asked) if step.part in asked.only]
    fine = run_all(steps, asked.out, asked.device)
    print(f"\nRecords are in {asked.out}.")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
