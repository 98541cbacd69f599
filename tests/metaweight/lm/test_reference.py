"""Losses of a reference: their values, how they get into batches, and what raters do with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.language import WORDS, TinyLM, padded_batch, texts
from support.small import problem
from torch import Tensor, nn

from metaweight import ConfigurationError, DataError, Engine
from metaweight.lm import (
    CleanLM,
    Rater,
    TextCollate,
    WeightedLM,
    learn_weights,
    rate,
    reference_losses,
)


def test_they_are_the_mean_loss_of_each_sequence() -> None:
    model = TinyLM(dropout=0.5).double()
    dataset: list[Any] = [
        *texts(5),
        {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]},
        {"input_ids": [1, 2], "labels": [-100, -100]},
    ]
    found = reference_losses(model, dataset, batch_size=3)
    assert model.training and "reference_loss" not in dataset[0]
    model.eval()
    for sample in found[:6]:
        ids = torch.tensor(sample["input_ids"])
        logits = model(ids[None]).logits[0, :-1]
        losses = F.cross_entropy(logits, ids[1:], reduction="none")
        kept = losses[1:] if "labels" in sample else losses
        # The same sums in another order: rounding of float64.
        assert sample["reference_loss"] == pytest.approx(kept.mean().item(), abs=1e-12)
    assert found[6]["reference_loss"] == 0


def test_of_a_base_they_are_the_difference() -> None:
    model, base = TinyLM().double(), TinyLM(dropout=0.5).double()
    found, of_model, of_base = (
        [sample["reference_loss"] for sample in reference_losses(one, texts(5), base=other)]
        for one, other in ((model, base), (model, None), (base, None))
    )
    assert found == pytest.approx([a - b for a, b in zip(of_model, of_base, strict=True)])
    assert base.training and max(map(abs, found)) > 0


def test_ratings_of_new_texts_read_the_difference_too() -> None:
    torch.manual_seed(0)
    reference, base = TinyLM(), TinyLM()
    found = learn_weights(
        TinyLM(), texts(9), texts(9), level="sequence", steps=2, reference=reference, base=base
    )
    rater = found.learner.module
    assert isinstance(rater, Rater) and rater.hidden_size == 0
    differences = [s["reference_loss"] for s in reference_losses(reference, texts(9), base=base)]
    assert rater.reference_scale is not None
    assert float(rater.reference_scale[0]) == pytest.approx(sum(differences) / 9, abs=1e-6)
    fresh = texts(4, 7)
    expected = [s["reference_loss"] for s in reference_losses(reference, fresh, base=base)]
    assert [s["reference_loss"] for s in found.rate(fresh)] == pytest.approx(expected)


BASES: dict[str, tuple[Any, str]] = {
    "no reference": (
        lambda m, r: {"base": r},
        r"learn_weights received a base without a reference, whose losses are compared with its",
    ),
    "the model": (
        lambda m, r: {"reference": r, "base": m},
        r"a base with parameters that are trained, those of the model; give a copy of it, by copy.",
    ),
    "the reference": (
        lambda m, r: {"reference": r, "base": r},
        r"learn_weights received the same model as base; give another model, of all texts, such as",
    ),
    "a number": (
        lambda m, r: {"reference": r, "base": 2.0},
        r"learn_weights received base=2.0; give another model, of all texts, such as a copy of",
    ),
}


@pytest.mark.parametrize("name", BASES)
def test_another_base_is_refused(name: str) -> None:
    given, said = BASES[name]
    model, reference = TinyLM(), TinyLM()
    with pytest.raises(ConfigurationError, match=said):
        learn_weights(
            model, texts(3), texts(3), level="sequence", steps=1, **given(model, reference)
        )


def test_a_base_of_the_same_storage_is_refused() -> None:
    """Its parameters are other objects, and are trained all the same."""
    model, base = TinyLM(), TinyLM()
    base.load_state_dict(model.state_dict(), assign=True)
    with pytest.raises(ConfigurationError, match="a base with parameters that are trained"):
        learn_weights(
            model, texts(3), texts(3), level="sequence", steps=1, reference=TinyLM(), base=base
        )


def test_a_base_with_the_losses_of_the_reference_is_refused() -> None:
    """As of adapters in place."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = reference

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
            return self.inner(input_ids, attention_mask)

    reference = TinyLM()
    with pytest.raises(ConfigurationError, match="a base whose losses are those of the reference"):
        reference_losses(reference, texts(3), base=Wrapped())


def test_a_column_of_which_the_base_is_unknown_is_refused() -> None:
    reference = TinyLM()
    train = reference_losses(reference, texts(3))
    with pytest.raises(ConfigurationError, match="of which it is not known whether they are compa"):
        learn_weights(
            TinyLM(), train, texts(3), level="sequence", reference=reference, base=TinyLM()
        )


def test_texts_without_a_token_that_counts_do_not_change_the_scale() -> None:
    empty = [{"input_ids": [1, 2], "labels": [-100, -100]}] * 4
    reference, train = TinyLM(), [{**s, "labels": s["input_ids"]} for s in texts(6)]
    scales = []
    for dataset in (train, train + empty):
        found = learn_weights(
            TinyLM(), dataset, texts(3), level="sequence", steps=1, reference=reference
        )
        scales.append(found.learner.module.reference_scale.tolist())
    assert scales[0] == pytest.approx(scales[1])


def test_a_model_is_not_compared_with_itself() -> None:
    model = TinyLM()
    with pytest.raises(ConfigurationError, match="reference_losses received the same model as"):
        reference_losses(model, texts(2), base=model)


