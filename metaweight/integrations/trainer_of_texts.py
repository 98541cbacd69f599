"""``transformers.Trainer`` of a language model that learns what its data are worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from metaweight.data import SampleLoader
from metaweight.lm import LearnedWeights, Sources, TextCollate
from metaweight.lm.token_losses import REFERENCE
from metaweight.lm.weighers import made_weigher, names_of_sources
from metaweight.problems import ConfigurationError
from metaweight.problems.base.settings import shown

from .required import required_for
from .text_levels import text_levels, units_of
from .text_weighting import TextWeighting
from .trainer_batches import MicroBatch
from .two_levels import TwoLevels

with required_for(__name__, "huggingface"):
    from transformers import default_data_collator

    from .trainer_with_weights import TrainerWithWeights, refuse, require_supported


class MetaTrainer(TrainerWithWeights):
    """A ``transformers.Trainer`` of a language model whose data weigh what clean texts say. ::

        trainer = MetaTrainer(model, args, train_dataset=train, clean_dataset=clean)
        trainer.train()
        trainer.learned.sources         # {"books": 1.9, "crawl": 0.1}; in the logs as weights/books

    Samples are tokenised: ``input_ids``, ``labels`` where there are any, and a ``source`` where
    sources have weights. An update has the loss of :class:`~metaweight.lm.WeightedLM`, with the
    mean over the tokens of all its micro-batches, as the Trainer has; after each optimizer step the
    weights take a step that lowers the loss on a clean batch. All else is the Trainer's: its
    collator, arguments, schedules, logs, evaluation and callbacks; adapters of PEFT are trained and
    saved alone. Checkpoints hold the weights, their optimizer and the position in the clean texts
    too, and are resumed exactly.

    Args:
        *args: As for ``Trainer``.
        clean_dataset: Texts like those that the model shall be good at, tokenised too.
        weighting: How weights are learned.
        clean_batch_size: Clean texts in a batch; that of the training texts when left out.
        **kwargs: As for ``Trainer``. Without a ``data_collator`` and a ``processing_class``, texts
            are padded on the right.

    Raises:
        ConfigurationError: Without clean texts; for a loss of another kind (label smoothing,
            ``compute_loss_func``, that of a router); for a :class:`~metaweight.lm.Rater` with
            accumulated micro-batches; for several devices, ``fp16``, ``torch_compile``,
            ``use_liger_kernel``, ``auto_find_batch_size``, LOMO and AdaLomo.
        DataError: For training texts without a source, where sources have weights.

    Sources: Pan et al., "ScaleBiO", 2024 (arXiv:2406.19976); Calian et al., "DataRater", 2025
    (arXiv:2505.17895).
    """

    data_collator: Any

    def __init__(
        self,
        *args: Any,
        clean_dataset: Any = None,
        weighting: TextWeighting | None = None,
        clean_batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        who = type(self).__name__
        if weighting is not None and not isinstance(weighting, TextWeighting):
            raise ConfigurationError(
                f"{who} received weighting={shown(weighting)}; give a TextWeighting."
            )
        self.weighting = TextWeighting() if weighting is None else weighting
        super().__init__(*args, **kwargs)
        if clean_dataset is None or not len(clean_dataset):
            raise ConfigurationError(
                f"{who} was given no clean_dataset; give texts like those that the model shall be "
                "good at, or use the Trainer it is derived from."
            )
        require_supported(self, clean_batch_size)
        _require_token_losses(self)
        self.clean_dataset = clean_dataset
        self.clean_batch_size = clean_batch_size
        self._sources = self._known_sources()
        collator = self.data_collator
        self._collator = None if collator is default_data_collator else collator
        self.data_collator = _Collate(self._collator, self._sources, self.weighting.source)

    @property
    def learned(self) -> LearnedWeights:
        """The weights, and ratings of datasets by them.

        Raises:
            ConfigurationError: Before training has begun.
        """
        lm: Any = self.levels.lower
        learner: Any = self.levels.learner
        collate = self._get_collator_with_removed_columns(TextCollate(self._collator), "rated")
        return LearnedWeights(lm, learner, collate)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the weighted loss of a training batch, and the Trainer's own in evaluation."""
        if not model.training or return_outputs or self._levels is None:
            plain = self._without_source(inputs)
            return super().compute_loss(model, plain, return_outputs, num_items_in_batch)
        share, number = None, self.current_gradient_accumulation_steps
        if number > 1:
            share = units_of(inputs, self.weighting.average) * number / num_items_in_batch
        return self._levels.loss(MicroBatch(inputs, share))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Return the micro-batches of an update, and how many tokens or sequences count in them."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if len(batches) > 1:
            items = sum(units_of(batch, self.weighting.average).to(device) for batch in batches)
        return batches, items

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluate a batch, whatever sources its texts are from."""
        return super().prediction_step(model, self._without_source(inputs), *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the losses of training the weights of sources as ``weights/<source>``."""
        weights = self.weight_network
        if "loss" in logs and isinstance(weights, Sources):
            logs |= {f"weights/{name}": weight for name, weight in weights.weights.items()}
        super().log(logs, *args, **kwargs)

    def _connected(self, optimizer: torch.optim.Optimizer, steps: int) -> TwoLevels:
        args, config = self.args, self.weighting
        seed = args.seed if args.data_seed is None else args.data_seed
        collate = TextCollate(self._collator, source=config.source)
        reading = self._get_collator_with_removed_columns(collate, "clean")
        weigher = config.copied_network() if self._sources is None else self._sources
        if weigher is None:
            batch = self._prepare_inputs(reading([self.clean_dataset[0]]))
            weigher = made_weigher(config.level, self.model, batch, seed)
        size = self.clean_batch_size or args.train_batch_size
        return text_levels(
            config,
            weigher,
            self.model,
            optimizer,
            SampleLoader(self.clean_dataset, size, collate_fn=reading, seed=seed),
            steps=steps,
            device=args.device,
            precision="bf16" if args.bf16 else "fp32",
        )

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        for column in (self.weighting.source, REFERENCE):
            if column not in self._signature_columns:
                self._signature_columns.append(column)

    def _known_sources(self) -> Sources | None:
        config, dataset = self.weighting, self.train_dataset
        if config.level != "source":
            return None
        given: Any = config.copied_network()
        if given is not None:
            return given  # type: ignore[no-any-return]
        if dataset is None or not hasattr(dataset, "__len__"):
            raise ConfigurationError(
                f"{type(self).__name__} cannot read the sources of a training dataset without a "
                "length; name them with TextWeighting(weight_network=Sources([...]))."
            )
        return Sources(names_of_sources(dataset, config.source))

    def _without_source(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        own = (self.weighting.source, REFERENCE)
        return {key: value for key, value in inputs.items() if key not in own}


class _Collate:
    """Collates texts with their sources, or without where one has none."""

    def __init__(self, collate: Any, sources: Sources | None, source: str) -> None:
        self._source = source
        self._plain = TextCollate(collate, source=source)
        self._sourced = TextCollate(collate, sources=sources, source=source)

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        named = all(self._source in sample for sample in samples)
        return (self._sourced if named else self._plain)(samples)


def _require_token_losses(trainer: MetaTrainer) -> None:
    """Refuse losses other than those of the tokens, and weights that need all of an update.

    Raises:
        ConfigurationError: Naming what it is.
    """
    args, config = trainer.args, trainer.weighting
    of_model = getattr(trainer.model, "config", None)
    network = config.weight_network
    flags = ("compares_sequences", "reads_hidden_states")
    compares = network is None or any(getattr(network, flag, False) for flag in flags)
    compares &= config.level == "sequence" and args.gradient_accumulation_steps > 1
    what = "level='sequence', whose weights compare the sequences of a batch, with "
    refuse(
        trainer,
        (trainer.compute_loss_func is not None, "compute_loss_func=...", "leave it out"),
        (args.label_smoothing_factor > 0, "label_smoothing_factor", "leave it out"),
        (
            bool(getattr(of_model, "output_router_logits", False)),
            "a model with a loss of its router",
            "set config.output_router_logits=False",
        ),
        (
            compares,
            f"{what}gradient_accumulation_steps={args.gradient_accumulation_steps}",
            "give whole batches, and TextWeighting(micro_batch_size=...) for the size of a pass",
        ),
    )
