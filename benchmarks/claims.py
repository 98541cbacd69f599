"""Make the records of what is claimed, and fill in the pages that show them.

::

    python benchmarks/claims.py                     # tables and figures of README and documentation
    python benchmarks/claims.py --run --minutes 60  # runs that are missing; again to go on
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pages.claims import SWEEPS
from pages.figures import write_figures
from pages.render import write_pages
from pages.sweeps import MissingRunError
from study.study import main as run_sweep


def main(given: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="store_true", help="do the runs that are missing")
    parser.add_argument("--only", default="", help="the sweep of this name, or those that start so")
    parser.add_argument("--minutes", type=float, help="stop then; the same command goes on")
    parser.add_argument("--jobs", default="1", help="processes that share the runs")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of CIFAR")
    parser.add_argument(
        "--human-labels",
        type=Path,
        default=Path("CIFAR-10_human.pt"),
        help="CIFAR-10N's file (default: CIFAR-10_human.pt)",
    )
    arguments = parser.parse_args(given)
    if arguments.run:
        names = chosen(arguments.only)
        if not names:
            known = ", ".join(SWEEPS)
            parser.error(f"argument --only: no sweep starts with {arguments.only!r}; {known} do")
        return _run(names, arguments)
    try:
        changed = [*write_pages(), *write_figures()]
    except (MissingRunError, ValueError) as reason:
        print(reason, file=sys.stderr)
        return 1
    print("changed: " + ", ".join(changed) if changed else "nothing changed")
    return 0


def chosen(only: str) -> list[str]:
    """Return the name of a sweep, or all names that start so."""
    return [only] if only in SWEEPS else [name for name in SWEEPS if name.startswith(only)]


def _run(names: Sequence[str], arguments: argparse.Namespace) -> int:
    ends = None if arguments.minutes is None else time.time() + 60 * arguments.minutes
    for name in names:
        words = [*SWEEPS[name].words, "--jobs", arguments.jobs]
        if "digits" not in words:
            words += ["--data", str(arguments.data)]
        if "--human-labels" in words:
            words += ["--human-labels", str(arguments.human_labels)]
        if ends is not None:
            words += ["--minutes", str(max(0.01, (ends - time.time()) / 60))]
        code = run_sweep(words, "", {})
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
