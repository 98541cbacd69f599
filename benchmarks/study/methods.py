"""The methods compared, and the grammar of their names: ``BASE[+EXTRA ...][/ECONOMY]``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from metaweight import AdaptiveInterval, Hook, LastLayers, Reweighting, SampledLayers

FIXED: Mapping[str, str] = {
    "ce": "cross-entropy",
    "class-balanced": "cross-entropy weighted by the effective number of samples of each class",
    "focal": "focal loss",
    "logit-adjusted": "Balanced Softmax: logits raised by the logarithm of the class sizes",
    "drw": "class-balanced weights for the last fifth of the steps only",
    "ldam-drw": "margins by class size (LDAM), class-balanced for the last fifth of the steps",
    "mixup": "mixed pairs of samples",
    "soft-bootstrapping": "labels mixed with predictions",
    "hard-bootstrapping": "labels mixed with predicted classes",
    "gce": "generalised cross-entropy",
    "sce": "symmetric cross-entropy",
    "elr": "early-learning regularisation",
    "ema": "cross-entropy; a moving average of the network is measured",
    "ocl": "online confident learning",
    "co-teaching": "two networks choose samples of small loss for each other; is told the noise",
    "prune": "confident learning by 3-fold cross-validation, then without what it found",
    "ensemble-resample": "without the samples that three networks rank last; is told how many",
    "ensemble-reweight": "samples weighted by the rank that three networks give them",
    "fine-tune": "cross-entropy, for the last fifth of the steps on the clean samples alone",
}
"""Methods without an upper problem."""

LEARNED: Mapping[str, str] = {
    "meta-weight-net": "weights learned from the loss",
    "meta-weight-net-normalised": "the same, with mean 1 in each batch",
    "class-aware": "weights learned from the loss and the class, with mean 1 in each batch",
}
"""Methods whose sample weights an upper problem learns on the clean samples."""

EXTRAS: Mapping[str, str] = {
    "meta": "train on the clean samples as well, so that every method has the same data",
    "balanced": "with learned weights: on top of the logit-adjusted loss",
    "warm-up": "with learned weights: the weight network starts after a fifth of the steps",
    "early": "with learned weights: on top of early-learning regularisation",
    "averaged": "with learned weights: from each sample's loss averaged over the epochs",
    "plain-views": "with learned weights: clean samples without augmentation in the upper loss",
    "steady": "with learned weights: ten times the momentum in the weight network's steps",
    "exponential": "with learned weights: the weight network's output is exponential",
    "late": "with learned weights: ten times its learning rate for the last fifth of the steps",
}
SEARCHES = ("prune", "ensemble-resample", "ensemble-reweight")
"""Methods that train as many steps again to find wrong labels."""

ONE_SIDED = Reweighting(derivative="one_sided")


@dataclass(frozen=True)
class Economy:
    """How the hypergradient of learned weights is made cheaper.

    Attributes:
        text: What it does.
        config: Settings of the classifier's ``Config``.
        interval: Whether the weight network steps more rarely while its gradients disagree.
    """

    text: str
    config: Mapping[str, Any] = field(default_factory=dict)
    interval: bool = False

    def hooks(self, upper: str) -> list[Hook]:
        """Return the hooks it needs, given the name of the upper problem."""
        return [AdaptiveInterval(upper)] if self.interval else []


ECONOMIES: Mapping[str, Economy] = {
    "one-sided": Economy("one-sided instead of central differences", {"type": ONE_SIDED}),
    # A convolution with its batch norm, and the classifier, of the network for digits.
    "last-block": Economy(
        "one-sided, through the last three layers",
        {"type": ONE_SIDED, "hypergradient_parameters": LastLayers(3)},
    ),
    "last-layer": Economy(
        "one-sided, through the last layer",
        {"type": ONE_SIDED, "hypergradient_parameters": LastLayers(1)},
    ),
    "sampled-layers": Economy(
        "one-sided, through three layers drawn for each step",
        {"type": ONE_SIDED, "hypergradient_parameters": SampledLayers(3)},
    ),
    "every-4": Economy("a step of the weight network every 4 steps", {"unroll_steps": 4}),
    "every-8": Economy("a step of the weight network every 8 steps", {"unroll_steps": 8}),
    "adaptive": Economy("more rarely while its gradients disagree", interval=True),
}


@dataclass(frozen=True)
class Method:
    """One way to train the classifier.

    A learned weighting always uses the clean samples for its *upper* loss; ``meta`` adds them to
    the classifier's training data.

    Args:
        base: One of :data:`FIXED` or :data:`LEARNED`.
        extras: Some of :data:`EXTRAS`.
        economy: One of :data:`ECONOMIES`, or none.
    """

    base: str
    extras: frozenset[str] = frozenset()
    economy: str = ""

    @property
    def name(self) -> str:
        """The name on the command line, such as ``"class-aware+meta/one-sided"``."""
        extras = "".join(f"+{extra}" for extra in EXTRAS if extra in self.extras)
        return self.base + extras + (f"/{self.economy}" if self.economy else "")

    @property
    def learned(self) -> bool:
        """Whether an upper problem learns the weights."""
        return self.base in LEARNED

    @property
    def with_meta(self) -> bool:
        """Whether the classifier trains on the clean samples too."""
        return "meta" in self.extras

    @property
    def cost(self) -> float:
        """Roughly how many plain runs a run takes."""
        if self.learned:
            return 1.4 if self.economy.startswith("every") else 2.3
        return 2.0 if self.base in (*SEARCHES, "co-teaching") else 1.0

    @classmethod
    def of_name(cls, name: str) -> Method:
        """Return the method with this name; extras and economy may come in any order.

        Raises:
            ValueError: Saying which part is not known, or does not fit the others.
        """
        if not re.fullmatch(r"[a-z0-9-]+([+/][a-z0-9-]+)*", name):
            raise ValueError(f"{name!r} is not of the form BASE[+EXTRA ...][/ECONOMY]")
        base, *rest = re.findall(r"[+/]?[a-z0-9-]+", name)
        _require(base, {**FIXED, **LEARNED}, name, "method")
        extras = [part[1:] for part in rest if part.startswith("+")]
        economies = [part[1:] for part in rest if part.startswith("/")]
        for extra in extras:
            _require(extra, EXTRAS, name, "extra")
        for economy in economies:
            _require(economy, ECONOMIES, name, "economy")
        if len(set(extras)) < len(extras) or len(economies) > 1:
            raise ValueError(f"{name!r} names an extra twice or two economies; name one of each")
        method = cls(base, frozenset(extras), "".join(economies))
        alone = sorted({*extras} - {"meta"}) + economies
        if not method.learned and alone:
            raise ValueError(
                f"{name!r} asks for {alone[0]!r}, which belongs to learned weights "
                f"({', '.join(LEARNED)}); leave it out"
            )
        if {"early", "averaged"} <= method.extras:
            raise ValueError(f"{name!r} asks for +early and +averaged; take one of them")
        if base == "fine-tune" and extras:
            raise ValueError(
                f"{name!r}: fine-tune always trains on the clean samples; leave out +meta"
            )
        return method


def listing() -> str:
    """Return a page about every name and what it does."""
    economies = {name: economy.text for name, economy in ECONOMIES.items()}
    parts = (
        ("A method is BASE[+EXTRA ...][/ECONOMY], such as class-aware+meta/one-sided.", {}),
        ("BASE, fixed:", FIXED),
        ("BASE, with learned weights:", LEARNED),
        ("+EXTRA:", EXTRAS),
        ("/ECONOMY, with learned weights:", economies),
    )
    lines: list[str] = []
    for title, names in parts:
        lines += [title, *(f"  {name:<27} {text}" for name, text in names.items()), ""]
    return "\n".join(lines).rstrip()


def _require(part: str, known: Mapping[str, Any], name: str, kind: str) -> None:
    if part in known:
        return
    close = difflib.get_close_matches(part, known, 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(f"{name!r}: {part!r} is not a known {kind}; {hint}--list-methods prints all")
