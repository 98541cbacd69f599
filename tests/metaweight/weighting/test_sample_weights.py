"""The hook that keeps weights, losses and predictions of samples, against dictionaries."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.devices import DEVICES, no_waiting
from torch import Tensor, nn

from metaweight import (
    CheckpointError,
    Config,
    ConfigurationError,
    DataError,
    Engine,
    EngineConfig,
    GraphError,
    ImplicitProblem,
    LossError,
    ReweightedProblem,
)
from metaweight.data import LabelledTensors, SampleLoader, TensorLoader
from metaweight.weighting import (
    MetaWeightNet,
    SampleWeights,
    WeightedClassifier,
    WeightLearner,
    sample_table,
)

N, CLASSES = 14, 3
# The same float64 operations, but for the order of sums.
CLOSE = {"rtol": 1e-12, "atol": 1e-12, "equal_nan": True}


def samples() -> LabelledTensors:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(N, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(CLASSES, (N,), generator=generator)
    return LabelledTensors(x, y, y.clone(), torch.arange(N), CLASSES)


def batches(sizes: tuple[int, ...] = (4, 4, 3)) -> list[Any]:
    """Batches with indices; the last three samples are in none."""
    data, order = samples(), torch.randperm(N, generator=torch.Generator().manual_seed(1))
    order = order[order < N - 3]
    return [(data.inputs[i], data.labels[i], i) for i in order.split(list(sizes))]


def networks() -> tuple[nn.Module, nn.Module]:
    torch.default_generator.manual_seed(0)
    return nn.Linear(4, CLASSES).double(), MetaWeightNet(4).double()


def program(
    hook: Any,
    loader: Any = None,
    *,
    kind: type[Any] = WeightedClassifier,
    accumulation: int = 1,
    lr: float = 0.0,
    **settings: Any,
) -> Engine:
    """Learned weights; without a learning rate of theirs they depend on the loss alone."""
    net, weigh = networks()
    classifier = kind(
        "classifier",
        Config(gradient_accumulation=accumulation),
        weights="judge",
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), 0.5),
        train_data_loader=batches() if loader is None else loader,
    )
    judge = WeightLearner(
        "judge",
        classifier="classifier",
        module=weigh,
        optimizer=torch.optim.SGD(weigh.parameters(), lr),
        train_data_loader=[batches()[0][:2]],
    )
    config = EngineConfig(**{"train_iters": 10, "strategy": "cpu", **settings})
    edges = {"u2l": {judge: [classifier]}, "l2u": {classifier: [judge]}}
    return Engine([judge, classifier], config, edges, hooks=[hook])


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


class Unnoted(WeightedClassifier):
    """Keeps its logits to itself."""

    def note_logits(self, logits: Tensor) -> None:
        pass


@pytest.mark.parametrize("kind", [Unnoted, WeightedClassifier])
def test_without_predictions_all_samples_can_be_ranked(kind: type[Any]) -> None:
    hook = SampleWeights("classifier", N, predictions=kind is Unnoted)
    program(hook, kind=kind).run()
    assert hook.predictions is None and hook.mean_predictions is None
    with pytest.raises(DataError, match=r"filter_by='both' .*note_logits.*filter_by=None"):
        hook.rank_label_issues(samples().labels, filter_by="both")
    with pytest.raises(DataError, match=r"ranked_by='confidence' was asked for, which needs"):
        hook.rank_label_issues(samples().labels, filter_by=None, ranked_by="confidence")
    names = [f"image {i}" for i in range(N)]
    labels = samples().labels
    labels[4] = -1
    found = hook.rank_label_issues(labels, filter_by=None, keys=names, ranked_by="weight")
    weights, losses = hook.mean.tolist(), hook.mean_losses.tolist()
    kept = [i for i in range(N - 3) if i != 4]
    assert found.indices.tolist() == sorted(kept, key=lambda i: (weights[i], -losses[i]))
    assert found.keys == tuple(names[i] for i in found.indices.tolist())
    assert torch.equal(found.given, labels[found.indices])
    assert found.suggested.eq(-1).all() and found.confidence.isnan().all()
    assert found.joint.shape == (0, 0) and found.size == N
    by_loss = hook.rank_label_issues(labels, filter_by=None, values="last")
    last = hook.losses.tolist()
    assert by_loss.indices.tolist() == sorted(kept, key=lambda i: -last[i])


def test_equal_weights_are_ranked_by_loss() -> None:
    hook = SampleWeights("classifier", 4)
    loss = torch.tensor([1.0, 3.0, 2.0, 0.0])
    weight = torch.tensor([0.5, 0.0, 0.0, 0.0])
    hook._table.put(torch.arange(4), {"weight": weight, "loss": loss})
    found = hook.rank_label_issues([0, 0, 1, 1], filter_by=None, ranked_by="weight")
    assert found.indices.tolist() == [1, 2, 3, 0]


@pytest.mark.parametrize("filter_by", ["prune_by_noise_rate", "confident_learning"])
def test_issues_are_those_that_cleanlab_finds(filter_by: Any) -> None:
    filters = pytest.importorskip("cleanlab.filter")
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % CLASSES
    hook = SampleWeights("classifier", 60)
    for _ in range(3):
        logits = 2 * F.one_hot(labels, CLASSES) + torch.randn(60, CLASSES, generator=generator)
        rows = {"weight": torch.rand(60, generator=generator), "prediction": logits.softmax(1)}
        hook._table.put(torch.arange(60), {**rows, "loss": rows["weight"]})
    noisy = torch.where(torch.arange(60) < 20, (labels + 1) % CLASSES, labels)
    for values, predicted in (("mean", hook.mean_predictions), ("last", hook.predictions)):
        expected = filters.find_label_issues(
            noisy.numpy(),
            predicted.double().numpy(),
            return_indices_ranked_by="self_confidence",
            filter_by=filter_by,
            n_jobs=1,
        )
        found = hook.rank_label_issues(
            noisy, values=values, ranked_by="confidence", filter_by=filter_by
        )
        assert found.indices.tolist() == expected.tolist() and len(found) > 9
        weighed = hook.rank_label_issues(
            noisy, values=values, ranked_by="weight", filter_by=filter_by
        )
        assert sorted(weighed.indices.tolist()) == sorted(expected.tolist())
        weights = (hook.mean if values == "mean" else hook.last)[weighed.indices]
        assert weights.tolist() == sorted(weights.tolist())
        assert torch.equal(weighed.suggested, predicted.argmax(1)[weighed.indices])
        rows = predicted.double().gather(1, noisy[:, None]).squeeze(1)
        torch.testing.assert_close(weighed.confidence, rows[weighed.indices])


def test_samples_never_seen_are_no_issues_and_all_can_be_ranked_by_confidence() -> None:
    pytest.importorskip("cleanlab")
    hook = SampleWeights("classifier", N)
    program(hook).run()
    found = hook.rank_label_issues(samples().labels, filter_by="predicted_neq_given")
    assert found.size == N and found.indices.max() < N - 3
    every = hook.rank_label_issues(samples().labels, filter_by=None, ranked_by="confidence")
    assert len(every) == N - 3
    assert every.confidence.tolist() == sorted(every.confidence.tolist())
    assert torch.equal(every.suggested, hook.mean_predictions[every.indices].argmax(1))


COLUMNS = ("count", "weight", "mean_weight", "loss", "mean_loss", "prediction", "mean_prediction")


def expected_rows(hook: SampleWeights) -> dict[str, list[Any]]:
    values = (hook.counts, hook.last, hook.mean, hook.losses, hook.mean_losses)
    values += (hook.predictions.argmax(1), hook.mean_predictions.argmax(1))
    found = {n: v.tolist() for n, v in zip(COLUMNS, values, strict=True)}
    for name in COLUMNS[1:]:
        found[name][N - 3 :] = [None] * 3
    return found


def test_a_table_has_a_row_for_each_sample(tmp_path: Path) -> None:
    hook = SampleWeights("classifier", N)
    program(hook).run()
    path = hook.write_csv(tmp_path / "weights.csv")
    header, *rows = csv.reader(path.read_text().splitlines())
    assert header == ["index", *COLUMNS]
    assert [row[0] for row in rows] == [str(i) for i in range(N)]
    for name, *cells in zip(header[1:], *(row[1:] for row in rows), strict=True):
        assert [float(c) if c else None for c in cells] == expected_rows(hook)[name]
    assert [p.name for p in tmp_path.iterdir()] == ["weights.csv"]


def test_a_parquet_file_has_nulls_for_what_was_not_seen(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    hook = SampleWeights("classifier", N)
    program(hook).run()
    table = parquet.read_table(hook.write_parquet(tmp_path / "weights.parquet"))
    assert table.to_pydict() == {"index": list(range(N)), **expected_rows(hook)}


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pyarrow .* install it with: pip install pyarrow"):
        SampleWeights("classifier", 2).write_parquet(tmp_path / "weights.parquet")


class Table:
    """What is used of a ``datasets.Dataset``."""

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.columns = columns
        self.column_names = list(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def add_column(self, name: str, column: list[Any]) -> Table:
        return Table({**self.columns, name: column})


@pytest.mark.parametrize("real", [False, True], ids=["stand-in", "datasets"])
def test_a_dataset_gets_columns(real: bool) -> None:
    made = pytest.importorskip("datasets").Dataset.from_dict if real else Table
    hook = SampleWeights("classifier", N)
    program(hook).run()
    texts = made({"text": [str(i) for i in range(N)]})
    found = hook.add_to(texts)
    assert found.column_names == ["text", *("sample_" + name for name in COLUMNS)]
    rows = found.to_dict() if real else found.columns
    assert {n: list(rows["sample_" + n]) for n in COLUMNS} == expected_rows(hook)
    assert texts.column_names == ["text"]
    with pytest.raises(DataError, match=r"has columns sample_count, .* already; give another"):
        hook.add_to(found)
    assert "w_mean_loss" in hook.add_to(found, prefix="w_").column_names
    with pytest.raises(DataError, match=r"values of 14 samples .* a dataset of 2 rows; give the"):
        hook.add_to(made({"text": ["a", "b"]}))
    with pytest.raises(DataError, match=r"add_to received list, .* give a datasets\.Dataset"):
        hook.add_to([1, 2])


class Plain(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.module(batch[0]), batch[1])


class Wrong(ReweightedProblem):
    """Tells of logits as ``self.cfg`` makes them."""

    def sample_losses(self, batch: Any) -> Tensor:
        logits = self.module(batch[0])
        self.note_logits(self.cfg(logits))
        return F.cross_entropy(logits, batch[1], reduction="none")

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        return torch.ones_like(losses)


def alone(kind: type[Any], hook: Any = None, **more: Any) -> Engine:
    net, _ = networks()
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    problem = kind("classifier", module=net, optimizer=sgd, train_data_loader=batches(), **more)
    config = EngineConfig(train_iters=2, strategy="cpu")
    return Engine([problem], config, hooks=[] if hook is None else [hook])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits: logits[:, 0], r"received \(4,\) for 4 losses; give the logits .*\(4, C\)"),
        (lambda logits: logits[:2], r"note_logits of problem 'classifier' received \(2, 3\)"),
        (lambda logits: [logits], r"received list for 4 losses"),
        (lambda logits: logits.argmax(1, keepdim=True), r"received \(4, 1\)"),
    ],
    ids=["scores", "rows", "list", "integers"],
)
def test_logits_that_are_none_are_refused(change: Any, message: str) -> None:
    with pytest.raises(LossError, match=message):
        alone(Wrong, extra_config=change).run()


def test_only_a_training_step_notes_logits() -> None:
    engine = alone(Wrong, extra_config=lambda logits: logits)
    engine.run()
    problem = engine.classifier
    problem.sample_losses(batches()[0])
    assert problem._noted is None


def test_other_problems_are_refused() -> None:
    with pytest.raises(GraphError, match=r"SampleWeights\('b'\) names .* \(classifier\); give one"):
        alone(Plain, SampleWeights("b", 3)).run()
    with pytest.raises(ConfigurationError, match=r"ReweightedProblem, and Plain does not declare"):
        alone(Plain, SampleWeights("classifier", 3)).run()


@pytest.mark.parametrize(
    ("form", "index", "message"),
    [
        (lambda x, y, i: (x, y), None, r"a tuple of 2 parts .*\(inputs, labels, indices\)"),
        (
            lambda x, y, i: {"x": x, "y": y},
            None,
            r"a dict with 'x', 'y'.* mapping with 'index'",
        ),
        (lambda x, y, i: (x, y), 2, r"a tuple of 2 parts \(Tensor, Tensor\) and index=2"),
        (lambda x, y, i: (x, y, i[:2]), None, r"indices of shape \(2,\) .* for 4 samples; give"),
        (lambda x, y, i: (x, y, i.double()), None, r"type torch.float64 for 4 samples; give one"),
        (lambda x, y, i: (x, y, i + 9), None, r"has 14 samples, .* from \d+ to 1[4-9]; give"),
        (lambda x, y, i: (x, y, i - 9), None, r"hold indices from -\d to"),
    ],
    ids=["two parts", "a mapping", "no such part", "few", "floating", "large", "negative"],
)
def test_batches_that_do_not_say_which_samples(form: Any, index: Any, message: str) -> None:
    hook = SampleWeights("classifier", N, index=index)
    with pytest.raises(DataError, match=message):
        program(hook, [form(*batches()[0])]).run()


def test_settings_and_questions_before_a_run_are_refused(tmp_path: Path) -> None:
    for given, message in (
        ({"size": 0}, r"SampleWeights\(size=0\) must be an integer of at least 1"),
        ({"problem": 3}, r"SampleWeights\(problem=3"),
        ({"predictions": "no"}, r"SampleWeights\(predictions='no'\) .* True or False"),
        ({"folder": tmp_path / "none"}, r"none'\) is not a folder; make it first"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            SampleWeights(**{"problem": "classifier", "size": 3, **given})
    hook = SampleWeights("classifier", 3)
    assert hook.last.isnan().all() and hook.counts.tolist() == [0, 0, 0]
    with pytest.raises(DataError, match=r"\('classifier', 3\) has recorded nothing yet; run its"):
        hook.rank_label_issues([0, 1, 0])
    hook._table.put(torch.arange(3), {"weight": torch.ones(3), "loss": torch.ones(3)})
    with pytest.raises(ConfigurationError, match=r"ranked_by='x' .* weight, loss, confidence"):
        hook.rank_label_issues([0, 1, 0], ranked_by="x")
    with pytest.raises(ConfigurationError, match=r"values='x'"):
        hook.rank_label_issues([0, 1, 0], values="x")
    with pytest.raises(DataError, match=r"2 labels were given for 3 samples; give one for each"):
        hook.rank_label_issues([0, 1], filter_by=None)
    with pytest.raises(DataError, match=r"2 keys were given for 3 labels; give one for each"):
        hook.rank_label_issues([0, 1, 0], filter_by=None, keys=["a", "b"])
