"""The short way: from two datasets and a model to what the data are worth."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from metaweight.data import SampleLoader
from metaweight.engines import Engine, Hook
from metaweight.problems import Config, ConfigurationError, DataError, Reweighting
from metaweight.problems.base.settings import require_choice, require_count, shown

from .problems import Average, CleanLM, Level, WeightedLM
from .rate import rate
from .reference import reference_losses, require_base
from .sources import Sources
from .text_collate import TextCollate, reference_of
from .token_losses import REFERENCE
from .weighers import as_precise_as, made_weigher, names_of_sources, usual_rate

LM, LEARNER = "lm", "data_weights"

LEAST_DEVIATION = 0.1
"""Below it, losses of a reference say little, and those of the trained model, which are scaled
alike, would be so large that one sequence has all the weight of a batch."""


@dataclass(frozen=True)
class LearnedWeights:
    """What :func:`learn_weights` has learned."""

    lm: WeightedLM
    """The model's problem."""

    learner: CleanLM
    """The problem of the weights; its ``module`` is :class:`Sources` or :class:`Rater`."""

    collate: Any
    """How samples were made into batches."""

    reference: nn.Module | None = None
    """The model whose losses a rater reads, if it does."""

    base: nn.Module | None = None
    """The model that these are compared with, if they are."""

    @property
    def sources(self) -> dict[Hashable, float]:
        """The weight of each source, of mean 1.

        Raises:
            ConfigurationError: At another level.
        """
        module = self.learner.module
        if not isinstance(module, Sources):
            raise ConfigurationError(
                f"Weights were learned at level={self.lm.level!r}; for those of sources use "
                "level='source', and for ratings rate(dataset)."
            )
        return module.weights

    def rate(self, dataset: Any, **options: Any) -> Any:
        """Return a dataset with a rating of each sequence: :func:`metaweight.lm.rate`; and with
        the losses of the reference, if raters read them and the dataset has none."""
        given = {"collate": self.collate, **options}
        if self.reference is not None and len(dataset) and REFERENCE not in dataset[0]:
            size = {"batch_size": given["batch_size"]} if "batch_size" in given else {}
            dataset = reference_losses(
                self.reference,
                dataset,
                base=self.base,
                collate=given["collate"],
                source=self.lm.source_key,
                **size,
            )
        return rate(self.lm, dataset, **given)


def learn_weights(
    model: nn.Module,
    train: Any,
    clean: Any,
    collate: Any = None,
    *,
    level: Level = "source",
    steps: int = 200,
    batch_size: int = 16,
    clean_batch_size: int | None = None,
    micro_batch_size: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    weight_learning_rate: float | None = None,
    warmup_steps: int = 0,
    every: int = 1,
    average: Average = "tokens",
    hypergradient: Any = None,
    reference: nn.Module | None = None,
    base: nn.Module | None = None,
    source: str = "source",
    seed: int = 0,
    hooks: Iterable[Hook] = (),
    **engine: Any,
) -> LearnedWeights:
    """Train a causal language model on weighted data, and learn the weights on clean data. ::

        found = learn_weights(model, train, clean, tokenizer, steps=200)
        found.sources                       # {"books": 1.9, "crawl": 0.1}

    The same as :class:`WeightedLM` under :class:`CleanLM` on an :class:`~metaweight.Engine`: each
    step of the model on a batch of ``train``, or each ``every``-th, is followed by one of Adam on
    the weights, which lowers the model's loss on a batch of ``clean``.

    Args:
        model: A causal model, trained in place.
        train: A list of mappings, or a ``datasets.Dataset``: ``input_ids``, and ``source`` for
            sources. ``attention_mask`` and ``labels`` where there are any.
        clean: The same of data like those that the model shall be good at; no sources.
        collate: A tokenizer, a collator or nothing: :class:`TextCollate`.
        level: ``"source"`` learns a weight for each source; ``"sequence"`` a :class:`Rater`.
        steps: Optimizer steps of the model.
        batch_size: Sequences in a batch of ``train``.
        clean_batch_size: The same of ``clean``; as many as of ``train`` when left out.
        micro_batch_size: As for :class:`WeightedLM`.
        optimizer: The model's; AdamW at a learning rate of 1e-4 when left out.
        weight_learning_rate: That of the weights: 0.1 for sources, 1e-3 for a rater.
        warmup_steps: Steps of the model before weights are learned.
        every: Steps of the model for one of the weights, which is most of the extra cost.
        average: As for :class:`WeightedLM`.
        hypergradient: ``Config.type`` of the model's problem. When left out,
            :class:`~metaweight.Reweighting`, with a central difference; where parameters have 16
            bits, in whose rounding differences drown, with forward mode.
        reference: For ``level="sequence"``, a model of texts like the clean ones, such as a copy of
            ``model`` fine-tuned on them; the rater reads its losses of the training texts, and no
            hidden states: :func:`~metaweight.lm.reference_losses`. It is not trained. They are
            scaled by their deviation over ``train``, or by 0.1 nats a token where it is less. A
            column ``"reference_loss"`` that ``train`` has already is read as it is.
        base: A model of all texts, such as a copy of ``reference`` before it was fine-tuned; the
            rater then reads by how much the losses of the reference are above its own. It is not
            trained.
        source: Name of the source in a sample.
        seed: Seed of orders and of a rater's parameters.
        hooks: Further hooks of the engine.
        **engine: Further settings of :class:`~metaweight.EngineConfig`, such as ``device`` and
            ``precision``.

    Raises:
        ConfigurationError: For settings that are refused, and a tokenizer without padding.
        DataError: For an empty dataset, samples without a source or without sequences, and losses
            of a reference that are not finite.
    """
    require_choice("learn_weights", "level", level, ("source", "sequence"))
    require_count("learn_weights", "steps", steps, least=1)
    require_count("learn_weights", "every", every, least=1)
    for name, dataset in (("train", train), ("clean", clean)):
        if not len(dataset):
            raise DataError(
                f"learn_weights received the dataset {name!r} without sequences; give at least one."
            )
    scale = None
    if reference is not None:
        _require_reference(reference, model, optimizer, level)
    if base is not None:
        _require_base(base, reference, model, optimizer)
    if reference is not None:
        train, scale = _with_reference(reference, base, train, collate, source)
    sources = Sources(names_of_sources(train, source)) if level == "source" else None
    made = TextCollate(collate, sources=sources, source=source)
    plain = TextCollate(collate, source=source)
    weigher = sources or made_weigher(level, model, plain([clean[0]]), seed, scale)
    narrow = next(model.parameters()).dtype.itemsize < 4
    if hypergradient is None:
        hypergradient = Reweighting(derivative="forward_mode" if narrow else "central_difference")
    rate_of_weights = weight_learning_rate or usual_rate(level)
    lm = WeightedLM(
        LM,
        Config(type=hypergradient, warmup_steps=warmup_steps, unroll_steps=every),
        weights=LEARNER,
        level=level,
        average=average,
        micro_batch_size=micro_batch_size,
        source=source,
        module=model,
        optimizer=optimizer or torch.optim.AdamW(model.parameters(), 1e-4),
        train_data_loader=SampleLoader(train, batch_size, collate_fn=made, seed=seed),
    )
    learner = CleanLM(
        LEARNER,
        model=LM,
        module=as_precise_as(weigher, model),
        optimizer=torch.optim.Adam(weigher.parameters(), rate_of_weights),
        train_data_loader=SampleLoader(
            clean, clean_batch_size or batch_size, collate_fn=plain, seed=seed + 1
        ),
    )
    settings = {"train_iters": steps, "valid_step": steps + 1, "progress": False, **engine}
    Engine.bilevel(learner, lm, hooks=hooks, **settings).run()
    return LearnedWeights(lm, learner, collate, reference, base)


