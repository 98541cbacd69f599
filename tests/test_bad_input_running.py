"""What users get wrong when they feed and resume a program: each error names its place, and every
parameter, buffer, optimizer state, gradient and counter is what it was before the step."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bad_input import (
    GOOD,
    Classifier,
    Row,
    answering,
    assert_refused,
    bilevel,
    classifier,
    fed,
    numbers,
    problem,
)
from support.resuming import difference, everything
from support.small import Inner, single
from torch import nn
from torch.utils.data import IterableDataset

from metaweight import Config, ConfigurationError, DataError, Engine, LossError, NonFiniteError

INPUTS, LABELS = GOOD
# Notes on errors came with Python 3.11.
NOTES = sys.version_info >= (3, 11)
STEP = "step 3 of problem 'net'" if NOTES else ""


def on(words: str) -> str:
    """Where an error of torch or Python is said to have happened."""
    return f"{STEP}, on {words}" if NOTES else ""


def user(error: type[Exception], words: str, batch: Any) -> Row:
    """What torch or Python say about a batch, with where it happened."""
    return Row(error, words, fed([batch]), classifier, draws=True)


class Failing:
    def __iter__(self) -> Any:
        yield from ()
        raise OSError("disk")


class Dry(IterableDataset[Any]):
    """A stream of samples that ends after so many, however often it is asked."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __iter__(self) -> Any:
        while self.left:
            self.left -= 1
            yield GOOD


def dry(number: int) -> Engine:
    """A classifier that has taken all batches of a stream."""
    engine = classifier()
    engine.net.set_train_data_loader(Dry(number))
    engine.run()
    return engine


def exchanged() -> Engine:
    """A classifier whose module was given other parameters than its optimizer has."""
    engine = classifier()
    for layer in (engine.net.module[i] for i in (0, 1, 3)):
        for name in ("weight", "bias"):
            setattr(layer, name, nn.Parameter(getattr(layer, name).detach().clone()))
    return engine


class Steps(Classifier):
    """Does the engine's work itself."""

    def training_step(self, batch: Any) -> Any:
        loss = super().training_step(batch)
        if self.count > 2:
            loss.backward(retain_graph=True)
        return loss


class Fails(Classifier):
    """Fails after its network has been evaluated in a later step, or when a callback is called."""

    def training_step(self, batch: Any) -> Any:
        loss = super().training_step(batch)
        if self.count > 2:
            raise KeyError("lookup")
        return loss


class FailsBeforeTheUpdate(Classifier):
    def grad_callback(self) -> None:
        if self.count > 2:
            raise KeyError("lookup")


def without(manager: Callable[[], Any]) -> Callable[[Engine], None]:
    def run(engine: Engine) -> None:
        with manager():
            engine.run()

    return run


def run(engine: Engine) -> None:
    engine.run()


def answer(error: type[Exception], words: str, change: Callable[[Any], Any]) -> Row:
    return Row(error, words, answering(change), classifier, draws=True)


