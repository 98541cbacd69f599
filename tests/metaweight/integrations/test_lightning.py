"""The module of Lightning with learned weights: an engine's steps, Lightning's everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

pytest.importorskip("lightning")

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from metaweight.problems.state.random_streams import RandomState

from metaweight import (
    CheckpointError,
    Config,
    ConfigurationError,
    Engine,
    EngineConfig,
    Reweighting,
)
from metaweight.data import TensorLoader
from metaweight.integrations import WeightingConfig
from metaweight.integrations.lightning import STATE, ReweightedModule
from metaweight.weighting import (
    ClassAwareWeightNet,
    WeightedClassifier,
    WeightLearner,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.`.*"),
]


def points(number: int, seed: int, noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return points of four dimensions and on which side of a plane they are, some flipped."""
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(number, 4, generator=draw)
    flipped = torch.rand(number, generator=draw) < noise
    return inputs, ((inputs[:, 0] > 0) ^ flipped).long()


def noisy_batches() -> TensorLoader:
    return TensorLoader(points(80, 0, 0.3), 8, shuffle=False)


def clean_batches() -> TensorLoader:
    return TensorLoader(points(24, 1), 10, seed=3)


def cast(loader: TensorLoader, wide: bool) -> TensorLoader:
    if wide:
        loader.transform = Tensor.double
    return loader


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2)
    return nn.Sequential(*layers)


def weight_network() -> nn.Module:
    torch.manual_seed(5)
    return ClassAwareWeightNet(torch.arange(2), 16)


def descent(kind: str, module: nn.Module) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    return torch.optim.AdamW(module.parameters(), lr=0.01)


