"""Models, tokenizers and datasets of other packages, which may be missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.language import WORDS, padded_batch, texts
from support.naive_language import assert_as_naive, program

from metaweight import ConfigurationError, Reweighting
from metaweight.lm import TextCollate, learn_weights

pytest.importorskip("transformers")

import transformers
from support.causal_models import gpt2, llama


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", [gpt2, llama])
def test_a_step_and_a_hypergradient(kind: Any, attention: str, tied: bool) -> None:
    """To 1e-7: rotary embeddings are computed in single precision, and alike in both."""
    model = kind(attention, tied).double()
    batches = [padded_batch(i, size=4) for i in range(3)]
    assert_as_naive(model, batches, level="source", accumulation=3, tolerance=1e-7)
    assert_as_naive(model, batches, level="sequence", tolerance=1e-7)


@pytest.mark.filterwarnings("ignore:.*will be removed in v6.*:FutureWarning")
@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize("kind", [gpt2, llama])
def test_adapters_of_peft(kind: Any, dora: bool) -> None:
    """Of DoRA in forward mode, as here: PEFT detaches a norm, which a difference would move."""
    net = adapted(kind, use_dora=dora)
    for name, parameter in net.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    assert_as_naive(net, [padded_batch(0, size=4)], tolerance=1e-6)


def adapted(kind: Any, **settings: Any) -> Any:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4,
        target_modules=["c_attn"] if kind is gpt2 else "all-linear",
        fan_in_fan_out=kind is gpt2,
        **settings,
    )
    return peft.get_peft_model(kind("eager"), config).double()


@pytest.mark.filterwarnings("ignore:.*will be removed in v6.*:FutureWarning")
@pytest.mark.parametrize("method", [Reweighting(), Reweighting(derivative="one_sided")])
def test_differences_through_dora_are_warned_of(method: Any) -> None:
    with pytest.warns(
        UserWarning, match=r"has 2 layers of DoRA, such as '.*forward_mode'\) is exact"
    ):
        program(adapted(gpt2, use_dora=True), [padded_batch(0, size=4)], method=method)


@pytest.mark.parametrize("kind", [gpt2, llama])
def test_passes_of_two_sequences(kind: Any) -> None:
    settings: Any = {"level": "sequence", "micro_batch_size": 2, "tolerance": 1e-7}
    assert_as_naive(kind("sdpa").double(), [padded_batch(0, size=5)], **settings)


def test_the_loss_of_equal_weights_is_that_of_the_model() -> None:
    model = gpt2().double()
    batch = padded_batch(0)
    lm, _ = program(model, [batch])
    torch.nn.init.zeros_(lm.weigher.module.logits)
    given = {k: v for k, v in batch.items() if k != "source"}
    given["labels"] = batch["labels"].masked_fill(batch["attention_mask"] == 0, -100)
    theirs = model(**given).loss
    torch.testing.assert_close(lm.training_step(batch).to(theirs), theirs)


def tokenizer(**tokens: str) -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({"<unk>": 0, **{str(i): i for i in range(1, WORDS)}})
    model.unk_token = "<unk>"
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", eos_token="<unk>", **tokens
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_tokenizer_pads(side: str) -> None:
    given = tokenizer(pad_token="<unk>", padding_side=side)
    samples = [{**given(text), "labels": given(text)["input_ids"], "text": text} for text in "12"]
    samples[0] = {**given("1 2 3"), "labels": [-100, 2, 3], "text": "1 2 3"}
    batch = TextCollate(given)(samples)
    assert sorted(batch) == sorted({*given("1"), "labels"})
    row = [-100, -100, 2] if side == "left" else [2, -100, -100]
    assert batch["labels"].tolist() == [[-100, 2, 3], row]
    assert batch["attention_mask"][1].tolist() == [int(label > 0) for label in row]


@pytest.mark.parametrize("collator", [False, True], ids=["tokenizer", "collator"])
def test_a_tokenizer_without_padding_is_refused(collator: bool) -> None:
    given = tokenizer()
    if collator:
        given = transformers.DataCollatorWithPadding(given)
    with pytest.raises(ConfigurationError, match=r"without a padding token; set one first, such"):
        TextCollate(given)


def test_datasets_are_weighed_and_rated() -> None:
    datasets = pytest.importorskip("datasets")
    train = datasets.Dataset.from_list(
        texts(12, 0, source="books", text="a") + texts(12, 1, True, source="noise", text="b")
    )
    clean = datasets.Dataset.from_list(texts(8, 2))
    collator = transformers.DataCollatorForLanguageModeling(tokenizer(pad_token="<unk>"), mlm=False)
    found = learn_weights(gpt2(), train, clean, collator, steps=3, batch_size=4)
    assert list(found.sources) == ["books", "noise"]
    best = found.rate(train, keep=0.5)
    assert best["source"] == ["books"] * 12 or best["source"] == ["noise"] * 12
    assert best.column_names == [*train.column_names, "rating"]
    assert best["rating"] == [max(found.sources.values())] * 12
