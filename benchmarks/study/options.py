"""The options of a sweep, checked against each other before anything is loaded."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metaweight import fastest_precision

from .arguments import make_parser
from .methods import Method, listing
from .protocols import Protocol, protocol_for
from .settings import Files, Setting

_MOST_SEEDS = 1000
DEFAULT_METHODS = ("ce+meta", "meta-weight-net+meta", "class-aware+meta")


@dataclass(frozen=True)
class Options:
    """The options of a sweep.

    Attributes:
        setting: What the methods are tried on.
        files: Where the data are.
        methods: The methods.
        seeds: The seeds.
        protocol: How to train.
        device: The device.
        precision: Of every problem.
        threads: CPU threads of each process.
        jobs: Processes that share the runs.
        evaluations: Evaluations of a run; ``None`` for as many as take little time.
        minutes: Time after which to stop, and be ready to go on.
        suspicious: Number of the most suspicious samples to list; 0 for none.
        out: Results folder.
        command: The command of a process that shares the runs of this one.
        helps: Whether this process is such a one.
    """

    setting: Setting
    files: Files
    methods: Sequence[Method]
    seeds: Sequence[int]
    protocol: Protocol
    device: str
    precision: str
    threads: int
    jobs: int
    evaluations: int | None
    minutes: float | None
    suspicious: int
    out: Path
    command: Sequence[str]
    helps: bool

    @property
    def folder(self) -> Path:
        """Folder of the records: setting and budget."""
        steps, epochs = self.protocol.steps, self.protocol.epochs
        budget = f"{steps}steps" if steps is not None else f"{epochs}epochs"
        return self.out / f"{self.setting.name}-{budget}"


def parse(
    arguments: Sequence[str] | None, description: str, defaults: Mapping[str, Any]
) -> Options | None:
    """Return the options; ``None`` after the methods were printed.

    Contradictions end the process with a message, as argparse does.
    """
    parser = make_parser(description, defaults)
    given = parser.parse_args(arguments)
    if given.list_methods:
        print(listing())
        return None
    _check(parser, given)
    setting = _setting(given)
    protocol = _protocol(given, setting)
    methods = _methods(parser, given.methods or DEFAULT_METHODS)
    if given.meta_lr is not None and not any(method.learned for method in methods):
        parser.error("argument --meta-lr: none of the methods asked for learns weights")
    if given.focal_gamma is not None and not any(method.base == "focal" for method in methods):
        parser.error("argument --focal-gamma: focal is not among the methods asked for")
    device = given.device or _default_device(given.dataset)
    _check_device(parser, device, given.precision)
    jobs = given.jobs or 1
    shared = 1 if given.dataset == "digits" else max(1, (os.cpu_count() or 1) // jobs)
    suspicious = 100 if given.dataset == "images" else 0
    return Options(
        setting=setting,
        files=Files(
            given.data or Path("data"),
            given.clean,
            given.test,
            given.human_labels,
            given.size or 32,
        ),
        methods=methods,
        seeds=_seeds(parser, given.seeds),
        protocol=protocol,
        device=device,
        precision=given.precision
        or ("fp32" if given.dataset == "digits" else fastest_precision(device)),
        threads=given.threads or shared,
        jobs=jobs,
        evaluations=given.evaluations,
        minutes=given.minutes,
        suspicious=suspicious if given.suspicious is None else given.suspicious,
        out=given.out,
        command=_helping(arguments, defaults),
        helps=given.helps,
    )


def _helping(arguments: Sequence[str] | None, defaults: Mapping[str, Any]) -> list[str]:
    script = Path(__file__).resolve().parents[1] / "accuracy.py"
    words = [f"--{name.replace('_', '-')}={value}" for name, value in defaults.items()]
    given = sys.argv[1:] if arguments is None else arguments
    return [sys.executable, str(script), *words, *given, "--helps"]


def _check(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    dataset = given.dataset
    digits, images = dataset == "digits", dataset == "images"
    of_images = [n for n in ("clean", "test", "size") if getattr(given, n) is not None]
    missing = images and (given.data is None or given.clean is None)
    contradictions = {
        "epochs: --steps already says how long to train; give one of them": (
            given.epochs is not None and given.steps is not None
        ),
        "data: digits come with scikit-learn and are not read from it": (
            digits and given.data is not None
        ),
        "network: digits have a network of their own; leave it out": (
            digits and given.network not in (None, "digits-net")
        ),
        f"network: digits-net is for digits, not for {dataset}": (
            not digits and given.network == "digits-net"
        ),
        "dataset: images needs --data, and --clean with samples whose labels were checked": missing,
        f"{''.join(of_images[:1])}: belongs to --dataset images": bool(of_images) and not images,
        "human-labels: are labels of cifar10 or cifar100": (
            given.human_labels is not None and not dataset.startswith("cifar")
        ),
        "label-set: needs --human-labels FILE, which holds the sets": (
            given.label_set is not None and given.human_labels is None
        ),
        "noise-kind: needs --noise, the share of labels to relabel": (
            given.noise_kind is not None and not given.noise
        ),
        "noise: people have made labels wrong already; leave out one of the two": (
            given.human_labels is not None and bool(given.noise)
        ),
    }
    for message, holds in contradictions.items():
        if holds:
            parser.error(f"argument --{message}")


def _setting(given: argparse.Namespace) -> Setting:
    human = given.human_labels is not None
    usual = "digits-net" if given.dataset == "digits" else "quick"
    network = given.network or usual
    label_set = (given.label_set or _USUAL_SET[given.dataset]) if human else None
    return Setting(
        dataset=given.dataset,
        network=network,
        imbalance_factor=given.imbalance_factor or 1.0,
        noise=given.noise or 0.0,
        noise_kind=given.noise_kind or "uniform",
        human_labels=label_set,
        per_class=given.per_class,
        meta_per_class=given.meta_per_class or _meta_per_class(given),
        tuning=given.tuning,
    )


_USUAL_SET = {"cifar10": "worst", "cifar100": "noisy"}


def _meta_per_class(given: argparse.Namespace) -> int:
    tailed = (given.imbalance_factor or 1.0) > 1
    if given.dataset == "digits":
        return 5 if tailed else 10
    # The published numbers: 1,000 clean images against noise, 10 a class for a long tail.
    published = given.network not in (None, "quick") and given.dataset == "cifar10"
    return 100 if published and not tailed else 10


def _protocol(given: argparse.Namespace, setting: Setting) -> Protocol:
    changes: dict[str, Any] = {
        "steps": given.steps,
        "epochs": given.epochs,
        "batch_size": given.batch_size,
        "learning_rate": given.lr,
        "meta_learning_rate": given.meta_lr,
        "focal_gamma": given.focal_gamma,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    if "epochs" in changes:
        changes["steps"] = None
    return protocol_for(setting).changed(changes)


def _methods(parser: argparse.ArgumentParser, names: Sequence[str]) -> list[Method]:
    methods = []
    for name in names:
        try:
            methods.append(Method.of_name(name))
        except ValueError as reason:
            parser.error(f"argument --method: {reason}")
    repeated = sorted({method.name for method in methods if methods.count(method) > 1})
    if repeated:
        parser.error(f"argument --method: {', '.join(repeated)} was given twice; name each once")
    return methods


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


def _check_device(parser: argparse.ArgumentParser, device: str, precision: str | None) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        parser.error(f"argument --device: {device!r} is not a device; use cpu, cuda or cuda:1")
    if kind == "cuda" and not torch.cuda.is_available():
        parser.error(f"argument --device: {device} was asked for, but torch sees no GPU here")
    if precision == "fp16" and kind != "cuda":
        parser.error("argument --precision: fp16 needs a GPU; use bf16 or fp32 on this device")