def falling(optimizer: torch.optim.Optimizer, accumulation: int = 1) -> LambdaLR:
    """A rate that falls; an engine's schedulers count micro-batches."""
    return LambdaLR(optimizer, lambda step: 1 - (step // accumulation) / 40)


class Classifier(ReweightedModule):
    def __init__(self, weighting: WeightingConfig, kind: str = "sgd", wide: bool = False) -> None:
        super().__init__(cast(clean_batches(), wide), weighting)
        self.network, self.kind = network(), kind
        if wide:
            self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def configure_optimizers(self) -> Any:
        optimizer = descent(self.kind, self)
        scheduler = {"scheduler": falling(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


class Manual(Classifier):
    """The same, stepped by hand."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.weighted_loss(batch))
        self.clip_gradients(optimizer, 0.5, "norm")
        optimizer.step()
        self.lr_schedulers().step()


class Streams(Callback):
    """Keeps the random streams of the first step."""

    first: RandomState | None = None

    def on_train_batch_start(self, *given: Any) -> None:
        if self.first is None:
            self.first = RandomState(torch.device("cpu"))


def trainer(folder: Path, **changed: Any) -> Trainer:
    settings = {
        "max_steps": 20,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
    }
    return Trainer(default_root_dir=folder, **{**settings, **changed})


@pytest.mark.parametrize(
    ("kind", "accumulation", "derivative", "every", "precision", "by"),
    [
        ("sgd", 1, "central_difference", 1, "32-true", Classifier),
        ("adamw", 1, "one_sided", 1, "32-true", Classifier),
        ("adamw", 2, "central_difference", 2, "32-true", Classifier),
        ("sgd", 1, "forward_mode", 1, "double", Classifier),
        ("sgd", 1, "one_sided", 1, "bf16-mixed", Classifier),
        ("sgd", 1, "one_sided", 1, "32-true", Manual),
    ],
)
def test_each_step_is_an_engines(
    tmp_path: Path,
    kind: str,
    accumulation: int,
    derivative: str,
    every: int,
    precision: str,
    by: type[Classifier],
) -> None:
    """To the bit: the same kernels run in the same order, on the same random numbers."""
    method = Reweighting(derivative=derivative)
    wide = precision == "double"
    weighting = WeightingConfig(weight_network(), 0.01, every=every, derivative=method)
    module, streams = by(weighting, kind, wide), Streams()
    run = trainer(
        tmp_path,
        callbacks=[streams],
        accumulate_grad_batches=accumulation,
        gradient_clip_val=None if by is Manual else 0.5,
        precision="32-true" if wide else precision,
    )
    run.fit(module, cast(noisy_batches(), wide))
    # The weight network's steps are not counted, nor does the Trainer know its optimizer.
    assert run.global_step == 20 and len(run.optimizers) == 1

    twin, weigher = network(), weight_network()
    if wide:
        twin, weigher = twin.double(), weigher.double()
    optimizer = descent(kind, twin)
    lower = WeightedClassifier(
        "lower",
        Config(
            type=method,
            unroll_steps=every,
            warmup_steps=4 * accumulation,
            gradient_accumulation=accumulation,
            gradient_clipping=0.5,
        ),
        weights="upper",
        normalise=True,
        module=twin,
        optimizer=optimizer,
        scheduler=falling(optimizer, accumulation),
        train_data_loader=cast(noisy_batches(), wide),
    )
    upper = WeightLearner(
        "upper",
        classifier="lower",
        module=weigher,
        optimizer=torch.optim.Adam(weigher.parameters(), lr=0.01),
        train_data_loader=cast(clean_batches(), wide),
    )
    engine = Engine(
        [upper, lower],
        EngineConfig(
            train_iters=20 * accumulation, precision="bf16" if "bf16" in precision else "fp32"
        ),
        {"u2l": {upper: [lower]}, "l2u": {lower: [upper]}},
    )
    streams.first.restore()
    engine.run()

    pairs = (module.network, twin), (module.weight_network, weigher)
    for found, expected in pairs:
        for name, value in expected.state_dict().items():
            assert torch.equal(found.state_dict()[name], value), name
    before = weight_network().state_dict()["layers.0.weight"]
    assert not torch.equal(weigher.state_dict()["layers.0.weight"].float(), before)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")
@pytest.mark.parametrize("steps", [7, 13])
def test_a_resumed_run_ends_as_one_without_a_break(tmp_path: Path, steps: int) -> None:
    """To the bit, also within epochs. Without dropout: Lightning keeps no random streams."""
    runs, modules = [], []
    for resumed in (None, tmp_path / f"step={steps}.ckpt"):
        keep = ModelCheckpoint(
            tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=steps
        )
        run = trainer(
            tmp_path, max_epochs=3, max_steps=-1, callbacks=[keep], enable_checkpointing=True
        )
        module = Classifier(WeightingConfig(weight_network(), every=2))
        module.network[3].p = 0
        run.fit(module, noisy_batches(), ckpt_path=resumed)
        runs, modules = [*runs, run], [*modules, module]
    (_, run), (whole, resumed) = runs, modules
    assert run.global_step == 30
    for one, other in ((whole, resumed), (whole.weight_network, resumed.weight_network)):
        assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    # No part of it is among the module's own.
    assert not [name for name in whole.state_dict() if not name.startswith("network.")]


def test_the_weight_network_is_loaded_without_training(tmp_path: Path) -> None:
    module, run = Classifier(WeightingConfig()), trainer(tmp_path)
    run.fit(module, noisy_batches())
    run.save_checkpoint(tmp_path / "saved.ckpt")
    loaded = Classifier.load_from_checkpoint(tmp_path / "saved.ckpt", weighting=WeightingConfig())
    for found, value in zip(
        loaded.weight_network.parameters(), module.weight_network.parameters(), strict=True
    ):
        assert torch.equal(found, value)
    other = WeightingConfig(weight_network())
    with pytest.raises(CheckpointError, match="another weight network than ClassAwareWeightNet"):
        Classifier.load_from_checkpoint(tmp_path / "saved.ckpt", weighting=other)


def test_what_was_loaded_is_saved_again(tmp_path: Path) -> None:
    module, run = Classifier(WeightingConfig()), trainer(tmp_path)
    run.fit(module, noisy_batches())
    run.save_checkpoint(tmp_path / "saved.ckpt")
    loaded = Classifier.load_from_checkpoint(tmp_path / "saved.ckpt", weighting=WeightingConfig())
    again: dict[str, Any] = {}
    loaded.on_save_checkpoint(again)
    other = Classifier(WeightingConfig())
    other.on_load_checkpoint(again)
    for found, value in zip(
        other.weight_network.parameters(), module.weight_network.parameters(), strict=True
    ):
        assert torch.equal(found, value)
    assert again[STATE]["schedule"] == module._levels.state_dict()["schedule"]


def test_losses_are_logged_and_validated_as_usual(tmp_path: Path) -> None:
    class Validated(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    module, run = Validated(WeightingConfig()), trainer(tmp_path, max_steps=10)
    run.fit(module, noisy_batches(), TensorLoader(points(40, 2), 40))
    assert 0 < run.logged_metrics["train_loss"] < 2
    assert 0.4 < run.logged_metrics["accuracy"] <= 1


def test_weights_of_samples_are_those_of_their_losses(tmp_path: Path) -> None:
    module = Classifier(WeightingConfig())
    batch = points(30, 4)
    with pytest.raises(ConfigurationError, match=r"no weights yet; call Trainer\.fit first"):
        module.sample_weights(batch)
    trainer(tmp_path).fit(module, noisy_batches())
    module.eval()
    losses = F.cross_entropy(module(batch[0]).detach(), batch[1], reduction="none")
    weights = module.weight_network(losses).detach()
    torch.testing.assert_close(module.sample_weights(batch), weights / weights.mean())


def test_another_fit_goes_on_with_the_weight_network(tmp_path: Path) -> None:
    module = Classifier(WeightingConfig(warmup=0))
    trainer(tmp_path, max_steps=2).fit(module, noisy_batches())
    once = nn.utils.parameters_to_vector(module.weight_network.parameters()).detach()
    trainer(tmp_path, max_steps=1).fit(module, noisy_batches())
    twice = nn.utils.parameters_to_vector(module.weight_network.parameters()).detach()
    # A first step of Adam moves each by its learning rate at most.
    assert 0 < (twice - once).abs().max() < 0.00101


class Two(Manual):
    def configure_optimizers(self) -> Any:
        return [descent("sgd", self), descent("sgd", self)]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.weighted_loss(batch)


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        (Classifier, {"precision": "bf16-true"}, "with bf16-true.*use 32-true or bf16-mixed"),
        (Two, {}, "with 2 optimizers.*return one of them"),
        (
            Classifier,
            {"max_steps": -1, "max_epochs": -1},
            "a run without an end and warmup=0.2.*max",
        ),
    ],
)
def test_what_cannot_be_learned_is_refused(
    tmp_path: Path, kind: type[Classifier], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        trainer(tmp_path, **changed).fit(kind(WeightingConfig()), noisy_batches())


def test_settings_of_another_kind_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"received weighting=3; give a WeightingConfig"):
        ReweightedModule(clean_batches(), 3)
    with pytest.raises(ConfigurationError, match="received clean=3; give a loader of clean"):
        ReweightedModule(3)
