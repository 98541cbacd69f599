"""Two networks that choose the samples with small losses for each other.

With the shares ``R(t) = 1 - τ min(t / T, 1)`` kept at step ``t``, and ``S_a`` the ``⌊R B⌋`` samples
of a batch whose losses by network a are smallest::

    L = mean_{i ∈ S_2} l_1i + mean_{i ∈ S_1} l_2i

so that each learns from what the other believes. Networks learn wrong labels late, and two that
start apart err apart.

::

    pair = NetworkPair(make_net(seed=0), make_net(seed=1))
    classifier = CoTeachingClassifier("classifier", module=pair, noise_rate=0.4, ramp_steps=1000,
                                      optimizer=Adam(pair.parameters()), train_data_loader=noisy)

Source: Han et al., "Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy
Labels", NeurIPS 2018 (arXiv:1804.06872).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metaweight.problems import Config, ConfigurationError, ImplicitProblem, LossError
from metaweight.problems.base.settings import is_count, is_number, is_part, shown

from .._batch import Part
from .._batch_reader import BatchReader
from .._label_loss import labels_of, predict


class NetworkPair(nn.Module):
    """Two networks as one module; calling it calls the first.

    Args:
        first: Any module; the one that predictions and validations use.
        second: Another of the same outputs, with other initial values.

    Raises:
        ConfigurationError: For something that is no module, for networks that share parameters, or
            that start with the same values: these would stay the same.
    """

    _called = "first"

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        for name, part in (("first", first), ("second", second)):
            if not isinstance(part, nn.Module):
                raise ConfigurationError(
                    f"NetworkPair received {name}={shown(part)}; give a torch.nn.Module."
                )
        one, other = list(first.parameters()), list(second.parameters())
        shared = {id(p) for p in one} & {id(p) for p in other}
        if shared or (one and _all_equal(one, other)):
            how = "share parameters" if shared else "start with the same values"
            raise ConfigurationError(
                f"NetworkPair received networks that {how}, so that neither could correct the "
                "other; make the second anew, from another seed."
            )
        self.first = first
        self.second = second

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the first network."""
        return self.first(*args, **kwargs)


def co_teaching_loss(
    first: Tensor, second: Tensor, labels: Any, kept: float, ignore_index: int = -1
) -> Tensor:
    """Return the sum of both networks' mean losses over what the other one chose.

    ``⌊kept · B⌋`` samples are chosen, at least one, and those without a label last: if there are
    fewer with one, these are all chosen.

    Args:
        first: Logits of one network, (B, C), any floating type; losses are cross-entropies in
            single precision or better.
        second: Logits of the other, (B, C).
        labels: (B,) classes of any integer type, or one-hot.
        kept: ``R``, the share of samples to choose, in [0, 1].
        ignore_index: Label, beside -1 and -100, whose samples have loss 0 and no gradient.

    Raises:
        ConfigurationError: For another share.
        LossError: When shapes or types do not fit.
    """
    if not is_number(kept, 0, 1):
        raise ConfigurationError(
            f"co_teaching_loss(kept={shown(kept)}) is not a share; give a number in [0, 1]."
        )
    read = labels_of(first, labels, ignore_index)
    if second.shape != first.shape:
        raise LossError(
            f"co_teaching_loss received logits of shapes {tuple(first.shape)} and "
            f"{tuple(second.shape)}; give those of two networks for the same samples."
        )
    # Rounding must not take a whole number of samples for one less, as in 0.7 · 10.
    number = min(max(int(kept * len(first) + 1e-6), 1), len(first))
    one, other = (-predict(logits, read).log_p_label for logits in (first, second))
    return _mean_of(one, _smallest(other, read.kept, number), read.kept) + _mean_of(
        other, _smallest(one, read.kept, number), read.kept
    )


