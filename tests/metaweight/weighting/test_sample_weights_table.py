"""The hook that keeps weights, losses and predictions of samples, against dictionaries."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.devices import DEVICES, no_waiting
from support.recorded_samples import N, batches, networks, program, samples
from torch import Tensor

from metaweight import (
    CheckpointError,
    Config,
    DataError,
    Engine,
)
from metaweight.data import SampleLoader, TensorLoader
from metaweight.weighting import (
    SampleWeights,
    WeightedClassifier,
    sample_table,
)

# The same float64 operations, but for the order of sums.
CLOSE = {"rtol": 1e-12, "atol": 1e-12, "equal_nan": True}


def by_hand(steps: int, accumulation: int) -> dict[int, list[tuple[Tensor, Tensor, Tensor]]]:
    """Weight, loss and probabilities of each sample each time that it was drawn."""
    net, weigh = networks()
    found = defaultdict(list)
    gradients = []
    for step in range(steps):
        x, y, places = batches()[step % 3]
        logits = net(x)
        losses = F.cross_entropy(logits, y, reduction="none")
        weights = weigh(losses.detach()).squeeze().detach()
        gradients.append(torch.autograd.grad((weights * losses).mean(), list(net.parameters())))
        for i, weight, loss, row in zip(places.tolist(), weights, losses, logits, strict=True):
            found[i].append((weight, loss.detach(), (row.exp() / row.exp().sum()).detach()))
        if len(gradients) == accumulation:
            for p, *parts in zip(net.parameters(), *gradients, strict=True):
                p.data -= 0.5 * sum(parts) / accumulation
            gradients = []
    return found


def compare(hook: SampleWeights, found: dict[int, list[Any]]) -> None:
    columns = (
        (hook.last, hook.mean),
        (hook.losses, hook.mean_losses),
        (hook.predictions, hook.mean_predictions),
    )
    for place, (last, mean) in enumerate(columns):
        assert last.shape[0] == mean.shape[0] == N
        for i in range(N):
            rows = [row[place] for row in found.get(i, [])]
            nothing = torch.full_like(last[i], torch.nan)
            torch.testing.assert_close(last[i], rows[-1] if rows else nothing, **CLOSE)
            average = torch.stack(rows).mean(0) if rows else nothing
            torch.testing.assert_close(mean[i], average, **CLOSE)
    assert hook.counts.tolist() == [len(found.get(i, [])) for i in range(N)]


def named(found: list[Any]) -> list[Any]:
    return [{"x": x, "label": y, "index": i} for x, y, i in found]


def last_part(batch: Any) -> Tensor:
    return batch[-1]


def elsewhere(found: list[Any]) -> list[Any]:
    return [(x, y, torch.zeros_like(y), i.int()) for x, y, i in found]


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize(
    ("form", "index"),
    [(list, None), (named, None), (elsewhere, 3), (elsewhere, last_part)],
    ids=["", "named", "place", "function"],
)
def test_all_is_what_a_dictionary_holds(accumulation: int, form: Any, index: Any) -> None:
    hook = SampleWeights("classifier", N, index=index)
    program(hook, form(batches()), accumulation=accumulation).run()
    compare(hook, by_hand(10, accumulation))
    assert hook.last[N - 3 :].isnan().all()


class Swapped(WeightedClassifier):
    """Labels are the last part of its batches."""

    def __init__(self, name: str, config: Config, **problem: Any) -> None:
        super().__init__(name, config, labels=2, **problem)


def test_the_place_of_labels_is_not_taken_for_that_of_indices() -> None:
    found = [(x, i, y) for x, y, i in batches()]
    with pytest.raises(DataError, match=r"does not say which samples it holds; give batches"):
        program(SampleWeights("classifier", N), found, kind=Swapped).run()
    hook = SampleWeights("classifier", N, index=1)
    program(hook, found, kind=Swapped).run()
    compare(hook, by_hand(10, 1))


def test_a_loader_of_samples_one_by_one_says_which_they_are() -> None:
    data, hook = samples(), SampleWeights("classifier", N)
    pairs = list(zip(data.inputs, data.labels, strict=True))
    loader = SampleLoader(pairs, 4, seed=2, with_indices=True)
    engine = program(hook, loader, train_iters=8)
    engine.classifier.optimizer.param_groups[0]["lr"] = 0.0
    engine.run()
    assert hook.counts.tolist() == [2] * N
    with torch.no_grad():
        expected = engine.classifier(data.inputs).softmax(1)
    torch.testing.assert_close(hook.mean_predictions, expected, **CLOSE)


def test_a_step_taken_again_is_recorded_once() -> None:
    hook = SampleWeights("classifier", N)
    program(hook, lr=0.1, roll_back=True, train_iters=6).run()
    assert int(hook.counts.sum()) == 22


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mapped", [False, True], ids=["memory", "mapped"])
def test_a_table_holds_repeated_samples_and_leaves_out_what_is_not_finite(
    dtype: torch.dtype, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_table, "MAPPED_ABOVE", 3 if mapped else 100)
    generator = torch.Generator().manual_seed(4)
    table, found = sample_table.SampleTable("Table", 6, None), defaultdict(list)
    for step in range(5):
        places = torch.randint(0, 5, (9,), generator=generator)
        one = torch.randn(9, generator=generator, dtype=torch.float64).to(dtype)
        two = torch.randn(9, 2, generator=generator, dtype=torch.float64).to(dtype)
        one[step], two[8 - step, 1] = torch.nan, torch.inf
        table.put(places, {"one": one, "two": two})
        for i, a, b in zip(places.tolist(), one.double(), two.double(), strict=True):
            if a.isfinite() and b.isfinite().all():
                found[i].append((a, b))
    assert table.counts.tolist() == [len(found[i]) for i in range(6)]
    near = {"rtol": 1e-12 if dtype == torch.float64 else 1e-5, "atol": 1e-6, "check_dtype": False}
    for i in range(6):
        if not found[i]:
            assert table.last("one")[i].isnan() and table.mean("two")[i].isnan().all()
            continue
        for place, name in enumerate(("one", "two")):
            rows = torch.stack([row[place] for row in found[i]])
            assert torch.equal(table.last(name)[i].double(), rows[-1])
            torch.testing.assert_close(table.mean(name)[i], rows.mean(0), **near)


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_records_the_same_and_is_not_waited_for(device: str) -> None:
    found = {}
    for name in ("cpu", device):
        generator = torch.Generator().manual_seed(5)
        table = found[name] = sample_table.SampleTable("Table", 6, None)
        for _ in range(4):
            places = torch.randint(0, 5, (9,), generator=generator).to(name)
            rows = torch.randn(9, 2, generator=generator).to(name)
            with no_waiting(name):
                table.put(places, {"rows": rows})
    one, other = found["cpu"], found[device]
    assert torch.equal(one.counts, other.counts.cpu())
    near = {"rtol": 1e-5, "atol": 1e-6, "equal_nan": True}
    torch.testing.assert_close(one.last("rows"), other.last("rows").cpu(), **near)
    torch.testing.assert_close(one.mean("rows"), other.mean("rows").cpu(), **near)
    if device != "cpu":
        with no_waiting(device):
            other.put(torch.tensor([7], device="cpu").to(device, non_blocking=True), {})
        with pytest.raises(DataError, match="from 0 to 7"):
            other.counts


def test_skipped_steps_are_recorded_up_to_the_fault() -> None:
    """The second of three micro-batches is not finite: the first was recorded before."""
    found = batches()
    found[1][0][2] = torch.nan
    hook = SampleWeights("classifier", N)
    program(hook, found, accumulation=3, non_finite="skip", train_iters=3).run()
    seen = torch.zeros(N, dtype=torch.int64)
    seen[found[0][2]] = 1
    assert torch.equal(hook.counts, seen)
    assert hook.last[seen == 0].isnan().all() and hook.mean[seen == 1].isfinite().all()


@pytest.mark.parametrize("mapped", [False, True], ids=["memory", "mapped"])
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    mapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_table, "MAPPED_ABOVE", 3 if mapped else 100)
    settings = {"lr": 0.1, "accumulation": 2}

    def built(steps: int, size: int = N) -> tuple[SampleWeights, Engine]:
        hook = SampleWeights("classifier", size)
        loader = TensorLoader(samples(), 5, with_indices=True, seed=1)
        return hook, program(hook, loader, train_iters=steps, **settings)

    whole, engine = built(9)
    engine.run()
    _, engine = built(5)
    engine.run()
    engine.save(tmp_path / "inside.pt")
    again, engine = built(9)
    engine.load(tmp_path / "inside.pt")
    engine.run()
    for name in ("last", "mean", "losses", "mean_losses", "predictions", "mean_predictions"):
        one, other = getattr(whole, name), getattr(again, name)
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(whole.counts, again.counts)
    _, engine = built(9, N + 1)
    with pytest.raises(CheckpointError, match=r"has 15 samples, and the saved one 14; give"):
        engine.load(tmp_path / "inside.pt")


def test_a_resumed_run_may_leave_out_predictions(tmp_path: Path) -> None:
    def built(steps: int, predictions: bool) -> tuple[SampleWeights, Engine]:
        hook = SampleWeights("classifier", N, predictions=predictions)
        loader = TensorLoader(samples(), 5, with_indices=True, seed=1)
        return hook, program(hook, loader, train_iters=steps, lr=0.1)

    whole, engine = built(6, predictions=True)
    engine.run()
    _, engine = built(3, predictions=True)
    engine.run()
    engine.save(tmp_path / "inside.pt")
    again, engine = built(6, predictions=False)
    engine.load(tmp_path / "inside.pt")
    engine.run()
    assert again.predictions is None and torch.equal(whole.counts, again.counts)
    torch.testing.assert_close(whole.mean, again.mean, rtol=0, atol=0, equal_nan=True)


def test_large_tables_are_files_in_the_folder_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    file = sample_table.tempfile.TemporaryFile

    def noted(**settings: Any) -> Any:
        made.append(settings["dir"])
        return file(**settings)

    monkeypatch.setattr(sample_table.tempfile, "TemporaryFile", noted)
    in_memory = SampleWeights("classifier", N, folder=tmp_path)
    program(in_memory, train_iters=2).run()
    assert made == []
    monkeypatch.setattr(sample_table, "MAPPED_ABOVE", N - 1)
    program(SampleWeights("classifier", N, folder=tmp_path), train_iters=2).run()
    assert made == [tmp_path] * 7
    assert list(tmp_path.iterdir()) == []