def _require_reference(
    reference: nn.Module, model: nn.Module, optimizer: torch.optim.Optimizer | None, level: Level
) -> None:
    """Refuse a reference that no rater would read, or that would be trained.

    Raises:
        ConfigurationError: Then.
    """
    if level != "sequence":
        raise ConfigurationError(
            f"learn_weights received a reference at level={level!r}, where nothing reads its "
            "losses; give level='sequence', or leave it out."
        )
    what, advice = f"reference={shown(reference)}", "a copy of the model fine-tuned on clean texts"
    if isinstance(reference, nn.Module):
        if _is_left(reference, model, optimizer):
            return
        what = "a reference with parameters that are trained, those of the model"
    raise ConfigurationError(
        f"learn_weights received {what}; give another model, such as {advice}."
    )


def _require_base(
    base: nn.Module,
    reference: nn.Module | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
) -> None:
    """Refuse a base without a reference, or that would be trained.

    Raises:
        ConfigurationError: Then.
    """
    if reference is None:
        raise ConfigurationError(
            "learn_weights received a base without a reference, whose losses are compared with its "
            "own; give reference=..., a model of texts like the clean ones, or leave out base."
        )
    require_base("learn_weights", base, reference)
    if not _is_left(base, model, optimizer):
        raise ConfigurationError(
            "learn_weights received a base with parameters that are trained, those of the model; "
            "give a copy of it, by copy.deepcopy(model)."
        )


def _is_left(other: nn.Module, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> bool:
    """Return whether none of a model's parameters is trained, in this object or another."""
    groups = [{"params": model.parameters()}] if optimizer is None else optimizer.param_groups
    trained = {_place(p) for group in groups for p in group["params"] if p.requires_grad}
    return trained.isdisjoint(map(_place, other.parameters()))


def _place(parameter: torch.Tensor) -> int:
    """Return where the numbers of a parameter are."""
    return parameter.untyped_storage().data_ptr() or id(parameter)


def _with_reference(
    reference: nn.Module, base: nn.Module | None, train: Any, collate: Any, source: str
) -> tuple[Any, tuple[float, float]]:
    """Return the training texts with the losses of a reference, and their mean and deviation."""
    if REFERENCE not in train[0]:
        train = reference_losses(reference, train, base=base, collate=collate, source=source)
    elif base is not None:
        raise ConfigurationError(
            f"learn_weights received a base, and texts with a {REFERENCE!r} already, of which it "
            "is not known whether they are compared with it; leave out the column, or the base."
        )
    losses = torch.tensor([reference_of(train[i]) for i in range(len(train))], dtype=torch.float64)
    # 0 is that of a text without a token that counts.
    counted = losses[losses != 0] if losses.any() else losses
    deviation = counted.std(correction=0).item()
    return train, (counted.mean().item(), max(deviation, LEAST_DEVIATION))
