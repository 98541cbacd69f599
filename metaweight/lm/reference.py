"""Losses of a reference model: how a model of good texts finds each sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metaweight.data import SampleLoader
from metaweight.problems import ConfigurationError
from metaweight.problems.base.settings import require_count, require_text, shown
from metaweight.problems.data.batches import move_batch

from .columns import evaluated, require_new_column, with_column
from .text_collate import TextCollate
from .token_losses import REFERENCE, TokenReader


def reference_losses(
    model: nn.Module,
    dataset: Any,
    *,
    base: nn.Module | None = None,
    collate: Any = None,
    batch_size: int = 32,
    source: str = "source",
    shift: bool = True,
    column: str = REFERENCE,
) -> Any:
    """Return a dataset with ``r_i = (1/n_i) Σ_t l_it`` of each sequence at a reference model, or
    ``r_i - b_i``, by how much it is above that at a base model.

    The reference is a model of good texts: such as the one to be trained, fine-tuned on the clean
    texts for a few steps. The base is a model of all texts: such as that one before it was, or one
    trained on them. Some texts are hard for any model; the difference leaves that out.
    :class:`~metaweight.lm.Rater` reads these losses, and a rating may be little more than them:
    order by the column first. The models are evaluated without dropout, on the devices of their
    parameters; their modes are restored.

    Args:
        model: A causal model.
        dataset: A list of mappings, or a ``datasets.Dataset``, of N tokenised sequences.
        base: Another, for the difference; when left out, there is none.
        collate: As for :class:`~metaweight.lm.TextCollate`.
        batch_size: Sequences in a pass.
        source: Name of the source in a sample, if it has one, which is no input.
        shift: As for :class:`~metaweight.lm.WeightedLM`.
        column: Name of the losses or differences, in nats a token; raters read
            ``"reference_loss"``.

    Returns:
        A new list, or a new ``datasets.Dataset``. Sequences without a token that counts have 0.

    Raises:
        DataError: For a dataset without sequences, or with a column of this name.
        ConfigurationError: For a base that is no model, or has the losses of the reference.

    Sources: Mindermann et al., "Prioritized training on points that are learnable, worth learning,
    and not yet learnt", ICML 2022 (arXiv:2206.07137); for the difference, Moore and Lewis,
    "Intelligent selection of language model training data", ACL 2010.
    """
    require_text("reference_losses", "column", column)
    require_count("reference_losses", "batch_size", batch_size, least=1)
    require_new_column("reference_losses", dataset, column)
    if base is not None:
        require_base("reference_losses", base, model)
    made = TextCollate(collate, source=source)
    losses = _losses(model, dataset, made, batch_size, shift)
    if base is not None:
        of_base = _losses(base, dataset, made, batch_size, shift)
        if losses.any() and losses.equal(of_base):
            raise ConfigurationError(
                "reference_losses received a base whose losses are those of the reference; it has "
                "the same parameters, as of adapters that are put into it in place. Give a copy "
                "made before, by copy.deepcopy(model)."
            )
        losses -= of_base
    return with_column(dataset, column, losses.tolist())


def require_base(who: str, base: object, model: nn.Module) -> None:
    """Refuse a base that is no model, or the model that it is compared with.

    Raises:
        ConfigurationError: Then.
    """
    if isinstance(base, nn.Module) and base is not model:
        return
    what = "the same model as base" if base is model else f"base={shown(base)}"
    raise ConfigurationError(
        f"{who} received {what}; give another model, of all texts, such as a copy of the reference "
        "made before it was fine-tuned, or leave it out."
    )


@torch.no_grad()
def _losses(
    model: nn.Module, dataset: Any, collate: TextCollate, batch_size: int, shift: bool
) -> Tensor:
    reader = TokenReader("reference_losses", shift)
    device = next(model.parameters()).device
    with evaluated(model):
        parts = [
            reader.read(model, move_batch(batch, device)).per_sequence().double().cpu()
            for batch in SampleLoader(dataset, batch_size, shuffle=False, collate_fn=collate)
        ]
    return torch.cat(parts)
