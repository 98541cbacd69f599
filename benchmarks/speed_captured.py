"""Small steps by Python, by a graph of their operations, and compiled, against a hand-written loop.

::

    python benchmarks/speed_captured.py --out benchmarks/results/captured

A turn is a run of some iterations. Each contender has several processes, one after the other, since
one whose memory lies badly is slower throughout. The first run of each, in which its steps are
captured and compiled, is not counted. JAX and BOAT take part where they are installed (the extra
``jax``, ``boat-torch``). The rows of programs that are not measured stay in the record.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from captured_programs import PROGRAMS, PYTHON, contenders
from study.files import write_text
from turns import Outcome, environment, markdown, measure, merged

Row = dict[str, Any]


def rows(outcomes: Mapping[str, Outcome], iterations: int) -> list[Row]:
    """Return milliseconds an iteration, and how many times Python's they are: medians of turns."""
    found = []
    by_python = outcomes[PYTHON]
    for name, outcome in outcomes.items():
        row: Row = {"contender": name, "ms": None, "times Python": None}
        if outcome.error is None:
            pairs = zip(outcome.turns, by_python.turns, strict=True)
            row["ms"] = 1e3 * statistics.median(t.wall for t in outcome.turns) / iterations
            row["times Python"] = statistics.median(a.wall / b.wall for a, b in pairs)
        else:
            row["failed"] = outcome.error
        found.append(row)
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Measure all programs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2, help="turns of each process")
    parser.add_argument("--processes", type=int, default=3, help="of each contender")
    parser.add_argument("--iterations", type=int, help="of a turn; default: by the program")
    parser.add_argument("--program", choices=PROGRAMS, nargs="+", default=[*PROGRAMS])
    parser.add_argument("--out", type=Path, default=Path("results/captured"))
    given = parser.parse_args(words)
    conditions = {**environment(1), "load before": f"{os.getloadavg()[0]:.2f}"}
    path = given.out / "speed_captured.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for title in given.program:
        iterations = given.iterations or PROGRAMS[title].iterations
        makes = contenders(title, iterations)
        outcomes = merged(
            [measure(makes, 1, given.rounds, 1, warm_ups=1) for _ in range(given.processes)]
        )
        found = rows(outcomes, iterations)
        report[title] = {"environment": conditions, "rows": found}
        print(markdown(found, title), flush=True)
        write_text(path, json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
