"""What is claimed: the sweeps of accuracy, by name."""

from __future__ import annotations

from collections.abc import Mapping

from .sweeps import Sweep

_WEIGHTINGS = (
    "ce+meta",
    "class-balanced+meta",
    "focal+meta",
    "meta-weight-net+meta",
    "class-aware+meta",
)
_LEARNED = ("meta-weight-net", "meta-weight-net-normalised", "class-aware")
_REMEDIES = (
    "ce",
    "soft-bootstrapping",
    "hard-bootstrapping",
    "gce",
    "sce",
    "mixup",
    "ema",
    "ocl",
    "prune",
    "ensemble-resample",
    "ensemble-reweight",
    "meta-weight-net-normalised",
)
_SIMPLE = (
    "ce+meta",
    "fine-tune",
    "gce+meta",
    "prune+meta",
    "meta-weight-net-normalised",
    "meta-weight-net-normalised+meta",
)
_CHEAPER = (
    "one-sided",
    "last-block",
    "last-layer",
    "sampled-layers",
    "every-4",
    "every-8",
    "adaptive",
)
_ECONOMIES = tuple(f"meta-weight-net-normalised/{name}" for name in _CHEAPER)
_TAILED_NOISE = "--dataset digits --imbalance-factor 10 --noise 0.4 --seeds 5 --evaluations 20"
_NOISE = "--dataset digits --noise 0.4 --seeds 5 --evaluations 20"

# Eight hundred steps of 64, minutes on a processor: four passes over a long tail, and seventeen
# over 3,000 images, which is enough to learn wrong labels by heart.
_CIFAR = "--dataset cifar10 --steps 800 --batch-size 64 --evaluations 2"
_TAIL = f"{_CIFAR} --imbalance-factor"
_WRONG = f"{_CIFAR} --per-class 300"
_MANY = f"{_CIFAR} --per-class 1000"
_HUMAN = "--human-labels CIFAR-10_human.pt --label-set"
_AGAINST_NOISE = (
    "ce",
    "ce+meta",
    "gce+meta",
    "elr+meta",
    "mixup+meta",
    "fine-tune",
    "prune+meta",
    "meta-weight-net-normalised+meta/one-sided",
    "meta-weight-net-normalised+meta+warm-up+exponential/one-sided",
    "meta-weight-net-normalised+meta+warm-up+early+exponential/one-sided",
    "class-aware+meta/one-sided",
    "class-aware+meta+early/one-sided",
)
# Without those far behind, or between these, on uniform noise and people's worst labels.
_BEST_AGAINST_NOISE = (
    "ce",
    "ce+meta",
    "gce+meta",
    "elr+meta",
    "prune+meta",
    "meta-weight-net-normalised+meta/one-sided",
    "class-aware+meta/one-sided",
    "class-aware+meta+early/one-sided",
)
_MANY_AGAINST_NOISE = (
    "ce",
    "ce+meta",
    "gce+meta",
    "elr+meta",
    "fine-tune",
    "prune+meta",
    "meta-weight-net-normalised/one-sided",
    "class-aware/one-sided",
    "meta-weight-net-normalised+meta/one-sided",
)
_AGAINST_TAILS = (
    "ce",
    "ce+meta",
    "class-balanced+meta",
    "focal+meta",
    "drw+meta",
    "ldam-drw+meta",
    "logit-adjusted+meta",
    "mixup+meta",
    "meta-weight-net-normalised+meta/one-sided",
    "class-aware+meta/one-sided",
    "class-aware+meta+balanced+warm-up+exponential/one-sided",
)
_AGAINST_BOTH = (
    "ce",
    "ce+meta",
    "gce+meta",
    "elr+meta",
    "logit-adjusted+meta",
    "prune+meta",
    "meta-weight-net-normalised+meta/one-sided",
    "class-aware+meta/one-sided",
    "class-aware+meta+balanced+warm-up+exponential/one-sided",
)
_CLEAN = (
    "ce+meta",
    "elr+meta",
    "class-aware+meta+early/one-sided",
)
_PUBLISHED = ("ce", "meta-weight-net/one-sided", "class-aware/one-sided")


