"""Ready-made problems: a language model on weighted data, and one that learns the weights. ::

lm = WeightedLM("lm", weights="mixture", level="source", module=model, optimizer=adamw,
                train_data_loader=crawled)
mixture = CleanLM("mixture", model="lm", module=Sources(["books", "web"]), optimizer=adam,
                  train_data_loader=target)
Engine.bilevel(mixture, lm, train_iters=1000).run()
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from metaweight._batch import Part, shown_batch
from metaweight.problems import (
    Config,
    ConfigurationError,
    DataError,
    ImplicitProblem,
    ReweightedProblem,
)
from metaweight.problems.base.settings import require_choice, require_count, require_text

from .token_losses import PROPOSAL, REFERENCE, TokenLosses, TokenReader

Level = Literal["source", "sequence", "token"]
Average = Literal["tokens", "sequences"]
LEVELS = ("source", "sequence", "token")
AVERAGES = ("tokens", "sequences")


class WeightedLM(ReweightedProblem):
    """Lower problem: a causal language model on weighted sources, sequences or tokens.

    With the loss ``l_it`` of token t of sequence i, ``n_i`` tokens that count in it, ``n`` in the
    batch, and B sequences with such a token, the loss of a batch is, by ``average``::

        "tokens":     (1/n) Σ_i Σ_t V_it l_it
        "sequences":  (1/B) Σ_i (1/n_i) Σ_t V_it l_it

    with one weight ``V_it = V_i`` for all tokens of a sequence, but at ``level="token"``. Weights
    of 1 give the mean. It is taken over the batch of each process. With
    ``Config(gradient_accumulation=k)`` an update is the mean over the k micro-batches of these;
    with ``micro_batch_size`` instead, it is taken over the whole batch, exactly.

    Batches are mappings: ``input_ids`` (B, T), and where there are any ``attention_mask`` and
    ``labels``. A token counts if its label is neither -100 nor -1 and neither it nor the one it is
    predicted from is padding. Without ``labels`` they are the inputs. The network is called with
    those parts that it has arguments for, and returns logits (B, T, V).

    Args:
        name: Its name.
        config: Its settings.
        weights: Name of the problem that computes weights. Its module is called, by ``level``:

            - ``"source"``: with ``batch[source]``, (B,), such as
              :class:`~metaweight.lm.Sources`. Weights are divided by the batch's ``"proposal"``,
              if it has one: :class:`~metaweight.lm.MixtureLoader`.
            - ``"sequence"``: with the mean token loss of each sequence, (B,). A module with
              ``compares_sequences``, such as :class:`~metaweight.lm.Rater`, also with the mean
              hidden states (B, D) if it has ``reads_hidden_states``, or ``None``; and with which
              sequences count, (B,). One with ``reads_reference``, also with ``reference=`` the
              batch's ``"reference_loss"``, (B,): :func:`~metaweight.lm.reference_losses`.
            - ``"token"``: with the losses of all tokens, (B · T,), such as
              :class:`~metaweight.weighting.MetaWeightNet`.

            No gradient goes into what it is called with.
        level: What has a weight.
        average: How the loss of a batch is averaged.
        micro_batch_size: Sequences in one pass of the network. The activations of one pass at a
            time are kept, as each pass is computed again for its gradient: the memory of gradient
            accumulation, for a step on the whole batch and weights that compare all of it.
        source: Name of the sources in a batch: numbers (B,), or a list of names.
        shift: Whether position t predicts label t + 1. Give ``False`` for a sequence-to-sequence
            model, with ``decoder_input_ids`` in the batches.
        hidden: Where hidden states are in what the network returns: a key, attribute or place, or a
            function of it. When left out, the last of its ``hidden_states``.
        logits: The same of the logits. When left out, its ``logits``, or all that it returns.
        **problem: ``module``, ``optimizer``, ``train_data_loader`` and the rest of
            :class:`~metaweight.problems.Problem`.

    Raises:
        ConfigurationError: For an unknown level or average, and for accumulated micro-batches with
            weights that compare the sequences of a batch.
        DataError: In a run, for batches without a token that counts, or without sources.

    For one label per sequence use :class:`~metaweight.weighting.WeightedClassifier`.

    Sources: Calian et al., "DataRater", 2025 (arXiv:2505.17895); Pan et al., "ScaleBiO", 2024
    (arXiv:2406.19976).
    """

    def __init__(
        self,
        name: str,
        config: Config | None = None,
        *,
        weights: str,
        level: Level = "source",
        average: Average = "tokens",
        micro_batch_size: int | None = None,
        source: str = "source",
        shift: bool = True,
        hidden: Part = None,
        logits: Part = None,
        **problem: Any,
    ) -> None:
        super().__init__(name, config, **problem)
        who = f"WeightedLM {name!r} "
        require_choice(who, "level", level, LEVELS)
        require_choice(who, "average", average, AVERAGES)
        require_text(who, "source", source)
        if micro_batch_size is not None:
            require_count(who, "micro_batch_size", micro_batch_size, least=1)
        self.note_references(weights=weights)
        self.level: Level = level
        self.average: Average = average
        self.micro_batch_size = micro_batch_size
        self.source_key = source
        self._weights = weights
        self._reader = TokenReader(who.strip(), shift, hidden, logits, (source,))

    @property
    def weigher(self) -> Any:
        """The problem that computes weights."""
        return getattr(self, self._weights)

    @property
    def reads_hidden_states(self) -> bool:
        """Whether the weights are a function of hidden states."""
        return self._has("reads_hidden_states")

    @property
    def compares_sequences(self) -> bool:
        """Whether the weight of a sequence is a function of the others of its batch."""
        return self._has("compares_sequences") or self.reads_hidden_states

    def token_losses(self, batch: Any) -> TokenLosses:
        """Return the losses of the tokens of a batch, with hidden states if weights need them."""
        pooled, size = self.reads_hidden_states, self.micro_batch_size
        if size is None or not isinstance(batch, Mapping):
            return self.read(batch, pooled=pooled)
        parts = [self._pass(part, pooled) for part in _split(batch, size)]
        losses, counted = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        hidden = torch.cat([part[2] for part in parts]) if pooled else None
        return TokenLosses(losses, counted, hidden)

    def read(self, batch: Any, *, pooled: bool) -> TokenLosses:
        """Return the losses of one pass of the network, with mean hidden states if ``pooled``."""
        return self._reader.read(self.module, batch, pooled=pooled)

    def sample_losses(self, batch: Any) -> tuple[Tensor, Any]:
        """Return the mean token loss of each sequence, (B,), or of each token, (B · T,); which
        tokens count; and hidden states, if weights need them."""
        found = self.token_losses(batch).checked(self._reader.who)
        if self.level == "token":
            return found.losses.flatten(), {"counted": found.counted}
        return found.per_sequence(), {"counted": found.counted, "hidden": found.hidden}

    def sample_weights(self, losses: Tensor, batch: Any, features: Mapping[str, Any]) -> Tensor:
        """Return weights, scaled so that their mean with the losses is the loss of the batch."""
        counted = features["counted"]
        weights = self.weights_of(losses, batch, counted, features.get("hidden"))
        return weights.reshape(-1) * self._share(counted, losses.dtype)

    def weights_of(
        self, losses: Tensor, batch: Any, counted: Tensor, hidden: Tensor | None = None
    ) -> Tensor:
        """Return the weights ``V`` as the problem above computes them, one per loss."""
        if self.level == "source":
            return self._weights_of_sources(batch)
        more = self.reference_of(batch)
        if not self.compares_sequences:
            return self.weigher(losses, **more)  # type: ignore[no-any-return]
        return self.weigher(losses, hidden, counted.any(1), **more)  # type: ignore[no-any-return]

    def _weights_of_sources(self, batch: Any) -> Tensor:
        if self.source_key not in batch:
            raise DataError(
                f"WeightedLM {self.name!r} received {shown_batch(batch)}, without "
                f"{self.source_key!r}; give the source of each sequence, or source=... of the part "
                "of a batch that holds them."
            )
        weights: Tensor = self.weigher(batch[self.source_key])
        return weights / batch[PROPOSAL] if PROPOSAL in batch else weights

    def reference_of(self, batch: Any) -> dict[str, Tensor]:
        """Return the losses of a reference as ``{"reference": (B,)}``, if the weights read them.

        Raises:
            DataError: For a batch without them.
        """
        if not self._has("reads_reference"):
            return {}
        if REFERENCE not in batch:
            raise DataError(
                f"WeightedLM {self.name!r} received {shown_batch(batch)}, without {REFERENCE!r}, "
                "which its rater reads; add it to each sample by "
                "metaweight.lm.reference_losses(model, dataset)."
            )
        return {"reference": batch[REFERENCE]}

    def _has(self, flag: str) -> bool:
        return self.level == "sequence" and bool(getattr(self.weigher.module, flag, False))

    def _share(self, counted: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what makes the mean over losses the average asked for, one per loss."""
        counted = counted.to(dtype)
        tokens = counted.sum(1, keepdim=True)
        units = counted if self.level == "token" else tokens
        if self.average == "tokens":
            share = units / tokens.sum().clamp_min(1)
        else:
            share = units / tokens.clamp_min(1) / (tokens > 0).sum().clamp_min(1)
        return share.reshape(-1) * units.numel()

    def _pass(self, part: Mapping[str, Any], pooled: bool) -> tuple[Tensor, Tensor, Any]:
        def run(part: Mapping[str, Any]) -> tuple[Tensor, Tensor, Any]:
            return tuple(self.read(part, pooled=pooled))  # type: ignore[return-value]

        if not torch.is_grad_enabled():
            return run(part)
        return checkpoint(run, part, use_reentrant=False)  # type: ignore[no-any-return]

    def require_loss(self) -> None:
        """Refuse micro-batches that are accumulated, where weights compare a whole batch.

        Raises:
            ConfigurationError: Then.
        """
        super().require_loss()
        if self.compares_sequences and self.config.gradient_accumulation > 1:
            raise ConfigurationError(
                f"WeightedLM {self.name!r} has Config(gradient_accumulation="
                f"{self.config.gradient_accumulation}), of which weights that compare the "
                "sequences of a batch would see one micro-batch at a time; give whole batches, "
                "and the size of a pass as micro_batch_size=...."
            )


