"""Command lines of the accuracy benchmarks, checked before anything is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .methods import Method, names_of
from .protocols import Protocol
from .splits import Corruption

_MOST_SEEDS = 1000


@dataclass(frozen=True)
class Options:
    """The options of a benchmark."""

    benchmark: str
    dataset: str
    corruption: Corruption
    methods: list[Method]
    seeds: list[int]
    protocol: Protocol
    device: str
    precision: str
    threads: int
    data: Path
    out: Path


def make_parser(description: str, weightings: Sequence[str], out: str) -> argparse.ArgumentParser:
    """Return a parser of the arguments of all benchmarks; the script adds its own.

    Args:
        description: Description of the benchmark.
        weightings: The weightings it compares, each with and without ``+meta``.
        out: Default results folder.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--method",
        dest="methods",
        action="append",
        choices=names_of(weightings),
        help="a method to run, repeatable; +meta trains on the meta samples as well",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        default=["3"],
        metavar="SEED",
        help="a number of seeds, counted from 0 (default 3), or a list: 0 1 2, or 7, with a comma",
    )
    parser.add_argument(
        "--steps", type=at_least(1), help="steps of a run (default: the protocol's)"
    )
    parser.add_argument(
        "--meta-per-class", type=at_least(1), help="clean meta samples of each class"
    )
    parser.add_argument(
        "--lr", type=_positive, help="learning rate of the classifier, of all methods"
    )
    parser.add_argument("--meta-lr", type=_positive, help="learning rate of the weight network")
    parser.add_argument(
        "--device", help="such as cpu or cuda:1 (default: a GPU if there is one, cpu for digits)"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument(
        "--threads",
        type=at_least(1),
        help="CPU threads (default: 1 for digits, whose tensors are small; torch's choice else)",
    )
    parser.add_argument(
        "--data", type=Path, help="folder that holds CIFAR or receives it (default: data)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(out), help="results folder (default: %(default)s)"
    )
    return parser


def to_options(
    parser: argparse.ArgumentParser,
    given: argparse.Namespace,
    benchmark: str,
    corruption: Corruption,
    protocol: Protocol,
    default_methods: Sequence[str],
) -> Options:
    """Check arguments against each other and put them into the protocol.

    Args:
        parser: Reports contradictions, and exits.
        given: The parsed arguments, ``dataset`` included.
        benchmark: Name of the script.
        corruption: Imbalance and noise of the training split.
        protocol: Settings where no argument changes them.
        default_methods: Methods to run when none is named.
    """
    names = list(given.methods or default_methods)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        parser.error(f"argument --method: {', '.join(repeated)} was given twice; name each once")
    methods = [Method.of_name(name) for name in names]
    if given.meta_lr is not None and not any(method.learned for method in methods):
        parser.error("argument --meta-lr: none of the methods asked for learns weights")
    if given.data is not None and given.dataset == "digits":
        parser.error("argument --data: digits come with scikit-learn and are not read from it")
    device = given.device or _default_device(given.dataset)
    _check_device(parser, device, given.precision)
    return Options(
        benchmark=benchmark,
        dataset=given.dataset,
        corruption=corruption,
        methods=methods,
        seeds=_seeds(parser, given.seeds),
        protocol=_changed(protocol, given),
        device=device,
        precision=given.precision,
        threads=given.threads or (1 if given.dataset == "digits" else torch.get_num_threads()),
        data=given.data or Path("data"),
        out=given.out,
    )


def _changed(protocol: Protocol, given: argparse.Namespace) -> Protocol:
    changes: dict[str, Any] = {
        "steps": given.steps,
        "meta_per_class": given.meta_per_class,
        "learning_rate": given.lr,
        "learned_learning_rate": given.lr,
        "meta_learning_rate": given.meta_lr,
        "focal_gamma": getattr(given, "focal_gamma", None),
    }
    return replace(protocol, **{name: v for name, v in changes.items() if v is not None})


def _seeds(parser: argparse.ArgumentParser, given: Sequence[str]) -> list[int]:
    text = " ".join(given)
    tokens = text.replace(",", " ").split()
    if not tokens or not all(token.isdecimal() for token in tokens):
        parser.error(
            f"argument --seeds: {text!r} is neither a number nor a list of whole numbers from 0"
        )
    numbers = [int(token) for token in tokens]
    if len(numbers) == 1 and "," not in text:
        if not 1 <= numbers[0] <= _MOST_SEEDS:
            parser.error(
                f"argument --seeds: {numbers[0]} seeds were asked for; use 1 to {_MOST_SEEDS}, or "
                f"'{numbers[0]},' for the one seed of that number"
            )
        return list(range(numbers[0]))
    if len(set(numbers)) != len(numbers):
        parser.error(f"argument --seeds: {text!r} names a seed twice")
    return numbers


def _default_device(dataset: str) -> str:
    return "cuda" if dataset != "digits" and torch.cuda.is_available() else "cpu"


def _check_device(parser: argparse.ArgumentParser, device: str, precision: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        parser.error(f"argument --device: {device!r} is not a device; use cpu, cuda or cuda:1")
    if kind == "cuda" and not torch.cuda.is_available():
        parser.error(f"argument --device: {device} was asked for, but torch sees no GPU here")
    if precision == "fp16" and kind != "cuda":
        parser.error("argument --precision: fp16 needs a GPU; use bf16 or fp32 on this device")


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


def _positive(text: str) -> float:
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
