"""TRL's ``SFTTrainer`` that learns what its data are worth."""

from __future__ import annotations

from typing import Any

from metaweight.problems import ConfigurationError

from .required import required_for

with required_for(__name__, "trl"):
    import datasets
    from trl import SFTTrainer

    from .trainer_of_texts import MetaTrainer
    from .trainer_with_weights import refuse

__all__ = ["MetaSFTTrainer"]


class MetaSFTTrainer(MetaTrainer, SFTTrainer):  # type: ignore[misc]
    """A ``trl.SFTTrainer`` whose data weigh what a few clean texts say. ::

        trainer = MetaSFTTrainer(model, SFTConfig("out"), train_dataset=train,
                                 clean_dataset=clean, peft_config=LoraConfig())
        trainer.train()
        trainer.learned.sources         # {"books": 1.9, "crawl": 0.1}

    What :class:`~metaweight.integrations.huggingface.MetaTrainer` is of the ``Trainer``. Both
    datasets may be texts, prompts with completions or conversations, and are prepared as
    ``SFTTrainer`` prepares them; the training texts have a column ``source`` beside. With
    ``packing`` texts of one source are packed together, so that each row has one; with
    ``level="sequence"`` a row is then the sequence. Numbers on entropy and accuracy are logged by
    evaluations alone.

    Args:
        *args: As for ``SFTTrainer``.
        clean_dataset: Texts like those that the model shall be good at.
        **kwargs: ``weighting`` and ``clean_batch_size``, as for ``MetaTrainer``, and those of
            ``SFTTrainer``.

    Raises:
        ConfigurationError: As for ``MetaTrainer``; for ``padding_free`` and the packing strategies
            that need it, which join all rows of a batch; for ``packing`` with a rater that reads
            losses of a reference; for ``loss_type="dft"``, ``activation_offloading`` and images.
    """

    def __init__(self, *args: Any, clean_dataset: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, clean_dataset=clean_dataset, **kwargs)
        refuse(
            self,
            (
                self.padding_free,
                "padding_free=True, or a packing_strategy that needs it",
                "use packing_strategy='wrapped', or packing=False",
            ),
            (self.args.loss_type != "nll", f"loss_type={self.args.loss_type!r}", "use 'nll'"),
            (self.args.activation_offloading, "activation_offloading=True", "leave it out"),
            (self._is_vision_dataset, "images", "use texts"),
            (
                self.args.packing and self._reads_reference(),
                "packing=True, whose rows have no loss of a reference as texts have",
                "use packing=False, or a Rater without a reference",
            ),
        )
        if not self._skip_prepare_dataset:
            self.clean_dataset = SFTTrainer._prepare_dataset(
                self,
                clean_dataset,
                self.processing_class,
                self.args,
                self.args.packing,
                self._formatting_func,
                "clean",
            )

    def _reads_reference(self) -> bool:
        network = self.weighting.weight_network
        return self.weighting.level == "sequence" and getattr(network, "reads_reference", False)

    def _prepare_dataset(
        self,
        dataset: Any,
        processing_class: Any,
        args: Any,
        packing: bool,
        formatting_func: Any,
        dataset_name: str,
    ) -> Any:
        def prepared(part: Any) -> Any:
            given = (processing_class, args, packing, formatting_func, dataset_name)
            return SFTTrainer._prepare_dataset(self, part, *given)

        source = self.weighting.source
        if not packing or source not in (dataset.column_names or ()):
            return prepared(dataset)
        if not isinstance(dataset, datasets.Dataset):
            raise ConfigurationError(
                f"{type(self).__name__} received packing=True and a dataset without a length, in "
                "which it cannot keep sources apart; give a datasets.Dataset, or packing=False."
            )
        rows: dict[Any, list[int]] = {}
        for place, name in enumerate(dataset[source]):
            rows.setdefault(name, []).append(place)
        parts = []
        for name, places in sorted(rows.items()):
            part = prepared(dataset.select(places))
            parts.append(part.add_column(source, [name] * len(part)))
        return datasets.concatenate_datasets(parts)