class CleanLM(ImplicitProblem):
    """Upper problem: the mean loss of the tokens of a clean or target set, at the trained model.

    ``min_θ (1/n) Σ_i Σ_t l_it(w*(θ))``. Calling it computes the weights of its module.

    Args:
        name: Its name.
        config: Its settings.
        model: Name of the problem whose language model is evaluated.
        shift: As for :class:`WeightedLM`.
        logits: As there.
        **problem: ``module`` (what computes weights), ``optimizer``, ``train_data_loader`` and the
            rest of :class:`~metaweight.problems.Problem`.

    Raises:
        DataError: In a run, for batches without a token that counts.
    """

    def __init__(
        self,
        name: str,
        config: Config | None = None,
        *,
        model: str,
        shift: bool = True,
        logits: Part = None,
        **problem: Any,
    ) -> None:
        super().__init__(name, config, **problem)
        self.note_references(model=model)
        self._model = model
        self._reader = TokenReader(f"CleanLM {name!r}", shift, logits=logits)

    def training_step(self, batch: Any) -> Tensor:
        """Return the mean loss of the tokens of a clean batch."""
        found = self._reader.read(getattr(self, self._model), batch)
        return found.checked(self._reader.who).mean()


def _split(batch: Mapping[str, Any], size: int) -> list[dict[str, Any]]:
    given = {k: v for k, v in batch.items() if isinstance(v, Tensor) and v.ndim}
    tensors = {k: torch.split(v, size) for k, v in given.items()}
    number = max(map(len, tensors.values()))
    return [{k: v[i] for k, v in tensors.items()} for i in range(number)]
