"""The arguments of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .networks import NETWORKS
from .settings import DATASETS

_EXAMPLES = """examples:
  python benchmarks/accuracy.py --dataset digits --noise 0.4
  python benchmarks/accuracy.py --dataset cifar10 --imbalance-factor 100 --method class-aware+meta
  python benchmarks/accuracy.py --dataset cifar10 --human-labels CIFAR-10_human.pt
  python benchmarks/accuracy.py --dataset images --data photos --clean checked --method ce+meta
"""


def make_parser(description: str, defaults: Mapping[str, Any]) -> argparse.ArgumentParser:
    """Return the parser; ``defaults`` are values of arguments by their names."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list-methods", action="store_true", help="print what --method takes")
    what = parser.add_argument_group("what is compared, and on what")
    what.add_argument(
        "--method", dest="methods", action="append", metavar="METHOD", help="repeatable"
    )
    what.add_argument("--dataset", choices=DATASETS, help="default: digits")
    what.add_argument(
        "--network", choices=sorted(NETWORKS), help="default: quick; digits-net for digits"
    )
    what.add_argument(
        "--imbalance-factor", type=factor, metavar="F", help="largest over smallest class"
    )
    what.add_argument("--noise", type=share, metavar="SHARE", help="share of labels relabelled")
    what.add_argument("--noise-kind", choices=("uniform", "flip"), help="default: uniform")
    what.add_argument(
        "--label-set", metavar="NAME", help="which of the human labels, such as worst"
    )
    what.add_argument(
        "--per-class", type=at_least(1), metavar="N", help="training samples of a class"
    )
    what.add_argument(
        "--meta-per-class", type=at_least(1), metavar="N", help="clean samples of a class"
    )
    what.add_argument(
        "--seeds",
        nargs="+",
        metavar="SEED",
        help="a number of seeds (default 3), or a list: 0 1 2, or 7, with a comma",
    )
    files = parser.add_argument_group("files")
    files.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="folder of CIFAR, which is fetched if absent; or of images, with a folder a class, "
        "or a CSV of path,label",
    )
    files.add_argument(
        "--clean", type=Path, metavar="PATH", help="for images: samples whose labels were checked"
    )
    files.add_argument(
        "--test",
        type=Path,
        metavar="PATH",
        help="for images: samples to measure on (default: a fifth of the clean ones)",
    )
    files.add_argument(
        "--size",
        type=at_least(16),
        metavar="PIXELS",
        help="for images: resized to this (default 32)",
    )
    files.add_argument(
        "--human-labels",
        type=Path,
        metavar="FILE",
        help="CIFAR-10N's or CIFAR-100N's file, .pt or .npz",
    )
    files.add_argument("--out", type=Path, metavar="FOLDER", help="results (default: results)")
    how = parser.add_argument_group("how to train (default: a protocol for the setting)")
    how.add_argument("--steps", type=at_least(1), metavar="N")
    how.add_argument("--epochs", type=at_least(1), metavar="N")
    how.add_argument("--batch-size", type=at_least(1), metavar="N")
    how.add_argument("--lr", type=positive, help="of the classifier, for all methods")
    how.add_argument("--meta-lr", type=positive, help="of the weight network")
    how.add_argument("--focal-gamma", type=not_negative, metavar="GAMMA")
    how.add_argument(
        "--tuning",
        action="store_true",
        help="measure on a tenth of the training samples, which is held out",
    )
    run = parser.add_argument_group("how to run")
    run.add_argument(
        "--device", help="such as cpu or cuda:1 (default: a GPU if there is one; cpu for digits)"
    )
    run.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        help="default: bf16 where the device computes in it, else fp32",
    )
    run.add_argument(
        "--threads",
        type=at_least(1),
        metavar="N",
        help="of each process (default: 1 for digits, else the cores shared out)",
    )
    run.add_argument(
        "--jobs", type=at_least(1), metavar="N", help="processes that share the runs (default 1)"
    )
    run.add_argument(
        "--minutes", type=positive, metavar="M", help="stop then; the same command goes on"
    )
    run.add_argument(
        "--evaluations",
        type=at_least(1),
        metavar="N",
        help="of a run (default: as many as take 5 %% of its time)",
    )
    run.add_argument(
        "--suspicious",
        type=at_least(0),
        metavar="N",
        help="list the N most suspicious samples of each run (default: 100 for images)",
    )
    run.add_argument("--helps", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(**{"dataset": "digits", "seeds": ["3"], "out": Path("results"), **defaults})
    return parser


def share(text: str) -> float:
    """Read a share in [0, 1]."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share in [0, 1]")
    return value


def factor(text: str) -> float:
    """Read a finite factor of at least 1."""
    value = float(text)
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite factor of at least 1")
    return value


def not_negative(text: str) -> float:
    """Read a finite number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number of at least 0")
    return value


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not positive and finite")
    return value


def at_least(least: int) -> Callable[[str], int]:
    """Return a reader of whole numbers from ``least`` on."""

    def read(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return value

    read.__name__ = "whole number"
    return read
