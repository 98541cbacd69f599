"""Trainers of language models with learned weights: an engine's steps, a Trainer's all else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

pytest.importorskip("transformers")

from metaweight.problems import CheckpointError, ConfigurationError, DataError
from metaweight.problems.state.random_streams import RandomState
from support.bert import arguments
from support.causal_models import gpt2, llama
from support.language import LENGTH, texts
from transformers import Trainer, TrainerCallback

from metaweight import Config, Engine, EngineConfig, Reweighting
from metaweight.data import SampleLoader
from metaweight.integrations import TextWeighting
from metaweight.integrations.huggingface import STATE, MetaTrainer
from metaweight.lm import CleanLM, Rater, Sources, TextCollate, WeightedLM

CLEAN = texts(24, seed=1)


def mixed(number: int, **entries: Any) -> list[dict[str, Any]]:
    """Texts that count upwards, and as many in random order, in turn."""
    pairs = zip(texts(number, 2), texts(number, 3, shuffled=True), strict=True)
    named = [
        {**sample, "source": name, **entries}
        for pair in pairs
        for sample, name in zip(pair, ("books", "noise"), strict=True)
    ]
    for i, sample in enumerate(named):
        sample["labels"] = sample["input_ids"] if i % 3 else [-100, *sample["input_ids"][1:]]
    return named[:number]


class Streams(TrainerCallback):
    """Keeps the random streams of the first step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == 0:
            self.first = RandomState(torch.device("cpu"))


def model(kind: Any = gpt2) -> Any:
    net = kind("sdpa")
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    return net


