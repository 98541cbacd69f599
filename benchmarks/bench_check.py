"""A check of step costs: key ratios measured now, against recorded ones.

::

    make bench-check
    python benchmarks/bench_check.py --only mlp      # workloads whose title starts with this
    python benchmarks/bench_check.py --record        # record the ratios measured now
    python benchmarks/bench_check.py --told results/speed/speed.json   # ratios from speed.py

Only ratios are compared, of contenders that take turns on one machine: absolute times say more
about the machine than about the library. ``recorded_ratios.json`` holds each ratio and its
tolerance; a ratio beyond that fails the check. Edit the file to check others. Takes about six
minutes on 2 quiet cores; on a busy machine a failure should be measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from speed_report import ratio
from speed_workloads import Workload, measured, workloads
from turns import Outcome, environment, markdown

RECORDED = Path(__file__).with_name("recorded_ratios.json")
FIELDS = {"time": "wall", "peak memory": "peak"}
WORSE, IMPROVED, SAME = "worse", "improved", "as recorded"
LEFT_OUT, UNKNOWN = "left out", "not recorded"


@dataclass(frozen=True)
class Ratio:
    """A ratio of costs, with its recorded value.

    Attributes:
        workload: Title of the workload.
        contender: The contender whose cost is the numerator.
        against: The contender whose cost is the denominator.
        of: ``"time"`` or ``"peak memory"``.
        ratio: The recorded value; ``None`` if not recorded yet.
        tolerance: Allowed increase, as a share of the recorded value.
    """

    workload: str
    contender: str
    against: str
    of: str
    ratio: float | None = None
    tolerance: float = 0.15

    def verdict(self, found: float | None) -> str:
        """Return the verdict on ``found`` against the recorded value; ``None`` is left out."""
        if found is None:
            return LEFT_OUT
        if self.ratio is None:
            return UNKNOWN
        if not found <= self.ratio * (1 + self.tolerance):
            return WORSE
        return IMPROVED if found < self.ratio * (1 - self.tolerance) else SAME

    def sentence(self, found: float) -> str:
        """Return a sentence about ``found``."""
        what = "takes {:.3g} times as long as" if self.of == "time" else "peaks at {:.3g} times"
        now = f"{self.workload}: {self.contender!r} {what.format(found)} {self.against!r}"
        if self.ratio is None:
            return f"{now}; this ratio is not recorded, do so with --record."
        return f"{now}; recorded: {self.ratio:.3g}, allowed: {self.tolerance:.0%} more."


Found = Mapping[Ratio, float | None]
Outcomes = Mapping[str, Mapping[str, Outcome]]


def read(path: Path) -> list[Ratio]:
    """Return the recorded ratios.

    Raises:
        ValueError: When one is not of time or peak memory, or not a number above 0.
    """
    ratios = [Ratio(**entry) for entry in json.loads(path.read_text())["ratios"]]
    for one in ratios:
        known = one.ratio is None or 0 < one.ratio < math.inf
        if one.of not in FIELDS or not known or not 0 <= one.tolerance < 1:
            raise ValueError(
                f"{path.name} has the entry {asdict(one)}; 'of' is one of {', '.join(FIELDS)}, "
                "'ratio' above 0 or null, and 'tolerance' from 0 to 1."
            )
    return ratios


def write(path: Path, found: Found, conditions: Mapping[str, Any]) -> None:
    """Record the ratios found; those left out keep their recorded values."""
    ratios = [
        one if now is None else replace(one, ratio=round(now, 4)) for one, now in found.items()
    ]
    report = {"recorded with": dict(conditions), "ratios": [asdict(one) for one in ratios]}
    path.write_text(json.dumps(report, indent=2) + "\n")


def measure(ratios: Sequence[Ratio], known: Mapping[str, Workload], rounds: int | None) -> Outcomes:
    """Measure the contenders that the ratios name.

    Args:
        ratios: The ratios.
        known: The workloads by their titles.
        rounds: Turns of every contender, instead of each workload's own.

    Raises:
        ValueError: For an unknown workload.
    """
    outcomes: dict[str, Mapping[str, Outcome]] = {}
    for title in dict.fromkeys(one.workload for one in ratios):
        if title not in known:
            raise ValueError(
                f"{title!r} is recorded but not a workload; those are {', '.join(known)}."
            )
        own = [one for one in ratios if one.workload == title]
        names = {name for one in own for name in (one.contender, one.against)}
        # A spawned process imports for itself, so that its peak memory is its own.
        start = "spawn" if any(one.of == "peak memory" for one in own) else "forkserver"
        outcomes[title] = measured(known[title].with_effort(rounds, None), names, start)
    return outcomes


def compared(ratios: Sequence[Ratio], outcomes: Outcomes) -> Found:
    """Return each ratio now; ``None`` where a peer is not installed or failed."""
    found: dict[Ratio, float | None] = {}
    for one in ratios:
        above, below = (outcomes[one.workload].get(name) for name in (one.contender, one.against))
        if above is None or below is None or above.error or below.error:
            found[one] = None
        else:
            found[one] = ratio(above, below, FIELDS[one.of])
    return found


def told(ratios: Sequence[Ratio], written: Mapping[str, Any]) -> Found:
    """Return each ratio from a report of ``speed.py``; ``None`` where the report lacks it."""
    found: dict[Ratio, float | None] = {}
    for one in ratios:
        rows = {row["contender"]: row for row in written.get(one.workload, {}).get("rows", [])}
        above, below = rows.get(one.contender, {}), rows.get(one.against, {})
        # Both are ratios to the same contender, with whose name the column's name ends.
        prefix = "times " if one.of == "time" else "peak times "
        column = next((key for key in above if key.startswith(prefix)), "")
        both = above.get(column), below.get(column)
        found[one] = None if None in both else both[0] / both[1]
    return found


def report(found: Found) -> tuple[str, int]:
    """Return the text to print, and the exit status: 1 if any ratio is worse or not recorded."""
    rows = [
        {
            "workload": one.workload,
            "contender": one.contender,
            "against": one.against,
            "of": one.of,
            "recorded": one.ratio,
            "now": now,
            "verdict": one.verdict(now),
        }
        for one, now in found.items()
    ]
    lines = [markdown(rows, "Ratios now against those recorded"), ""]
    for one, now in found.items():
        verdict = one.verdict(now)
        if now is not None and verdict != SAME:
            lines.append(f"{verdict}: {one.sentence(now)}")
        elif now is None:
            lines.append(
                f"{LEFT_OUT}: {one.workload}: {one.contender!r} against {one.against!r}, of which "
                "at least one was not measured (is the peer installed?)."
            )
    verdicts = [one.verdict(now) for one, now in found.items()]
    worse, unknown = verdicts.count(WORSE), verdicts.count(UNKNOWN)
    lines.append(f"{worse} of {len(found)} ratios are worse than the tolerance allows.")
    if IMPROVED in verdicts:
        lines.append("Record those that improved with --record.")
    return "\n".join(lines), int(worse + unknown > 0)


def main(given: Sequence[str] | None = None) -> int:
    """Measure, then compare or record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="record the ratios measured now")
    parser.add_argument("--only", default="", help="workloads whose title starts so")
    parser.add_argument("--rounds", type=int, help="turns of every contender")
    parser.add_argument("--told", type=Path, nargs="+", help="reports to read instead")
    parser.add_argument("--file", type=Path, default=RECORDED, help="of the recorded ratios")
    arguments = parser.parse_args(given)
    recorded = read(arguments.file)
    asked = [one for one in recorded if one.workload.startswith(arguments.only)]
    if arguments.told:
        written = [json.loads(path.read_text()) for path in arguments.told]
        found = told(asked, {title: part for one in written for title, part in one.items()})
    else:
        known = {w.title: w for listed in workloads().values() for w in listed}
        found = compared(asked, measure(asked, known, arguments.rounds))
    text, status = report(found)
    print(text)
    if arguments.record:
        kept: dict[Ratio, float | None] = dict.fromkeys(recorded)
        conditions = {k: v for k, v in environment(0).items() if k != "threads"}
        write(arguments.file, {**kept, **found}, conditions)
        return 0
    return status


if __name__ == "__main__":
    sys.exit(main())