def test_sources_and_other_columns_are_kept() -> None:
    dataset = [{**s, "origin": i, "title": "a"} for i, s in enumerate(texts(4))]
    found = reference_losses(TinyLM(), dataset, source="origin", column="clean")
    assert [s["origin"] for s in found] == [0, 1, 2, 3] and {"clean", "title"} < {*found[0]}


class Formatted(list[Any]):
    """Like a ``datasets.Dataset`` whose format hides a column."""

    column_names = ("input_ids", "reference_loss")


def test_a_column_that_a_format_hides_is_not_written_again() -> None:
    with pytest.raises(DataError, match="has a column 'reference_loss' already; give column="):
        reference_losses(TinyLM(), Formatted(texts(2)))


def test_a_batch_has_them_as_one_tensor() -> None:
    samples = reference_losses(TinyLM(), texts(3))
    batch = TextCollate()(samples)
    expected = torch.tensor([sample["reference_loss"] for sample in samples])
    torch.testing.assert_close(batch["reference_loss"], expected)
    assert "reference_loss" not in TextCollate()(texts(3))


def test_a_rater_is_saved_with_its_scale() -> None:
    saved = Rater(4, reference=(2.0, 0.5))
    loaded = Rater(4, reference=(0.0, 1.0))
    loaded.load_state_dict(saved.state_dict())
    assert loaded.reference_scale is not None
    assert loaded.reference_scale.tolist() == [2.0, 0.5]
    without = {f"layers.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")}
    assert {*Rater(4).state_dict()} == without


def test_learned_with_a_reference_noise_of_the_same_loss_is_rated_lower() -> None:
    torch.manual_seed(0)
    model, reference = TinyLM(16), TinyLM(16)
    optimizer = torch.optim.AdamW(reference.parameters(), 0.03)
    clean = texts(40, 3)
    for _ in range(60):
        ids = torch.tensor([sample["input_ids"] for sample in clean])
        loss = F.cross_entropy(reference(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    before = [p.clone() for p in reference.parameters()]
    train = texts(60, 0, noise=0) + texts(60, 1, shuffled=True, noise=1)
    found = learn_weights(
        model,
        train,
        clean,
        level="sequence",
        steps=40,
        batch_size=24,
        reference=reference,
        optimizer=torch.optim.AdamW(model.parameters(), 0.03),
        weight_learning_rate=0.01,
    )
    assert all(map(torch.equal, before, reference.parameters()))
    fresh = texts(20, 5, noise=0) + texts(20, 6, shuffled=True, noise=1)
    for dataset in (train, fresh):
        best = found.rate(dataset, keep=0.5)
        assert sum(sample["noise"] for sample in best) <= 1
        assert "reference_loss" in best[0] and "reference_loss" not in dataset[0]


def test_a_model_without_hidden_states_is_rated_by_losses_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(WORDS, 4), nn.Linear(4, WORDS))
    reference = TinyLM()
    found = learn_weights(
        model, texts(9), texts(9), level="sequence", steps=2, batch_size=4, reference=reference
    )
    rater = found.learner.module
    assert isinstance(rater, Rater) and rater.hidden_size == 0 and rater.reads_reference


def test_losses_of_a_reference_that_do_not_differ_leave_ratings_to_the_others() -> None:
    """A reference of one loss says nothing; scaled by a deviation of 0, one text had all weight."""
    torch.manual_seed(0)
    found = learn_weights(
        TinyLM(16),
        texts(24, 0, reference_loss=2.0) + texts(24, 1, shuffled=True, reference_loss=2.0),
        texts(24, 3),
        level="sequence",
        steps=20,
        batch_size=12,
        reference=TinyLM(),
    )
    fresh = texts(24, 5, reference_loss=2.0)
    ratings = torch.tensor([sample["rating"] for sample in found.rate(fresh)])
    # Twenty steps of Adam at 1e-3 move a score by some tenths.
    assert ratings.min() > 0.5 and ratings.max() < 2


def test_a_reference_is_called_with_as_many_texts_as_raters_rate() -> None:
    class Sized(TinyLM):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
            sizes.append(len(input_ids))
            return super().forward(input_ids, attention_mask)

    sizes: list[int] = []
    reference = Sized()
    train = texts(6)
    found = learn_weights(TinyLM(), train, train, level="sequence", steps=1, reference=reference)
    sizes.clear()
    found.rate(train, batch_size=2)
    assert sizes == [2, 2, 2]


class ByReference(nn.Module):
    """Weighs each sequence by itself: ``1 + θ (l_i - r_i)``."""

    reads_reference = True

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, losses: Tensor, reference: Tensor) -> Tensor:
        return 1 + self.slope * (losses - reference)


def test_weights_of_a_reference_need_not_compare_sequences() -> None:
    batches = [{**padded_batch(0), "reference_loss": torch.linspace(1, 3, 6)}]
    lm = problem(
        WeightedLM, "lm", module=TinyLM().double(), data=batches, weights="w", level="sequence"
    )
    w = problem(CleanLM, "w", module=ByReference(), data=batches, model="lm")
    Engine.bilevel(w, lm, train_iters=2, progress=False).run()
    dataset = reference_losses(TinyLM().double(), texts(4))
    for sample in rate(lm, dataset):
        own = reference_losses(lm.module, [{"input_ids": sample["input_ids"]}])[0]
        expected = 1 + lm.weigher.module.slope * (own["reference_loss"] - sample["reference_loss"])
        # Losses of a reference are of single precision in a batch.
        assert sample["rating"] == pytest.approx(expected.item(), abs=1e-6)
