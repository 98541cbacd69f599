"""TRL's trainer with learned weights: its preparation of texts, an engine's steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("trl")

import datasets
import peft
import transformers
from metaweight.problems import ConfigurationError
from support.causal_models import llama
from support.language import LENGTH, WORDS, texts
from trl import SFTConfig, SFTTrainer

from metaweight import Config, Engine, EngineConfig
from metaweight.data import SampleLoader
from metaweight.integrations import TextWeighting
from metaweight.integrations.trl import MetaSFTTrainer
from metaweight.lm import CleanLM, Rater, Sources, TextCollate, WeightedLM

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


BY_REFERENCE = TextWeighting(level="sequence", weight_network=Rater(8, 4, reference=(3.0, 0.5)))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("CI", "1")


def tokenizer() -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({"<eos>": 0, **{str(i): i for i in range(1, WORDS)}})
    model.unk_token = "<eos>"
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<eos>", pad_token="<eos>"
    )


def words(sample: Any) -> str:
    return " ".join(map(str, sample["input_ids"]))


def mixed(number: int, form: str = "text") -> Any:
    """Texts that count upwards, and as many in random order, in turn."""
    pairs = zip(texts(number, 2), texts(number, 3, shuffled=True), strict=True)
    rows = [
        {**row(sample, form), "source": name}
        for pair in pairs
        for sample, name in zip(pair, ("books", "noise"), strict=True)
    ]
    return datasets.Dataset.from_list(rows[:number])


def row(sample: Any, form: str) -> dict[str, str]:
    if form == "text":
        return {"text": words(sample)}
    ids = sample["input_ids"]
    halves = {"prompt": ids[:4], "completion": ids[4:]}
    return {key: words({"input_ids": half}) + " " for key, half in halves.items()}


def clean(form: str = "text") -> Any:
    return datasets.Dataset.from_list([row(sample, form) for sample in texts(24, 1)])


def trainer(folder: Path, form: str = "text", **changed: Any) -> MetaSFTTrainer:
    settings = {
        "per_device_train_batch_size": 8,
        "max_steps": 20,
        "learning_rate": 1e-2,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "bf16": False,
        "activation_checkpointing": False,
        "max_length": 2 * LENGTH,
    }
    names = ("weighting", "peft_config", "train_dataset", "clean_dataset", "eval_dataset")
    given: dict[str, Any] = {
        "train_dataset": mixed(72, form),
        "clean_dataset": clean(form),
        "weighting": TextWeighting(learning_rate=0.3, every=2),
    }
    given |= {key: changed.pop(key) for key in names if key in changed}
    return MetaSFTTrainer(
        llama("sdpa"),
        SFTConfig(str(folder), **{**settings, **changed}),
        processing_class=tokenizer(),
        clean_batch_size=10,
        **given,
    )


def tensors(found: MetaSFTTrainer) -> list[Tensor]:
    networks = found.model, found.weight_network
    return [t for network in networks for t in network.state_dict().values()]


@pytest.mark.parametrize("form", ["text", "prompt and completion"])
def test_each_step_is_an_engines(tmp_path: Path, form: str) -> None:
    """To the bit: the same kernels run in the same order on the same batches."""
    done = trainer(
        tmp_path,
        form,
        train_dataset=mixed(160, form),
        train_sampling_strategy="sequential",
        lr_scheduler_type="constant",
        optim="adamw_torch",
        max_grad_norm=0.5,
    )
    done.train()
    if form != "text":
        assert done.train_dataset[0]["labels"][:4] == [-100] * 4
    samples = done.train_dataset.to_list()
    sources, net = Sources(["books", "noise"]), llama("sdpa")
    pads = done._collator
    collate = TextCollate(pads, sources=sources)
    lm = WeightedLM(
        "lm",
        Config(unroll_steps=2, gradient_clipping=0.5),
        weights="mixture",
        module=net,
        optimizer=torch.optim.AdamW(net.parameters(), 1e-2, weight_decay=0.0),
        train_data_loader=[collate(samples[i : i + 8]) for i in range(0, 160, 8)],
    )
    mixture = CleanLM(
        "mixture",
        model="lm",
        module=sources,
        optimizer=torch.optim.Adam(sources.parameters(), 0.3),
        train_data_loader=SampleLoader(
            done.clean_dataset.to_list(), 10, collate_fn=TextCollate(pads), seed=42
        ),
    )
    Engine.bilevel(mixture, lm, config=EngineConfig(train_iters=20, progress=False)).run()
    for name, value in net.state_dict().items():
        assert torch.equal(done.model.state_dict()[name], value), name
    assert torch.equal(done.weight_network.logits, sources.logits)
    assert done.learned.sources["books"] > 1.1


def test_adapters_are_saved_alone_and_resumed_to_the_bit(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "peft_config": peft.LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.1),
        "logging_strategy": "steps",
        "logging_steps": 4,
    }
    whole = trainer(tmp_path, save_strategy="steps", save_steps=13, **settings)
    whole.train()
    folder = tmp_path / "checkpoint-13"
    saved = {p.name for p in folder.iterdir()}
    assert "adapter_model.safetensors" in saved and "model.safetensors" not in saved
    resumed = trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(folder))
    assert all(map(torch.equal, tensors(whole), tensors(resumed)))
    logs = [entry for entry in whole.state.log_history if "loss" in entry]
    assert logs[-1]["weights/books"] == whole.learned.sources["books"]


def test_texts_of_one_source_are_packed_together(tmp_path: Path) -> None:
    """No row holds words of two sources, and none is lost but the rest of each."""
    train = datasets.Dataset.from_list(
        [{"text": "1 2 3 4 5", "source": "a"}, {"text": "6 7 8 9", "source": "b"}] * 20
    )
    done = trainer(
        tmp_path,
        packing=True,
        packing_strategy="wrapped",
        max_length=12,
        train_dataset=train,
        shuffle_dataset=True,
        max_steps=3,
    )
    known = {"a": {0, 1, 2, 3, 4, 5}, "b": {0, 6, 7, 8, 9}}
    rows = done.train_dataset.to_list()
    assert sum(len(r["input_ids"]) for r in rows) == 20 * (6 + 5)
    assert all(set(r["input_ids"]) <= known[r["source"]] for r in rows)
    assert max(len(r["input_ids"]) for r in rows) == 12
    done.train()
    assert sorted(done.learned.sources) == ["a", "b"]


def test_evaluation_is_the_trainers(tmp_path: Path) -> None:
    done = trainer(tmp_path, max_steps=3, eval_dataset=mixed(20))
    done.train()
    found = done.evaluate()
    plain = SFTTrainer(
        done.model,
        SFTConfig(str(tmp_path / "b"), use_cpu=True, report_to="none", bf16=False, max_length=16),
        train_dataset=clean(),
        eval_dataset=mixed(20).remove_columns("source"),
        processing_class=tokenizer(),
    )
    expected = plain.evaluate()
    for key in ("eval_loss", "eval_mean_token_accuracy"):
        assert found[key] == pytest.approx(expected[key], rel=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"packing": True}, "a packing_strategy that needs it.*use packing_strategy='wrapped'"),
        ({"padding_free": True, "max_length": None}, "received padding_free=True.*packing=False"),
        ({"loss_type": "dft"}, "received loss_type='dft'.*use 'nll'"),
        ({"activation_offloading": True}, "received activation_offloading=True.*leave it out"),
        ({"clean_dataset": None}, "was given no clean_dataset"),
        (
            {"packing": True, "packing_strategy": "wrapped", "weighting": BY_REFERENCE},
            "packing=True, whose rows have no loss of a reference.*; use packing=False",
        ),
    ],
)
def test_what_cannot_be_learned_is_refused(
    tmp_path: Path, changed: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It asks for a GPU before it can be refused.
    offloading = "trl.trainer.sft_trainer.get_act_offloading_ctx_manager"
    monkeypatch.setattr(offloading, lambda model: None)
    with pytest.raises(ConfigurationError, match=message):
        trainer(tmp_path, **changed)


def test_streams_are_not_packed(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot keep sources apart; give a datasets\.Da"):
        trainer(
            tmp_path,
            packing=True,
            packing_strategy="wrapped",
            train_dataset=mixed(24).to_iterable_dataset(),
        )
