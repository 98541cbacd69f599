"""``transformers.Trainer`` with learned sample weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metaweight._labels import read_labels
from metaweight.data import SampleLoader
from metaweight.problems import ConfigurationError
from metaweight.problems.base.settings import shown
from metaweight.weighting import normalise_weights

from .classifier_levels import classifier_levels, weights_of
from .required import required_for
from .trainer_batches import MicroBatch, TrainerClassifier, per_sample, whole
from .two_levels import TwoLevels
from .weighting_config import WeightingConfig

with required_for(__name__, "huggingface"):
    import accelerate  # noqa: F401 (the Trainer needs it, and names it late)
    from transformers import Trainer

    from .trainer_of_texts import MetaTrainer
    from .trainer_with_weights import STATE, TrainerWithWeights, require_supported

__all__ = ["STATE", "MetaTrainer", "ReweightingTrainer"]


class ReweightingTrainer(TrainerWithWeights):
    """A ``transformers.Trainer`` whose training samples weigh what a few clean samples say. ::

        trainer = ReweightingTrainer(model, args, train_dataset=noisy, clean_dataset=clean)
        trainer.train()
        trainer.sample_weights()        # (N,), small where labels are likely to be wrong

    The model is a classifier with one label per sample. Each batch has the loss
    ``mean_i V_θ(sg(l_i), y_i) l_i`` of the cross-entropies ``l_i``, with the Trainer's label
    smoothing; after each optimizer step the weight network ``V_θ`` takes a step that lowers the
    loss on a clean batch. With gradient accumulation, weights are normalised in each batch, and
    with weights of 1 the loss of an update is the mean over its samples, also where the last
    batches of an epoch are fewer or smaller. Everything else is the Trainer's: arguments,
    schedules, logging, evaluation, callbacks. Checkpoints hold the weight network, its optimizer
    and the position in the clean samples too, and are resumed exactly.

    Args:
        *args: As for ``Trainer``.
        clean_dataset: A few samples of each class whose labels are right, in the form of
            ``train_dataset``: ``len(dataset)`` and ``dataset[i]``.
        weighting: How weights are learned.
        clean_batch_size: Clean samples in a batch; that of the training samples when left out.
        **kwargs: As for ``Trainer``. A ``compute_loss_func`` has to return one loss per sample,
            (B,), and replaces the cross-entropy for other kinds of models.

    Raises:
        ConfigurationError: Without clean samples, for a model of another kind, and for several
            devices, ``fp16``, ``torch_compile``, ``use_liger_kernel``, ``auto_find_batch_size`` and
            the optimizers LOMO and AdaLomo, which step within the backward pass.

    Source: Shu et al., "Meta-Weight-Net", NeurIPS 2019 (arXiv:1902.07379).
    """

    def __init__(
        self,
        *args: Any,
        clean_dataset: Any = None,
        weighting: WeightingConfig | None = None,
        clean_batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        who = type(self).__name__
        if clean_dataset is None:
            raise ConfigurationError(
                f"{who} was given no clean_dataset; give a few samples of each class whose labels "
                "are right, or use transformers.Trainer."
            )
        if weighting is not None and not isinstance(weighting, WeightingConfig):
            raise ConfigurationError(
                f"{who} received weighting={shown(weighting)}; give a WeightingConfig."
            )
        require_supported(self, clean_batch_size)
        _require_classes(self)
        self.clean_dataset = clean_dataset
        self.weighting = WeightingConfig() if weighting is None else weighting
        self.clean_batch_size = clean_batch_size

    def sample_weights(self, dataset: Any = None) -> Tensor:
        """Return the weights of samples by their present losses, (N,), on the CPU.

        The network is in evaluation mode. Weights are scaled to mean 1 over all samples, where the
        configuration normalises them, and 0 for samples without a label.

        Args:
            dataset: Labelled samples; the training samples when left out.

        Raises:
            ConfigurationError: Before training has begun.
        """
        levels = self.levels
        samples = self.train_dataset if dataset is None else dataset
        batches = self._loader(samples, self.args.eval_batch_size, "Training", shuffle=False)
        was_training = self.model.training
        self.model.eval()
        try:
            weights = weights_of(
                levels, (MicroBatch(self._prepare_inputs(batch), None) for batch in batches)
            ).cpu()
        finally:
            self.model.train(was_training)
        return normalise_weights(weights) if self.weighting.normalise else weights

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the weighted loss of a training batch, and the Trainer's own in evaluation."""
        if not model.training or return_outputs or self._levels is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        share = None
        if self.current_gradient_accumulation_steps > 1 and num_items_in_batch is not None:
            share = self._share(inputs, num_items_in_batch)
        return self._levels.loss(MicroBatch(inputs, share))

    def _connected(self, optimizer: torch.optim.Optimizer, steps: int) -> TwoLevels:
        args, own = self.args, self.compute_loss_func
        seed = args.seed if args.data_seed is None else args.data_seed
        size = self.clean_batch_size or args.train_batch_size
        reading: dict[str, Any] = {"labels": self.label_names[0]}
        if own is None:
            reading["loss"] = nn.CrossEntropyLoss(label_smoothing=args.label_smoothing_factor)
        else:
            reading |= {"loss": per_sample(own), "logits": whole}
        return classifier_levels(
            self.weighting,
            self.weighting.made_network(seed),
            self.model,
            optimizer,
            self._loader(self.clean_dataset, size, "clean", shuffle=True, seed=seed),
            steps=steps,
            device=args.device,
            precision="bf16" if args.bf16 else "fp32",
            kind=TrainerClassifier,
            **reading,
        )

    def _loader(
        self, dataset: Any, batch_size: int, description: str, *, shuffle: bool, seed: int = 0
    ) -> SampleLoader:
        collate = self._get_collator_with_removed_columns(self.data_collator, description)
        return SampleLoader(dataset, batch_size, shuffle=shuffle, collate_fn=collate, seed=seed)

    def _share(self, inputs: Mapping[str, Any], items: Any) -> Any:
        """Return the factor that makes a mean over a micro-batch count by its samples.

        Of ``k`` micro-batches with ``n_b`` of ``n`` samples, ``(1/k) Σ_b (k n_b / n) mean_b`` is
        the mean over all.
        """
        labels = inputs[self.label_names[0]]
        if not isinstance(labels, Tensor) or labels.ndim != 1:
            return None
        kept = read_labels(labels).kept.sum()
        return kept * self.current_gradient_accumulation_steps / items

    def get_batch_samples(self, *args: Any, **settings: Any) -> tuple[list[Any], Any]:
        """Return the micro-batches of an update and the number of samples with a label in them."""
        batches, items = super().get_batch_samples(*args, **settings)
        labels = [batch[self.label_names[0]] for batch in batches] if items is not None else []
        if not labels or not all(isinstance(y, Tensor) and y.ndim == 1 for y in labels):
            return batches, items
        # The Trainer knows -100 only, and none of them must not be divided by.
        number = sum(read_labels(y).kept.sum() for y in labels)
        return batches, torch.as_tensor(number).to(torch.as_tensor(items).device).clamp_min(1)


def _require_classes(trainer: Trainer) -> None:
    """Refuse a model whose loss is not the cross-entropy of one label per sample.

    Raises:
        ConfigurationError: Naming what it is.
    """
    who, names = type(trainer).__name__, trainer.label_names
    if len(names) != 1:
        raise ConfigurationError(
            f"{who} received a model with the labels {', '.join(names) or 'none'}; give one with "
            "labels of one name, or say with TrainingArguments(label_names=[...]) which they are."
        )
    if trainer.compute_loss_func is not None:
        return
    config = getattr(trainer.model, "config", None)
    kind = getattr(config, "problem_type", None)
    one_number = getattr(config, "num_labels", 2) == 1
    if one_number or kind not in (None, "single_label_classification"):
        raise ConfigurationError(
            f"{who} received a model for {kind or 'regression'}, and knows the loss of one class "
            "per sample; give compute_loss_func=..., which returns one loss per sample."
        )
