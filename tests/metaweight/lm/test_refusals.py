"""What cannot be used is refused in one sentence that says what to give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.each import for_each
from support.language import WORDS, TinyLM, padded_batch, texts
from support.naive_language import program
from torch import nn

from metaweight import ConfigurationError, DataError, LossError
from metaweight.lm import (
    CleanLM,
    MixtureLoader,
    Rater,
    Sources,
    TextCollate,
    learn_weights,
    rate,
    reference_losses,
)
from metaweight.lm.weighers import names_of_sources


def learn(train: Any, clean: Any = None, **settings: Any) -> Any:
    return learn_weights(TinyLM(), train, texts(3) if clean is None else clean, **settings)


def ran(batch: Any, **settings: Any) -> Any:
    return program(TinyLM().double(), [batch], **settings)


class Flat(nn.Module):
    """One row of logits per sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 4)

    def forward(self, input_ids: Any) -> Any:
        return self.words(input_ids).mean(1)


MODEL = TinyLM()
BATCH = padded_batch(0)
NAMED = texts(3, source="a") + texts(3, source="b")

ROWS: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "a source by number": (
        DataError,
        r"was given the source 7, and knows \[0, 1, 2\]; name all sources",
        lambda: ran({**BATCH, "source": torch.tensor([0, 1, 7, 0, 0, 1])}),
    ),
    "a source by name": (
        DataError,
        r"was given the source 'c', and knows \['a', 'b'\]; name all",
        lambda: Sources(["a", "b"])(["a", "c"]),
    ),
    "sources that are no numbers": (
        DataError,
        r"was given the source torch.float32",
        lambda: Sources(2)(torch.zeros(2)),
    ),
    "no source in a batch": (
        DataError,
        r"WeightedLM 'lm' received a dict with .*, without 'source'; give the source of each",
        lambda: ran({k: v for k, v in BATCH.items() if k != "source"}),
    ),
    "no source in a sample": (
        DataError,
        r"A sample is a dict with 'input_ids', without 'source'; give each sample its source",
        lambda: learn(texts(3)),
    ),
    "one source": (
        ConfigurationError,
        r"Sources received \['a'\]; give the names of at least two sources",
        lambda: learn(texts(3, source="a")),
    ),
    "labels that are all masked": (
        DataError,
        r"WeightedLM 'lm' received a batch in which no token counts, as all labels are -100 or pa",
        lambda: ran({**BATCH, "labels": torch.full((6, 8), -100)}),
    ),
    "clean labels that are all masked": (
        DataError,
        r"CleanLM 'data_weights' received a batch in which no token counts",
        lambda: learn(NAMED, [{**text, "labels": [-100] * 8} for text in texts(3)], steps=1),
    ),
    "an empty clean set": (
        DataError,
        r"learn_weights received the dataset 'clean' without sequences; give at least one",
        lambda: learn(NAMED, []),
    ),
    "an empty training set": (
        DataError,
        r"the dataset 'train' without sequences",
        lambda: learn([]),
    ),
    "text that was not tokenised": (
        DataError,
        r"A sample is a dict with 'text'; give mappings with 'input_ids', as a tokenizer makes",
        lambda: learn(NAMED, [{"text": "abc"}], steps=1),
    ),
    "samples with different parts": (
        DataError,
        r"Samples of a batch hold \['attention_mask', 'input_ids'\] and \['age', 'attention",
        lambda: TextCollate()([{"input_ids": [1]}, {"input_ids": [1], "age": [2]}]),
    ),
    "parts of samples that are no numbers": (
        DataError,
        r"A sample has 'turns': \[\{'role': 'user'\}\], which are no numbers; leave this col",
        lambda: TextCollate()(texts(2, turns=[{"role": "user"}])),
    ),
    "a part of samples that is nothing": (
        DataError,
        r"A sample has 'age': None, which are no numbers",
        lambda: TextCollate()(texts(2, age=None)),
    ),
    "a batch that is no mapping": (
        DataError,
        r"WeightedLM 'lm' received a tensor of shape \(2, 3\); give mappings with 'input_ids'",
        lambda: ran(torch.zeros(2, 3)),
    ),
    "a label out of range": (
        LossError,
        r"Labels span \d+ to 99 for 12 classes",
        lambda: ran({**BATCH, "labels": torch.full((6, 8), 99)}),
    ),
    "a network of one label per sequence": (
        LossError,
        r"logits of shape \(6, 4\) for labels of shape \(6, 8\); give one of \(B, T, V\).*Classif",
        lambda: program(Flat().double(), [BATCH]),
    ),
    "a network without hidden states": (
        DataError,
        r"in which hidden states \(B, T, D\) were looked for; give one with hidden_states, or say",
        lambda: ran(BATCH, level="sequence", hidden=lambda outputs: outputs.logits[0]),
    ),
    "a rater of another width": (
        LossError,
        r"Rater\(3\) received hidden states of shape \(6, 8\) for 6 losses; make it with hidden_s",
        lambda: ran(BATCH, level="sequence", width=3),
    ),
    "accumulated micro-batches of a rater": (
        ConfigurationError,
        r"WeightedLM 'lm' has Config\(gradient_accumulation=3\).*one micro-batch at a time; give w",
        lambda: ran(BATCH, level="sequence", accumulation=3),
    ),
    "an unknown level": (
        ConfigurationError,
        r"level='word'\) is not one of source, sequence, token",
        lambda: ran(BATCH, level="word"),
    ),
    "a level of learn_weights": (
        ConfigurationError,
        r"learn_weights\(level='token'\) is not one of source, sequence",
        lambda: learn(NAMED, level="token"),
    ),
    "what is no collator": (
        ConfigurationError,
        r"TextCollate received 3; give a tokenizer or a collator",
        lambda: TextCollate(3),
    ),
    "a mixture of other sources": (
        ConfigurationError,
        r"MixtureLoader received Sources of \['a', 'b'\] for datasets named \['a'\]; give Sources",
        lambda: MixtureLoader({"a": texts(3)}, 2, mixture=Sources(["a", "b"])),
    ),
    "shares that are none": (
        ConfigurationError,
        r"MixtureLoader received mixture=\[1.0, -1.0\]",
        lambda: MixtureLoader({"a": texts(3), "b": texts(3)}, 2, mixture=[1.0, -1.0]),
    ),
    "a source without samples": (
        DataError,
        r"was given the source 'a' without samples; leave it out",
        lambda: MixtureLoader({"a": []}, 2, mixture=[1.0]),
    ),
    "draws from all sources": (
        ConfigurationError,
        r"MixtureLoader\(explore=1\) must be a number in \[0, 1\)",
        lambda: MixtureLoader({"a": texts(3)}, 2, mixture=[1.0], explore=1),
    ),
    "ratings without an engine": (
        ConfigurationError,
        r"rate needs a WeightedLM of an engine",
        lambda: rate(CleanLM("top", model="lm"), texts(3)),  # type: ignore[arg-type]
    ),
    "a column that is there": (
        DataError,
        r"The dataset has a column 'rating' already; give column=",
        lambda: rate(ran(BATCH)[0], texts(3, rating=1.0)),
    ),
    "a share to keep": (
        ConfigurationError,
        r"rate\(keep=0\) must be a share in \(0, 1\]",
        lambda: rate(ran(BATCH)[0], texts(3), keep=0),
    ),
    "sources of ratings": (
        ConfigurationError,
        r"Weights were learned at level='sequence'; for those of sources use level='source'",
        lambda: learn(texts(3), level="sequence", steps=1).sources,
    ),
    "a rater without units": (
        ConfigurationError,
        r"Rater\(width=0\) must be an integer of at least 1",
        lambda: Rater(4, 0),
    ),
    "a reference without a deviation": (
        ConfigurationError,
        r"Rater\(reference=\(1.0, 0.0\)\) must be the mean and the deviation, above 0, of the loss",
        lambda: Rater(4, reference=(1.0, 0.0)),
    ),
    "a batch without losses of a reference": (
        DataError,
        r"without 'reference_loss', which its rater reads; add it to each sample by metaweight.lm.",
        lambda: ran(BATCH, level="sequence", reference=(1.0, 1.0)),
    ),
    "losses of a reference of another shape": (
        LossError,
        r"received reference losses of shape \(5,\) for 6 losses; give one for each",
        lambda: ran(
            {**BATCH, "reference_loss": torch.rand(5)}, level="sequence", reference=(1.0, 1.0)
        ),
    ),
    "ratings by a model without hidden states": (
        DataError,
        r"A Rater reads hidden states, and the model returned none; give one that .*by Rater\(0\)",
        lambda: learn_weights(
            nn.Sequential(nn.Embedding(WORDS, 4), nn.Linear(4, WORDS)),
            texts(3),
            texts(3),
            level="sequence",
        ),
    ),
    "some samples with losses of a reference": (
        DataError,
        r"2 of 5 samples of a batch have 'reference_loss'; give it to all or none",
        lambda: TextCollate()(texts(2, reference_loss=1.0) + texts(3)),
    ),
    "no loss of a reference": (
        DataError,
        r"A sample has the 'reference_loss' None; give a finite number, in nats a token, as metaw",
        lambda: TextCollate()(texts(2, reference_loss=None)),
    ),
    "a loss of a reference that is no number": (
        DataError,
        r"A sample has the 'reference_loss' '1.5'; give a finite number",
        lambda: TextCollate()(texts(2, reference_loss="1.5")),
    ),
    "a loss of a reference that is not finite": (
        DataError,
        r"A sample has the 'reference_loss' tensor\(nan\); give a finite number",
        lambda: learn(
            texts(2, reference_loss=1.0) + texts(1, reference_loss=torch.tensor(torch.nan)),
            level="sequence",
            reference=TinyLM(),
        ),
    ),
    "training texts some of which have a loss of a reference": (
        DataError,
        r"A sample is a dict with 'input_ids', without 'reference_loss'; give it to all samples, b",
        lambda: learn(
            texts(2, reference_loss=1.0) + texts(1), level="sequence", reference=TinyLM()
        ),
    ),
    "a reference by its name": (
        ConfigurationError,
        r"learn_weights received reference='gpt2'; give another model, such as a copy of the model",
        lambda: learn(NAMED, level="sequence", reference="gpt2"),
    ),
    "a reference that is trained": (
        ConfigurationError,
        r"received a reference with parameters that are trained, those of the model; give another",
        lambda: learn_weights(MODEL, NAMED, NAMED, level="sequence", reference=MODEL),
    ),
    "a reference of sources": (
        ConfigurationError,
        r"received a reference at level='source', where nothing reads its losses; give level='seq",
        lambda: learn(NAMED, steps=1, reference=TinyLM()),
    ),
    "a rater of losses alone with micro-batches": (
        ConfigurationError,
        r"gradient_accumulation=3\).*one micro-batch at a time",
        lambda: ran(BATCH, level="sequence", width=0, accumulation=3),
    ),
    "a reference over nothing": (
        DataError,
        r"reference_losses was given a dataset without sequences; give at least one",
        lambda: reference_losses(TinyLM(), []),
    ),
    "a second column of losses": (
        DataError,
        r"has a column 'reference_loss' already; give column=",
        lambda: reference_losses(TinyLM(), texts(2, reference_loss=1.0)),
    ),
}


@for_each(ROWS)
def test_is_refused(row: str) -> None:
    error, said, act = ROWS[row]
    with pytest.raises(error, match=said):
        act()


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_source_that_is_missing_is_named(missing: Any) -> None:
    samples = [{"input_ids": [1, 2], "source": name} for name in ("a", missing, "b")]
    with pytest.raises(DataError, match=r"A sample has the source (None|nan); give each sample"):
        names_of_sources(samples, "source")


def test_sources_of_several_types_have_an_order() -> None:
    samples = [{"input_ids": [1, 2], "source": name} for name in ("b", 2, "a", 1)]
    assert names_of_sources(samples, "source") == [1, 2, "a", "b"]
