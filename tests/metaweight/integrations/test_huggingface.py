"""The Trainer with learned weights: an engine's steps, a Trainer's everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

pytest.importorskip("transformers")

from metaweight.problems import CheckpointError, ConfigurationError, LossError
from metaweight.problems.state.random_streams import RandomState
from support.bert import arguments, bert, texts
from transformers import Trainer, TrainerCallback

from metaweight import Config, Engine, EngineConfig, Reweighting
from metaweight.data import SampleLoader
from metaweight.integrations import WeightingConfig
from metaweight.integrations.huggingface import STATE, ReweightingTrainer
from metaweight.weighting import MetaWeightNet, WeightedClassifier, WeightLearner

CLEAN = texts(24, seed=1)
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
}


class Streams(TrainerCallback):
    """Keeps the random streams of the first step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == 0:
            self.first = RandomState(torch.device("cpu"))


def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {key: torch.stack([torch.as_tensor(s[key]) for s in samples]) for key in samples[0]}


def weight_network() -> MetaWeightNet:
    torch.manual_seed(5)
    return MetaWeightNet(16)


def schedule(optimizer: torch.optim.Optimizer, accumulation: int = 1) -> LambdaLR:
    """A rate that falls; an engine's schedulers count micro-batches."""
    return LambdaLR(optimizer, lambda step: 1 - (step // accumulation) / 40)


@pytest.mark.parametrize(
    ("optimizer", "accumulation", "derivative", "every", "precision"),
    [
        ("sgd", 1, "central_difference", 1, "fp32"),
        ("adamw", 1, "one_sided", 1, "fp32"),
        ("adamw", 2, "central_difference", 2, "fp32"),
        ("adamw", 1, "one_sided", 1, "bf16"),
    ],
)
def test_each_step_is_an_engines(
    tmp_path: Path, optimizer: str, accumulation: int, derivative: str, every: int, precision: str
) -> None:
    """To the bit: the same kernels run in the same order, on the same random numbers."""
    noisy, steps = texts(160 * accumulation, noise=0.3), 20
    kind = Reweighting(derivative=derivative)
    model, streams = bert(), Streams()
    stepping = OPTIMIZERS[optimizer](model.parameters())
    trainer = ReweightingTrainer(
        model,
        arguments(
            tmp_path,
            gradient_accumulation_steps=accumulation,
            max_grad_norm=0.5,
            bf16=precision == "bf16",
        ),
        train_dataset=noisy,
        optimizers=(stepping, schedule(stepping)),
        callbacks=[streams],
        clean_dataset=CLEAN,
        weighting=WeightingConfig(weight_network(), 0.01, every=every, derivative=kind),
    )
    trainer.train()

    twin, weigher = bert(), weight_network()
    stepping = OPTIMIZERS[optimizer](twin.parameters())
    batches = [collate(noisy[i : i + 8]) for i in range(0, len(noisy), 8)]
    lower = WeightedClassifier(
        "lower",
        Config(
            type=kind,
            unroll_steps=every,
            warmup_steps=4 * accumulation,
            gradient_accumulation=accumulation,
            gradient_clipping=0.5,
        ),
        weights="upper",
        normalise=True,
        module=twin,
        optimizer=stepping,
        scheduler=schedule(stepping, accumulation),
        train_data_loader=batches,
    )
    upper = WeightLearner(
        "upper",
        classifier="lower",
        module=weigher,
        optimizer=torch.optim.Adam(weigher.parameters(), lr=0.01),
        train_data_loader=SampleLoader(CLEAN, 8, collate_fn=collate, seed=42),
    )
    engine = Engine(
        [upper, lower],
        EngineConfig(train_iters=steps * accumulation, precision=precision),
        {"u2l": {upper: [lower]}, "l2u": {lower: [upper]}},
    )
    streams.first.restore()
    engine.run()

    for name, value in twin.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    for found, value in zip(trainer.weight_network.parameters(), weigher.parameters(), strict=True):
        assert torch.equal(found, value)
    assert not torch.equal(next(weigher.parameters()), next(weight_network().parameters()))


class Equal(nn.Module):
    """The same weight for all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, losses: Tensor, labels: Tensor) -> Tensor:
        return self.weight.expand_as(losses)


def mean_of_all(outputs: Any, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
    return F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_with_equal_weights_it_is_a_trainer(tmp_path: Path, smoothing: float) -> None:
    """Also where the last update of an epoch has fewer batches, the last of them smaller, and
    samples without a label. To rounding: sums are formed in another order, over 10 steps."""
    samples = texts(150)
    for sample in samples[::7]:
        sample["labels"] = -100
    settings = {"num_train_epochs": 2, "max_steps": -1, "gradient_accumulation_steps": 4}
    models = bert(dropout=0), bert(dropout=0)
    # Without smoothing this BERT has the mean over a batch for its loss, whatever it is told.
    plain = {} if smoothing else {"compute_loss_func": mean_of_all}
    weighted = {"clean_dataset": CLEAN, "weighting": WeightingConfig(Equal(), warmup=0)}
    kinds = Trainer, ReweightingTrainer
    for model, kind, more in zip(models, kinds, (plain, weighted), strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        args = arguments(tmp_path, label_smoothing_factor=smoothing, **settings)
        trainer = kind(
            model, args, train_dataset=samples, optimizers=(optimizer, schedule(optimizer)), **more
        )
        trainer.train()
        assert trainer.state.global_step == 10
    before = bert(dropout=0).state_dict()
    for (name, found), value in zip(
        models[1].state_dict().items(), models[0].state_dict().values(), strict=True
    ):
        torch.testing.assert_close(found - before[name], value - before[name], rtol=1e-4, atol=1e-6)


def reweighting(folder: Path, **changed: Any) -> ReweightingTrainer:
    """Return a trainer of its own samples, in an order drawn from its seed."""
    settings = {"train_sampling_strategy": "random", "learning_rate": 1e-2}
    weighting = changed.pop("weighting", WeightingConfig(weight_network(), every=2))
    given = {k: changed.pop(k) for k in ("compute_metrics", "eval_dataset") if k in changed}
    return ReweightingTrainer(
        bert(),
        arguments(folder, **{**settings, **changed}),
        train_dataset=texts(72, noise=0.3),
        clean_dataset=CLEAN,
        clean_batch_size=10,
        weighting=weighting,
        **given,
    )


def tensors(trainer: ReweightingTrainer) -> list[Tensor]:
    networks = trainer.model, trainer.weight_network
    return [t for network in networks for t in network.state_dict().values()]


def test_a_resumed_run_ends_as_one_without_a_break(tmp_path: Path) -> None:
    """To the bit: within an epoch of either samples, on the odd step of two."""
    whole = reweighting(tmp_path, save_strategy="steps", save_steps=13)
    whole.train()
    resumed = reweighting(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-13"))
    assert all(map(torch.equal, tensors(whole), tensors(resumed)))
    assert torch.equal(whole.sample_weights(), resumed.sample_weights())
    (tmp_path / "checkpoint-13" / STATE).unlink()
    with pytest.raises(CheckpointError, match=f"{STATE} could not be opened"):
        reweighting(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-13"))


def test_evaluation_is_the_trainers(tmp_path: Path) -> None:
    seen = []

    def metrics(found: Any) -> dict[str, float]:
        seen.append(found.predictions.shape)
        return {"sum": float(found.label_ids.sum())}

    held_out = texts(20, seed=3)
    trainer = reweighting(
        tmp_path,
        compute_metrics=metrics,
        eval_dataset=held_out,
        eval_strategy="steps",
        eval_steps=10,
    )
    trainer.train()
    assert seen == [(20, 2)] * 2
    batch = collate(held_out)
    loss = trainer.model.eval()(**batch).loss
    found = trainer.evaluate()
    assert found["eval_loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert found["eval_sum"] == float(batch["labels"].sum())


def test_weights_of_samples_are_those_of_their_losses(tmp_path: Path) -> None:
    trainer = reweighting(tmp_path)
    with pytest.raises(ConfigurationError, match=r"no weights yet; call train\(\) first"):
        trainer.sample_weights()
    trainer.train()
    trainer.model.train()
    found = trainer.sample_weights()
    assert trainer.model.training
    batch = collate(texts(72, noise=0.3))
    labels = batch.pop("labels")
    logits = trainer.model.eval()(**batch).logits.detach()
    losses = F.cross_entropy(logits, labels, reduction="none")
    weights = trainer.weight_network(losses).detach()
    torch.testing.assert_close(found, weights / weights.mean(), rtol=1e-5, atol=1e-6)
    assert trainer.sample_weights(CLEAN).shape == (24,)


def test_a_loss_of_ones_own(tmp_path: Path) -> None:
    """Of outputs and labels, one number per sample, for a model of numbers."""

    def squares(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return (outputs.logits.squeeze(1) - labels).square()

    given = {"train_dataset": texts(40), "clean_dataset": CLEAN, "compute_loss_func": squares}
    model = bert(num_labels=1)
    trainer = ReweightingTrainer(model, arguments(tmp_path, max_steps=5), **given)
    trainer.train()
    assert 0 < trainer.evaluate(CLEAN)["eval_loss"] < 1
    assert trainer.sample_weights().shape == (40,)
    given["compute_loss_func"] = lambda *a, **k: squares(*a, **k).mean()
    with pytest.raises(LossError, match="give one that returns one number per sample"):
        ReweightingTrainer(model, arguments(tmp_path), **given).train()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clean_dataset": None}, "was given no clean_dataset; give a few samples"),
        ({"weighting": 0.1}, r"received weighting=0\.1; give a WeightingConfig"),
        ({"clean_batch_size": 0}, "clean_batch_size=0.* at least 1"),
        ({"model": {"num_labels": 1}}, "received a model for regression.*compute_loss_func"),
        (
            {"model": {"problem_type": "multi_label_classification"}},
            "received a model for multi_label_classification.*compute_loss_func",
        ),
        ({"label_names": ["labels", "more"]}, "with the labels labels, more; give one with"),
        ({"torch_compile": True}, "received torch_compile=True.*leave it out"),
        ({"auto_find_batch_size": True}, "received auto_find_batch_size=True.*give a batch size"),
        ({"optim": "lomo"}, "received optim='lomo', with which.*use another one"),
        ({"use_liger_kernel": True}, "received use_liger_kernel=True, which gives no logits"),
        ({"fp16": True}, "received fp16=True.*use bf16=True or neither"),
    ],
)
def test_what_cannot_be_learned_is_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"clean_dataset": CLEAN, "weighting": None, "clean_batch_size": None}
    given = {key: changed.get(key, value) for key, value in given.items()}
    settings = {k: v for k, v in changed.items() if k not in (*given, "model")}
    with pytest.raises(ConfigurationError, match=message):
        ReweightingTrainer(
            bert(**changed.get("model", {})),
            arguments(tmp_path, **settings),
            train_dataset=CLEAN,
            **given,
        )


def test_several_devices_are_refused(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    args._n_gpu = 2
    with pytest.raises(ConfigurationError, match=r"several devices.*let the process see one"):
        ReweightingTrainer(bert(), args, train_dataset=CLEAN, clean_dataset=CLEAN)