FEEDING = {
    "labels: too large": user(
        IndexError, f"Target 5 … {on('[0] float32 (4, 3); [1] int64 (4,)')}", (INPUTS, LABELS + 5)
    ),
    "labels: negative": user(
        IndexError, f"Target -7 … {on('[0] float32 (4, 3); [1] int64 (4,)')}", (INPUTS, LABELS - 7)
    ),
    "labels: floats": user(
        RuntimeError,
        f"Float … {on('[0] float32 (4, 3); [1] float32 (4,)')}",
        (INPUTS, LABELS.float()),
    ),
    "labels: of another number": user(
        ValueError, f"(2) … {on('[0] float32 (4, 3); [1] int64 (2,)')}", (INPUTS, LABELS[:2])
    ),
    "inputs: of other channels": user(
        RuntimeError, f"4x5 … {on('[0] float32 (4, 5)')}", (torch.ones(4, 5), LABELS)
    ),
    "inputs: of another type": user(
        RuntimeError, f"dtype … {on('[0] float64 (4, 3)')}", (INPUTS.double(), LABELS)
    ),
    "batch: number": user(TypeError, f"int … {on('type int without tensors')}", 7),
    "batch: text": user(TypeError, f"str … {on('type str without tensors')}", "xy"),
    "batch: None": user(TypeError, f"NoneType … {on('type NoneType without tensors')}", None),
    "batch: no pair": user(ValueError, f"too many values … {on('batch float32 (4, 3)')}", INPUTS),
    "batch: empty": user(
        DataError,
        "'net' … without samples ([0] float32 (0, 3); [1] int64 (0,)) in step 3 … drop_last=True",
        (INPUTS[:0], LABELS[:0]),
    ),
    "loader: empty": Row(
        DataError, "Loader 0 of problem 'net' gave no batch … give it data", fed([]), classifier
    ),
    "loader: read before": Row(
        DataError,
        "Loader 0 of problem 'net' gave no batch … iterated again",
        fed(iter([])),
        classifier,
    ),
    "loader: fails": Row(
        OSError, f"disk … {STEP + ', while its batch' if NOTES else ''}", fed(Failing()), classifier
    ),
    "loader: a stream that runs dry": Row(
        DataError, "Loader 0 of problem 'net' gave no batch", lambda e: e.run(), lambda: dry(2)
    ),
    "loss: vector": answer(
        LossError,
        "training_step of problem 'net' … shape (2,) … .mean()",
        lambda loss: loss * torch.ones(2),
    ),
    "loss: empty": answer(
        LossError, "training_step of problem 'net' … shape (0,)", lambda loss: loss * torch.ones(0)
    ),
    "loss: None": answer(
        LossError, "training_step of problem 'net' … NoneType … return the loss", lambda loss: None
    ),
    "loss: number": answer(
        LossError, "training_step of problem 'net' … float … return the loss", lambda loss: 0.5
    ),
    "loss: tuple": answer(
        LossError,
        "training_step of problem 'net' … tuple … return the loss",
        lambda loss: (loss, {}),
    ),
    "loss: misspelt key": answer(
        LossError, "training_step of problem 'net' … dict … 'loss'", lambda loss: {"los": loss}
    ),
    "loss: complex": answer(
        LossError, "training_step of problem 'net' … complex … .abs()", lambda loss: loss * 1j
    ),
    "loss: detached": answer(
        LossError, "loss of problem 'net' … torch.no_grad()", lambda loss: loss.detach()
    ),
    "loss: of integers": answer(
        LossError, "loss of problem 'net' … torch.no_grad()", lambda loss: torch.tensor(3)
    ),
    "loss: of other parameters": answer(
        LossError,
        "loss of problem 'net' … parameters it trains … self.module",
        lambda loss: nn.Parameter(torch.ones(())) * loss.detach(),
    ),
    "loss: not finite": Row(
        NonFiniteError,
        "loss of problem 'net' is nan … step 3",
        answering(lambda loss: loss * torch.nan),
        lambda: classifier(non_finite="raise"),
        draws=True,
    ),
    "gradients: written by the training step": Row(
        LossError,
        "training_step of problem 'net' wrote gradients itself … leave backward()",
        run,
        lambda: classifier(kind=Steps),
        draws=True,
    ),
    "error of one's own, after a forward pass": Row(
        KeyError, f"lookup … {STEP}", run, lambda: classifier(kind=Fails), draws=True
    ),
    "error of one's own, after a backward pass": Row(
        KeyError, f"lookup … {STEP}", run, lambda: classifier(kind=FailsBeforeTheUpdate), draws=True
    ),
    "error of one's own, watched": Row(
        KeyError,
        f"lookup … {STEP}",
        run,
        lambda: classifier(kind=Fails, non_finite="skip"),
        draws=True,
    ),
    "parameters: exchanged": Row(
        LossError,
        "loss of problem 'net' … parameters it trains … its optimizer was made for",
        run,
        exchanged,
        draws=True,
    ),
    "no_grad around run": Row(
        ConfigurationError,
        "Engine.run() … torch.no_grad() … outside",
        without(torch.no_grad),
        classifier,
    ),
    "inference_mode around run": Row(
        ConfigurationError,
        "Engine.run() … torch.inference_mode() … outside",
        without(torch.inference_mode),
        classifier,
    ),
}


@pytest.mark.parametrize("name", FEEDING)
def test_it_is_named_and_the_step_leaves_no_trace(name: str) -> None:
    assert_refused(FEEDING[name])


def test_after_an_error_a_program_goes_on_as_if_nobody_had_erred() -> None:
    plain, erring = classifier(), classifier()
    with pytest.raises(IndexError):
        fed([(INPUTS, LABELS + 5)])(erring)
    # As often, since a loader that takes another's place divides the data anew.
    plain.net.set_train_data_loader([(INPUTS, LABELS + 5)])
    found = []
    for engine in (plain, erring):
        torch.default_generator.manual_seed(3)
        fed([GOOD])(engine)
        found.append(everything(engine))
    assert not difference(*found)


def test_after_an_error_a_program_can_be_saved(tmp_path: Path) -> None:
    engine = classifier()
    with pytest.raises(IndexError):
        fed([(INPUTS, LABELS + 5)])(engine)
    engine.save(tmp_path / "after.ckpt")
    other = classifier()
    other.load(tmp_path / "after.ckpt")
    assert not difference(everything(engine), everything(other))


@pytest.mark.parametrize("batches", [3, 4])
def test_a_loader_that_ends_amid_an_accumulation_leaves_the_step_before(batches: int) -> None:
    def accumulating(data: Any, steps: int) -> Any:
        chase = problem(data=data, config=Config(gradient_accumulation=2))
        return single(chase, steps=steps)

    engine = accumulating((b for b in numbers(1.0, 2.0, 3.0, 4.0)[:batches]), 6)
    with pytest.raises(DataError, match="Loader 0 of problem 'chase' gave no batch"):
        engine.run()
    whole = accumulating(numbers(1.0, 2.0, 3.0, 4.0), batches // 2 * 2)
    whole.run()
    assert torch.equal(engine.chase.module.w, whole.chase.module.w)
    assert engine.chase.module.w.grad is None
    assert engine.chase.epoch_counter == [0]


@pytest.mark.parametrize("method", ["darts", "unroll"])
def test_a_loader_that_ends_amid_a_loop_leaves_the_step_before(method: str) -> None:
    def looping(data: Any, steps: int) -> Any:
        inner = problem(Inner, "inner", data=data, config=Config(type=method, unroll_steps=2))
        return bilevel(inner=inner, steps=steps)

    engine = looping((b for b in numbers(1.0, 2.0, 3.0)), 6)
    with pytest.raises(DataError, match="Loader 0 of problem 'inner' gave no batch"):
        engine.run()
    whole = looping(numbers(1.0, 2.0, 3.0), 3)
    whole.run()
    for mine, other in zip(engine.problems, whole.problems, strict=True):
        assert torch.equal(mine.module.w, other.module.w)
    assert [engine.inner.count, engine.outer.count, engine.global_step] == [3, 1, 3]