class CoTeachingBatch(NamedTuple):
    """A batch with the share of it to keep, so that a hypergradient finds the same loss again."""

    inputs: Any
    """What the networks are called with."""

    labels: Any
    """As the loader gives them."""

    kept: float
    """The share of samples that each network chooses."""


class CoTeachingClassifier(ImplicitProblem[NetworkPair]):
    """A pair of networks trained by :func:`co_teaching_loss` on ``(inputs, labels, …)``.

    Calling the problem, as validations and upper problems do, calls the first network. One
    optimizer over both trains them as two with the same settings would, but for
    ``gradient_clipping``, which is by their norm together. With several processes each chooses
    among its own share of a batch.

    Args:
        name: Its name.
        config: Its settings.
        noise_rate: ``τ``, the share of wrong labels, which are to be left out in the end, in
            [0, 1).
        ramp_steps: ``T``, the steps of the problem after which they are; 10 epochs of 200 in the
            paper.
        module: A :class:`NetworkPair`.
        inputs: As for :class:`~metaweight.weighting.WeightedClassifier`.
        labels: As there.
        logits: As there.
        **problem: ``optimizer``, ``train_data_loader`` and the rest of
            :class:`~metaweight.problems.Problem`.

    Raises:
        ConfigurationError: For a setting out of range, or another module.
    """

    def __init__(
        self,
        name: str,
        config: Config | None = None,
        *,
        noise_rate: float,
        ramp_steps: int,
        module: NetworkPair,
        inputs: Part = None,
        labels: Part = None,
        logits: Part = None,
        **problem: Any,
    ) -> None:
        super().__init__(name, config, module, **problem)
        if not is_part(noise_rate) or not is_count(ramp_steps, least=1):
            raise ConfigurationError(
                f"CoTeachingClassifier {name!r} (noise_rate={noise_rate}, "
                f"ramp_steps={ramp_steps}) is out of range; give a share in [0, 1) and a number of "
                "steps of at least 1."
            )
        if not isinstance(module, NetworkPair):
            raise ConfigurationError(
                f"CoTeachingClassifier {name!r} received a module of type "
                f"{type(module).__name__}; give it module=NetworkPair(first, second)."
            )
        self._noise_rate = noise_rate
        self._ramp_steps = ramp_steps
        self._reader = BatchReader(f"Problem {name!r}", inputs, labels, logits)

    def get_batch(self) -> CoTeachingBatch:
        """Return the next batch, with the share to keep in this step."""
        parts = self._reader.read(self.get_batch_single_loader(0))
        return CoTeachingBatch(parts.inputs, parts.labels, self.kept_share(self.count - 1))

    def kept_share(self, step: int) -> float:
        """Return ``R`` at ``step``, 0 for the first."""
        return 1.0 - self._noise_rate * min(step / self._ramp_steps, 1.0)

    def training_step(self, batch: CoTeachingBatch) -> Tensor:
        """Return the losses of both networks."""
        first, second = (
            self._reader.predict(network, batch.inputs)
            for network in (self.module.first, self.module.second)
        )
        return co_teaching_loss(first, second, batch.labels, batch.kept)


def _smallest(losses: Tensor, labelled: Tensor, number: int) -> Tensor:
    """Return the places of the smallest losses, (number,)."""
    ranked = losses.detach().masked_fill(~labelled, torch.inf)
    return ranked.topk(number, largest=False).indices


def _mean_of(losses: Tensor, chosen: Tensor, labelled: Tensor) -> Tensor:
    counted = labelled.index_select(0, chosen)
    total = torch.where(counted, losses.index_select(0, chosen), 0).sum()
    return total / counted.sum().clamp_min(1)


def _all_equal(one: list[nn.Parameter], other: list[nn.Parameter]) -> bool:
    """Return whether parameters have the same values; unknown ones have not."""
    return len(one) == len(other) and all(
        p.shape == q.shape and not (p.is_meta or q.is_meta) and torch.equal(p, q)
        for p, q in zip(one, other, strict=True)
    )