def _tuning() -> dict[str, Sweep]:
    """Return the sweeps that learning rates were chosen by, on seeds that are not reported."""
    held_out = "--tuning --seeds 100 101"
    sweeps = {}
    for name, setting in (("noise", f"{_MANY} --noise 0.4"), ("tail", f"{_TAIL} 100")):
        for rate in (0.03, 0.1, 0.3):
            sweeps[f"tuning-{name}-{rate}"] = Sweep(
                f"{setting} {held_out} --lr {rate}", ("ce+meta",), f"tuning/lr{rate}"
            )
    sigmoid = ("meta-weight-net-normalised/one-sided", "meta-weight-net-normalised+meta/one-sided")
    for rate in (0.001, 0.01):
        sweeps[f"tuning-meta-noise-{rate}"] = Sweep(
            f"{_MANY} --noise 0.4 {held_out} --meta-lr {rate}", sigmoid, f"tuning/meta-lr{rate}"
        )
    exponential = "class-aware+meta+balanced+warm-up+exponential/one-sided"
    for rate in (0.0001, 0.001):
        sweeps[f"tuning-meta-tail-{rate}"] = Sweep(
            f"{_TAIL} 100 {held_out} --meta-lr {rate}", (exponential,), f"tuning/meta-lr{rate}"
        )
    exponential = "meta-weight-net-normalised+meta+warm-up+exponential/one-sided"
    for rate in (0.001, 0.01):
        sweeps[f"tuning-meta-worst-{rate}"] = Sweep(
            f"{_WRONG} {_HUMAN} worst {held_out} --meta-lr {rate}",
            (exponential,),
            f"tuning/meta-lr{rate}",
        )
    return sweeps


def _cifar() -> dict[str, Sweep]:
    """Return the sweeps on CIFAR-10: the tables, and accuracy by the number of clean samples."""
    settings = {
        "worst": (f"{_WRONG} {_HUMAN} worst", _AGAINST_NOISE),
        "tail-100": (f"{_TAIL} 100", _AGAINST_TAILS),
        "uniform": (f"{_WRONG} --noise 0.4", _AGAINST_NOISE),
        "tail-10": (f"{_TAIL} 10", _AGAINST_TAILS),
        "flip": (f"{_WRONG} --noise 0.4 --noise-kind flip", _BEST_AGAINST_NOISE),
        "random1": (f"{_WRONG} {_HUMAN} random1", _BEST_AGAINST_NOISE),
        "tail-noise": (f"{_TAIL} 10 --noise 0.4", _AGAINST_BOTH),
    }
    sweeps = {
        f"cifar-{name}": Sweep(f"{setting} --seeds 3", methods, "tuned")
        for name, (setting, methods) in settings.items()
    }
    for name in ("worst", "uniform"):
        for clean in (1, 2, 5, 50, 100):
            sweeps[f"cifar-{name}-clean{clean}"] = Sweep(
                f"{settings[name][0]} --meta-per-class {clean} --seeds 3", _CLEAN, "tuned"
            )
    many = f"{_MANY} {_HUMAN} worst --seeds 1"
    return {**sweeps, "cifar-worst-many": Sweep(many, _MANY_AGAINST_NOISE, "tuned")}


SWEEPS: Mapping[str, Sweep] = {
    "digits-tailed-noise": Sweep(_TAILED_NOISE, _WEIGHTINGS, "tuned"),
    "digits-tailed-noise-usual-lr": Sweep(
        f"{_TAILED_NOISE} --lr 0.05 --meta-lr 0.01", _WEIGHTINGS, "usual-lr"
    ),
    "digits-noise": Sweep(_NOISE, ("ce", "ce+meta", *_LEARNED), "tuned"),
    "digits-noise-usual-lr": Sweep(f"{_NOISE} --lr 0.05", ("ce", "ce+meta", *_LEARNED), "usual-lr"),
    "digits-remedies": Sweep(f"{_NOISE} --lr 0.05", _REMEDIES, "usual-lr"),
    "digits-simple": Sweep(f"{_NOISE} --lr 0.05", _SIMPLE, "usual-lr"),
    "digits-economies": Sweep(
        _NOISE, ("ce+meta", "meta-weight-net-normalised", *_ECONOMIES), "tuned"
    ),
    "digits-tailed": Sweep(
        "--dataset digits --imbalance-factor 50 --seeds 5 --evaluations 20", _WEIGHTINGS, "tuned"
    ),
    **_tuning(),
    **_cifar(),
    # One seed, hours a run: a hundred epochs of ResNet-32 by the protocol of Meta-Weight-Net.
    **{
        name: Sweep(
            "--dataset cifar10 --imbalance-factor 100 --network resnet32 --seeds 1",
            methods,
            "published",
        )
        for name, methods in (
            ("published-tail-100", _PUBLISHED),
            ("published-tail-100-clean", ("ce+meta",)),
        )
    },
}
