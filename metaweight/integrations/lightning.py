"""``LightningModule`` with learned sample weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from metaweight._batch import Part
from metaweight.problems import ConfigurationError
from metaweight.problems.base.settings import shown
from metaweight.weighting import normalise_weights

from .classifier_levels import classifier_levels, weights_of
from .required import required_for
from .two_levels import TwoLevels, load_network
from .weighting_config import WeightingConfig

with required_for(__name__, "lightning"):
    from lightning.pytorch import LightningModule

__all__ = ["ReweightedModule"]

STATE = "metaweight"
"""Where a checkpoint holds the weight network's state."""

PRECISIONS = {"32-true": "fp32", "bf16-mixed": "bf16"}


class ReweightedModule(LightningModule):  # type: ignore[misc]
    """A ``LightningModule`` whose training samples weigh what a few clean samples say. ::

        class Classifier(ReweightedModule):
            def __init__(self, clean):
                super().__init__(clean)
                self.network = ResNet32()

            def forward(self, images):
                return self.network(images)

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)

        Trainer(max_epochs=10).fit(Classifier(clean_loader), noisy_loader)

    Define ``forward``, inputs to logits, and ``configure_optimizers``, with one optimizer of any
    kind and any schedulers. A training step has the loss ``mean_i V_θ(sg(l_i), y_i) l_i`` of the
    sample losses ``l_i``; after each optimizer step the weight network ``V_θ`` takes a step that
    lowers the loss on a clean batch. It is no submodule: the Trainer counts, clips and schedules
    the steps of your optimizer alone. Optimisation may be automatic or manual. Checkpoints hold the
    weight network, its optimizer and the position in the clean batches.

    Args:
        clean: Batches of a few samples of each class whose labels are right, in the form of the
            training batches: a loader.
        weighting: How weights are learned.
        loss: A function or module of ``(logits, labels)``, as for
            :class:`~metaweight.weighting.WeightedClassifier`.
        inputs: Key or place of the inputs in a batch, or a function of it, as there.
        labels: The same of the labels.
        logits: The same of the logits in what ``forward`` returns.
        seed: Seed of the weight network that is made where none is given.

    Raises:
        ConfigurationError: For settings of another kind; and when training begins, for several
            devices or optimizers, for precisions other than 32-true and bf16-mixed, and for a
            warm-up whose share of the steps is not known.
        DataError: For clean samples that cannot be iterated.

    Source: Shu et al., "Meta-Weight-Net", NeurIPS 2019 (arXiv:1902.07379).
    """

    def __init__(
        self,
        clean: Any,
        weighting: WeightingConfig | None = None,
        *,
        loss: Callable[..., Tensor] = F.cross_entropy,
        inputs: Part = None,
        labels: Part = None,
        logits: Part = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        who = type(self).__name__
        if weighting is not None and not isinstance(weighting, WeightingConfig):
            raise ConfigurationError(
                f"{who} received weighting={shown(weighting)}; give a WeightingConfig."
            )
        if not isinstance(clean, Iterable) or isinstance(clean, (Tensor, str, Mapping, tuple)):
            raise ConfigurationError(
                f"{who} received clean={shown(clean)}; give a loader of clean samples, such as a "
                "DataLoader."
            )
        self.weighting = WeightingConfig() if weighting is None else weighting
        self._clean = clean
        self._reading: dict[str, Any] = {
            "loss": loss,
            "inputs": inputs,
            "labels": labels,
            "logits": logits,
        }
        # In a tuple, since it is no submodule.
        self._network = (self.weighting.made_network(seed),)
        self._levels: TwoLevels | None = None
        self._saved: Any = None

    @property
    def weight_network(self) -> nn.Module:
        """The weight network."""
        return self._network[0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return :meth:`weighted_loss`, logged as ``"train_loss"``."""
        del batch_idx
        loss = self.weighted_loss(batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def weighted_loss(self, batch: Any) -> Tensor:
        """Return the weighted loss of a training batch, for a ``training_step`` of your own.

        Raises:
            ConfigurationError: For a trainer that it cannot learn weights with.
        """
        return self._connected().loss(batch)

    def sample_weights(self, batch: Any) -> Tensor:
        """Return the weights of a batch by its present losses, (B,), in the module's present mode.

        They are scaled to mean 1 where the configuration normalises them, and 0 for samples without
        a label.

        Raises:
            ConfigurationError: Before training has begun.
        """
        if self._levels is None:
            raise ConfigurationError(
                f"{type(self).__name__} has learned no weights yet; call Trainer.fit first."
            )
        weights = weights_of(self._levels, [batch])
        return normalise_weights(weights) if self.weighting.normalise else weights

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the weight network's state; call it where you override it."""
        if self._saved is not None:
            # It was loaded, and training has not gone on.
            checkpoint[STATE] = self._saved
        elif self._levels is not None:
            checkpoint[STATE] = self._levels.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the weight network, and the rest when training begins; call it where you override
        it.

        Raises:
            CheckpointError: For another weight network.
        """
        self._saved = checkpoint.get(STATE)
        if self._saved is not None:
            load_network(self.weight_network, self._saved)

    def _connected(self) -> TwoLevels:
        """Return the levels of the present optimizer."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        if self._levels is None or self._levels.optimizer is not optimizer:
            self._levels = self._made_levels(optimizer)
        if self._saved is not None:
            self._levels.load_state_dict(self._saved)
            self._saved = None
        return self._levels

    def _made_levels(self, optimizer: Any) -> TwoLevels:
        steps = self.trainer.estimated_stepping_batches
        self._require_supported(optimizer, steps)
        return classifier_levels(
            self.weighting,
            self.weight_network,
            self,
            optimizer,
            self._clean,
            steps=0 if self.weighting.warmup == 0 else int(steps),
            device=self.device,
            precision=PRECISIONS[str(self.trainer.precision)],
            **self._reading,
        )

    def _require_supported(self, optimizer: Any, steps: float) -> None:
        precision, world = str(self.trainer.precision), self.trainer.world_size
        several = f"{len(optimizer)} optimizers" if isinstance(optimizer, list) else None
        endless = f"a run without an end and warmup={self.weighting.warmup}"
        for refused, what, remedy in (
            (world > 1, f"{world} devices", "give Trainer(devices=1)"),
            (several is not None, several, "return one of them, or none but the network's"),
            (precision not in PRECISIONS, precision, f"use {' or '.join(PRECISIONS)}"),
            (
                self.weighting.warmup > 0 and steps == float("inf"),
                endless,
                "give max_epochs or max_steps, or warmup=0",
            ),
        ):
            if refused:
                raise ConfigurationError(
                    f"{type(self).__name__} is trained with {what}, with which it cannot learn "
                    f"weights; {remedy}."
                )
