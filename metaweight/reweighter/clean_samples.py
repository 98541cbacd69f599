"""Which samples to take for clean where none are given."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metaweight._batch_reader import BatchReader
from metaweight._sample_loss import SampleLoss
from metaweight.data import LabelledTensors
from metaweight.noise import CrossValidatedConfidence
from metaweight.problems import ImplicitProblem

from .losses import losses_of
from .samples import Samples
from .settings import Settings
from .targets import Targets
from .training import MOMENTUM, logits_of

_FOLDS = 3


def trusted_samples(
    make_module: Callable[[], nn.Module],
    data: Samples,
    targets: Targets,
    settings: Settings,
    reader: BatchReader,
    like: Tensor,
) -> Tensor:
    """Return positions of the samples whose labels out-of-fold predictions confirm best.

    Of each class a share of its samples is taken, at least one: those whose label has the
    largest predicted probability, or of other labels those of the smallest loss; predictions come
    from networks that have not seen the sample.
    It is weaker than samples that were looked at: what all networks get wrong, they confirm. With
    fewer than six samples all are taken.

    Args:
        make_module: Makes a network, from torch's global random stream.
        data: The samples.
        targets: What their labels say.
        settings: How to train.
        reader: Finds the logits in what a network returns.
        like: A parameter of such a network.
    """
    if len(data) < 2 * _FOLDS:
        return torch.arange(len(data))
    share = 0.1 if settings.clean_fraction is None else settings.clean_fraction
    strata = targets.strata(data.targets)
    outputs = out_of_fold_outputs(make_module, data, strata, settings, reader)
    outputs = outputs.reshape(len(data), *targets.shape)
    losses = losses_of(reader.who, settings.loss, outputs, data.targets, like)
    confidence = targets.confidence(outputs, data.targets, losses)
    found = [
        _most_confident(strata == number, confidence, share)
        for number in torch.unique(strata).tolist()
    ]
    return torch.cat(found)


def out_of_fold_outputs(
    make_module: Callable[[], nn.Module],
    data: Samples,
    strata: Tensor,
    settings: Settings,
    reader: BatchReader,
) -> Tensor:
    """Return outputs, (N, C), of networks that have not seen the sample; folds are stratified."""
    training = len(data) - math.ceil(len(data) / _FOLDS)

    def problem(name: str, part: LabelledTensors, seed: int) -> _Fold:
        module = make_module()
        optimizer = torch.optim.SGD(
            module.parameters(),
            # Half, since it does not fall.
            lr=settings.learning_rate / 2,
            momentum=MOMENTUM,
            nesterov=True,
            weight_decay=settings.weight_decay,
        )
        size = settings.batch_of(training)
        loader = data.subset(part.inputs).loader(size, seed=seed, device=None)
        more = {"module": module, "optimizer": optimizer, "train_data_loader": loader}
        return _Fold(name, data, reader, settings.loss, **more)

    search = CrossValidatedConfidence(
        make_problem=problem,
        folds=_FOLDS,
        steps=settings.steps_of(training),
        seed=settings.seed,
        device=settings.device,
    )
    # Positions stand for the samples, which may be of any form.
    places = LabelledTensors(torch.arange(len(data)), strata, num_classes=settings.outputs)
    return search.outputs(places)


class _Fold(ImplicitProblem):
    """A fold's network, called with positions of samples."""

    def __init__(
        self, name: str, data: Samples, reader: BatchReader, loss: Any, **problem: Any
    ) -> None:
        super().__init__(name, **problem)
        self._data = data
        self._of = reader
        self._loss = SampleLoss(reader.who, loss)

    def forward(self, positions: Tensor) -> Tensor:
        """Return the outputs for samples, (B, C)."""
        found = logits_of(self.module, self._data.subset(positions.cpu()), self._of)
        return found.reshape(len(found), -1)

    def training_step(self, batch: Any) -> Tensor:
        """Return the mean loss of a batch."""
        inputs, targets = batch
        return self._loss.mean(self._of.predict(self.module, inputs), targets)


def _most_confident(mask: Tensor, confidence: Tensor, share: float) -> Tensor:
    positions = mask.nonzero().squeeze(1)
    number = max(1, round(share * len(positions)))
    return positions[confidence[positions].argsort(descending=True, stable=True)[:number]]
