"""Semi-supervised methods with four divergences each, against supervision alone.

On scikit-learn's digits by default; SVHN and CIFAR-10 in the protocol of Oliver et al., "Realistic
Evaluation of Deep Semi-Supervised Learning Algorithms" (2018)::

    python benchmarks/ssl_svhn.py                                   # digits, 20 labels, all cells
    python benchmarks/ssl_svhn.py --method vat --divergence kl --labels 50 --seeds 3
    python benchmarks/ssl_svhn.py --dataset svhn --method mean_teacher --divergence mse

Every cell has its own network, optimizer and random numbers. Its consistency weight is
chosen on validation samples of other splits than those that are reported. Student and average are
evaluated side by side.

With ``--foreign 0.5`` half of the unlabelled pool is of classes that have no labels; a method with
``+learned`` after its name has an upper level weight each unlabelled sample::

    python benchmarks/ssl_svhn.py --foreign 0.5 --method fixmatch --method fixmatch+learned \
        --divergence kl

Writes ``summary.json`` (every run), ``summary.md`` (the table), ``accuracy.png`` and ``curves.png``
in ``--out``, and a record of each run in its folder ``runs``: stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from consistency_study.cells import DIVERGENCES, LEARNED, METHODS, SUPERVISED, Cell
from consistency_study.report import accuracy_bars, curves, heading, table
from consistency_study.study import Options, as_dict, run_study
from consistency_study.tasks import DATASETS, KNOWN, LABELS_OF, PROTOCOL_OF, load
from study.arguments import at_least, not_negative, share
from study.files import write_figure, write_text
from turns import environment

from metaweight.data import DatasetUnavailableError

NAMES = (SUPERVISED, *METHODS, *(method + LEARNED for method in METHODS))


def parse(given: Sequence[str] | None = None) -> Options:
    """Parse the command line, or exit with a message about what is wrong in it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dataset", choices=DATASETS, default="digits")
    parser.add_argument(
        "--method", dest="methods", action="append", choices=NAMES, help="repeatable; default: all"
    )
    parser.add_argument(
        "--divergence",
        dest="divergences",
        action="append",
        choices=DIVERGENCES,
        help="repeatable; default: all",
    )
    parser.add_argument("--labels", type=at_least(1), help="labelled samples")
    parser.add_argument("--seeds", type=at_least(1), default=5, help="runs that are reported")
    parser.add_argument(
        "--tuning-seeds", type=at_least(1), default=2, help="runs to choose a weight by"
    )
    parser.add_argument(
        "--weight", type=not_negative, help="weight of every method, which is not tuned then"
    )
    parser.add_argument("--steps", type=at_least(1), help="steps of a run")
    parser.add_argument("--lr", type=float, help="learning rate of every method")
    parser.add_argument(
        "--foreign", type=share, help="share of the pool that is of classes without labels"
    )
    parser.add_argument("--workers", type=at_least(1), default=os.cpu_count() or 1)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of SVHN or CIFAR")
    parser.add_argument("--out", type=Path, default=Path("results/ssl"))
    asked = parser.parse_args(given)
    methods = asked.methods or [SUPERVISED, *METHODS]
    if SUPERVISED not in methods:
        methods.insert(0, SUPERVISED)
    if len(set(methods)) != len(methods):
        parser.error("argument --method: a method was given twice; name each once")
    labels = asked.labels or LABELS_OF[asked.dataset]
    known = len(KNOWN[asked.dataset])
    if asked.foreign is not None and labels % known:
        parser.error(
            f"argument --labels: with --foreign there are {known} classes; {labels} labels "
            f"are not the same number of each, give a multiple of {known}"
        )
    changes = {"steps": asked.steps, "lr": asked.lr}
    protocol = dataclasses.replace(
        PROTOCOL_OF[asked.dataset], **{name: v for name, v in changes.items() if v is not None}
    )
    return Options(
        dataset=asked.dataset,
        root=asked.data,
        cells=[
            Cell(method, divergence)
            for method in methods
            for divergence in (
                (None,) if method == SUPERVISED else asked.divergences or DIVERGENCES
            )
        ],
        labels=labels,
        seeds=range(asked.seeds),
        tuning_seeds=asked.tuning_seeds,
        protocol=protocol,
        foreign_share=asked.foreign,
        weight=asked.weight,
        workers=asked.workers,
        out=asked.out,
    )


def main(given: Sequence[str] | None = None) -> int:
    """Run the study, print its table and write its results."""
    options = parse(given)
    try:
        # Before the workers, each of which reads the files again.
        load(options.dataset, options.root, download=True)
    except DatasetUnavailableError as reason:
        print(reason, file=sys.stderr)
        return 2
    results = run_study(options)
    text = f"{heading(options)}\n\n{table(results)}\n"
    report = {
        "dataset": options.dataset,
        "labels": options.labels,
        "foreign share": options.foreign_share,
        "protocol": dataclasses.asdict(options.protocol),
        "environment": environment(max(1, (os.cpu_count() or 1) // options.workers)),
        "cells": as_dict(results),
    }
    write_text(options.out / "summary.json", json.dumps(report, indent=2, allow_nan=False))
    write_text(options.out / "summary.md", text)
    write_figure(options.out / "accuracy.png", accuracy_bars(results))
    write_figure(options.out / "curves.png", curves(results))
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