def schedule(optimizer: torch.optim.Optimizer, accumulation: int = 1) -> LambdaLR:
    """A rate that falls; an engine's schedulers count micro-batches."""
    return LambdaLR(optimizer, lambda step: 1 - (step // accumulation) / 40)


def weigher(level: str, reference: Any = None) -> Any:
    torch.manual_seed(5)
    return Sources(["books", "noise"]) if level == "source" else Rater(8, 4, reference=reference)


def on_an_engine(
    samples: list[Any], network: nn.Module, streams: Streams, level: str, **settings: Any
) -> tuple[Any, nn.Module]:
    """Return the model and the weights after 20 steps of the same program on an engine."""
    accumulation, steps = settings.get("accumulation", 1), 20
    weights = weigher(level, settings.get("reference"))
    sources = weights if level == "source" else None
    collate = TextCollate(sources=sources)
    stepping = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 1e-2)
    batches = [collate(samples[i : i + 8]) for i in range(0, len(samples), 8)]
    lm = WeightedLM(
        "lm",
        Config(
            type=settings.get("derivative", Reweighting()),
            unroll_steps=settings.get("every", 1),
            warmup_steps=4 * accumulation,
            gradient_accumulation=accumulation,
            gradient_clipping=0.5,
        ),
        weights="mixture",
        level=level,
        micro_batch_size=settings.get("micro_batch_size"),
        module=network,
        optimizer=stepping,
        scheduler=schedule(stepping, accumulation),
        train_data_loader=batches,
    )
    mixture = CleanLM(
        "mixture",
        model="lm",
        module=weights,
        optimizer=torch.optim.Adam(weights.parameters(), 0.05),
        train_data_loader=SampleLoader(CLEAN, 8, collate_fn=TextCollate(), seed=42),
    )
    engine = Engine(
        [mixture, lm],
        EngineConfig(train_iters=steps * accumulation, precision=settings.get("precision", "fp32")),
        {"u2l": {mixture: [lm]}, "l2u": {lm: [mixture]}},
    )
    streams.first.restore()
    engine.run()
    return network, weights


@pytest.mark.parametrize(
    ("kind", "level", "settings"),
    [
        (gpt2, "source", {}),
        (llama, "source", {"derivative": Reweighting(derivative="one_sided"), "every": 2}),
        (gpt2, "source", {"accumulation": 2, "every": 2}),
        (gpt2, "sequence", {"micro_batch_size": 3}),
        (llama, "sequence", {"precision": "bf16", "micro_batch_size": 4}),
        (gpt2, "source", {"precision": "bf16"}),
        (gpt2, "sequence", {"reference": (2.0, 0.5)}),
    ],
    ids=["gpt2", "one-sided", "accumulated", "sequences", "bf16 in passes", "bf16", "reference"],
)
def test_each_step_is_an_engines(
    tmp_path: Path, kind: Any, level: str, settings: dict[str, Any]
) -> None:
    """To the bit: the same kernels run in the same order, on the same random numbers. Texts of an
    update have as many labels in each micro-batch, as an engine's mean over these assumes."""
    accumulation = settings.get("accumulation", 1)
    samples = mixed(160 * accumulation)
    if accumulation > 1:
        samples = [{**s, "labels": s["input_ids"]} for s in samples]
    if "reference" in settings:
        samples = [{**s, "reference_loss": i % 7 / 2} for i, s in enumerate(samples)]
    start = weigher(level, settings.get("reference"))
    net, streams = model(kind), Streams()
    stepping = torch.optim.AdamW(net.parameters(), 1e-2)
    trainer = MetaTrainer(
        net,
        arguments(
            tmp_path,
            gradient_accumulation_steps=accumulation,
            max_grad_norm=0.5,
            bf16=settings.get("precision") == "bf16",
        ),
        train_dataset=samples,
        optimizers=(stepping, schedule(stepping)),
        callbacks=[streams],
        clean_dataset=CLEAN,
        weighting=TextWeighting(
            level,
            start,
            0.05,
            warmup=0.2,
            every=settings.get("every", 1),
            derivative=settings.get("derivative", Reweighting()),
            micro_batch_size=settings.get("micro_batch_size"),
        ),
    )
    trainer.train()
    twin, weights = on_an_engine(samples, model(kind), streams, level, **settings)
    for name, value in twin.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name
    for found, value in zip(trainer.weight_network.parameters(), weights.parameters(), strict=True):
        assert torch.equal(found, value)
    assert not torch.equal(next(weights.parameters()), next(start.parameters()))


class Equal(nn.Module):
    """A weight of 1 for all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))

    def forward(self, losses: Tensor) -> Tensor:
        return (1 + self.zero * 0).expand_as(losses)


def test_with_weights_of_one_it_is_a_trainer(tmp_path: Path) -> None:
    """Also where micro-batches hold other numbers of tokens, and the last ones are fewer and
    smaller. To rounding: sums are formed in another order, over 10 steps. Of a GPT-2 the Trainer
    counts first tokens too, which nothing predicts."""
    samples = mixed(150)
    for i, sample in enumerate(samples):
        del sample["source"]
        cut = LENGTH - i % 5
        sample["input_ids"], sample["labels"] = sample["input_ids"][:cut], sample["labels"][:cut]
        sample["attention_mask"] = [1] * cut
    settings = {"num_train_epochs": 2, "max_steps": -1, "gradient_accumulation_steps": 4}
    models = model(llama), model(llama)
    before = {name: value.clone() for name, value in models[0].state_dict().items()}
    weighted = {"clean_dataset": CLEAN, "weighting": TextWeighting("token", Equal())}
    plain = {"data_collator": TextCollate()}
    for net, kind, more in zip(models, (Trainer, MetaTrainer), (plain, weighted), strict=True):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        optimizers = (optimizer, schedule(optimizer))
        args = arguments(tmp_path, **settings)
        trainer = kind(net, args, train_dataset=samples, optimizers=optimizers, **more)
        trainer.train()
        assert trainer.state.global_step == 10
    for name, value in models[0].state_dict().items():
        found = models[1].state_dict()[name]
        torch.testing.assert_close(found - before[name], value - before[name], rtol=1e-4, atol=1e-6)


def learning(folder: Path, net: Any = None, **changed: Any) -> MetaTrainer:
    """Return a trainer in an order drawn from its seed."""
    settings = {"train_sampling_strategy": "random", "learning_rate": 1e-2}
    given = {"weighting": TextWeighting(learning_rate=0.3, every=2), "train_dataset": mixed(72)}
    given |= {k: changed.pop(k) for k in ("weighting", "train_dataset") if k in changed}
    given |= {k: changed.pop(k) for k in ("eval_dataset", "data_collator") if k in changed}
    return MetaTrainer(
        model() if net is None else net,
        arguments(folder, **{**settings, **changed}),
        clean_dataset=CLEAN,
        clean_batch_size=10,
        **given,
    )


def tensors(trainer: MetaTrainer) -> list[Tensor]:
    networks = trainer.model, trainer.weight_network
    return [t for network in networks for t in network.state_dict().values()]


@pytest.mark.parametrize("level", ["source", "sequence", "token"])
def test_a_resumed_run_ends_as_one_without_a_break(tmp_path: Path, level: Any) -> None:
    """To the bit: within an epoch of either texts, on the odd step of two."""
    weighting = TextWeighting(level, every=2)
    whole = learning(tmp_path, weighting=weighting, save_strategy="steps", save_steps=13)
    whole.train()
    resumed = learning(tmp_path, weighting=weighting)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-13"))
    assert all(map(torch.equal, tensors(whole), tensors(resumed)))
    (tmp_path / "checkpoint-13" / STATE).unlink()
    with pytest.raises(CheckpointError, match=f"{STATE} could not be opened"):
        learning(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-13"))


def test_weights_of_sources_are_logged_and_told(tmp_path: Path) -> None:
    trainer = learning(tmp_path, logging_strategy="steps", logging_steps=5)
    with pytest.raises(ConfigurationError, match=r"no weights yet; call train\(\) first"):
        _ = trainer.learned
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 4
    found = trainer.learned.sources
    assert logs[-1]["weights/books"] == found["books"] > 1 > found["noise"]
    assert logs[-1]["weights/noise"] == found["noise"]
    rated = trainer.learned.rate(mixed(10))
    assert [row["rating"] for row in rated] == [found[row["source"]] for row in rated]


def test_evaluation_is_the_trainers(tmp_path: Path) -> None:
    """Whether its texts have sources or not, and whether these were known."""
    other = [{**sample, "source": "unseen"} for sample in texts(20, seed=4)]
    for sample in other:
        sample["labels"] = sample["input_ids"]
    trainer = learning(tmp_path, model(llama), max_steps=3)
    trainer.train()
    found = [
        trainer.evaluate(samples)["eval_loss"]
        for samples in (
            [{k: v for k, v in s.items() if k != "source"} for s in other],
            [{**s, "source": "books"} for s in other],
        )
    ]
    ids = torch.tensor([sample["input_ids"] for sample in other])
    with torch.no_grad():
        loss = trainer.model.eval()(ids, labels=ids).loss
    assert found == [pytest.approx(float(loss), rel=1e-5)] * 2


def test_a_collator_of_ones_own(tmp_path: Path) -> None:
    seen = []

    def collate(samples: list[Any]) -> dict[str, Tensor]:
        seen.append({*samples[0]})
        return {k: torch.tensor([s[k] for s in samples]) for k in ("input_ids", "labels")}

    clean = [{**sample, "labels": sample["input_ids"]} for sample in CLEAN]
    trainer = MetaTrainer(
        model(),
        arguments(tmp_path, max_steps=3),
        train_dataset=mixed(72, text="counting"),
        clean_dataset=clean,
        data_collator=collate,
    )
    trainer.train()
    assert seen and all(names == {"input_ids", "labels"} for names in seen)


@pytest.mark.filterwarnings("ignore:.*will be removed in v6.*:FutureWarning")
def test_datasets_and_adapters_of_peft(tmp_path: Path) -> None:
    """Adapters are trained and saved alone, and resumed to the bit."""
    datasets, peft = pytest.importorskip("datasets"), pytest.importorskip("peft")

    def adapted() -> Any:
        net = model()
        torch.manual_seed(2)
        config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
        return peft.get_peft_model(net, config)

    train = datasets.Dataset.from_list(mixed(72, text="counting"))
    given = {"train_dataset": train, "weighting": TextWeighting(learning_rate=0.3)}
    whole = learning(tmp_path, adapted(), save_strategy="steps", save_steps=13, **given)
    base = {n: p.clone() for n, p in whole.model.named_parameters() if not p.requires_grad}
    whole.train()
    assert all(torch.equal(whole.model.get_parameter(n), value) for n, value in base.items())
    folder = tmp_path / "checkpoint-13"
    saved = sorted(p.name for p in folder.iterdir())
    assert "adapter_model.safetensors" in saved and STATE in saved
    assert not {"model.safetensors", "pytorch_model.bin"} & {*saved}
    resumed = learning(tmp_path, adapted(), **given)
    resumed.train(resume_from_checkpoint=str(folder))
    assert all(map(torch.equal, tensors(whole), tensors(resumed)))
    assert whole.learned.sources["books"] > 1


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_activations_change_nothing(tmp_path: Path, reentrant: bool) -> None:
    found = []
    again = {"activation_checkpointing_kwargs": {"use_reentrant": reentrant}}
    for settings in ({}, {"activation_checkpointing": True, **again}):
        trainer = learning(tmp_path, **settings)
        trainer.train()
        found.append(tensors(trainer))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clean_dataset": None}, "was given no clean_dataset; give texts like those"),
        ({"clean_dataset": []}, "was given no clean_dataset; give texts like those"),
        ({"weighting": 0.1}, r"received weighting=0\.1; give a TextWeighting"),
        ({"clean_batch_size": 0}, "clean_batch_size=0.* at least 1"),
        ({"compute_loss_func": print}, r"received compute_loss_func=\.\.\., with which it cannot"),
        ({"label_smoothing_factor": 0.1}, "received label_smoothing_factor, with which"),
        ({"fp16": True}, "received fp16=True.*use bf16=True or neither"),
        (
            {"weighting": TextWeighting("sequence"), "gradient_accumulation_steps": 2},
            "level='sequence', whose weights compare the sequences of a batch, with "
            r"gradient_accumulation_steps=2.*give whole batches, and TextWeighting\(micro_batch",
        ),
        ({"router": True}, "a model with a loss of its router.*output_router_logits=False"),
    ],
)
def test_what_cannot_be_learned_is_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    names = ("clean_dataset", "weighting", "clean_batch_size", "compute_loss_func")
    given: dict[str, Any] = {"clean_dataset": CLEAN}
    given |= {key: changed[key] for key in names if key in changed}
    net = model()
    net.config.output_router_logits = changed.get("router", False)
    settings = {k: v for k, v in changed.items() if k not in (*names, "router")}
    with pytest.raises(ConfigurationError, match=message):
        MetaTrainer(net, arguments(tmp_path, **settings), train_dataset=mixed(24), **given)


def test_texts_without_a_source_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"without 'source'; give each sample its source, or sou"):
        MetaTrainer(model(), arguments(tmp_path), train_dataset=CLEAN, clean_dataset=CLEAN)
    given = TextWeighting(weight_network=Sources(["books", "web"]))
    with pytest.raises(DataError, match=r"the source 'noise', and knows \['books', 'web'\]"):
        learning(tmp_path, weighting=given).train()


def test_a_stream_of_texts_needs_names_of_sources(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return iter(mixed(160))

    with pytest.raises(ConfigurationError, match=r"without a length; name them with TextWeighting"):
        learning(tmp_path, train_dataset=Stream())
    given = TextWeighting(weight_network=Sources(["books", "noise"]))
    trainer = learning(tmp_path, train_dataset=Stream(), weighting=given, max_steps=3)
    trainer.train()
    assert trainer.learned.sources["books"] != 1
