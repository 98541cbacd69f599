"""Scores, one number per sample and member, stored by the index of the sample.

Samples are identified by index rather than by reading order, so that neither shuffling nor
repetition can mix them up. Nothing is read on the host until every batch has been scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from tqdm import tqdm

from metaweight._batch import Part, part_of
from metaweight._batch_reader import BatchReader
from metaweight._label_loss import full_precision, labels_of
from metaweight._labels import read_values
from metaweight.data import LabelledTensors, Resumable, TensorLoader
from metaweight.data.loader import Gathered
from metaweight.problems import DataError, LossError
from metaweight.problems.data.batches import move_batch

Metric = Callable[[Any, Any], Tensor]


def cross_entropy_scores(outputs: Any, labels: Any) -> Tensor:
    """Return ``-log softmax(z_i)[y_i]`` of each sample, (B,), in single precision or better.

    Args:
        outputs: Logits (B, C), or what holds them as its ``logits``.
        labels: (B,) classes of any integer type, or one-hot.

    Raises:
        LossError: For logits or labels of another shape or type, or a sample without a label, which
            has no rank among the others.
    """
    logits = BatchReader("cross_entropy_scores").find_tensor(outputs)
    classes = labels_of(logits, labels, required=True).classes
    # Torch's own cross-entropy gives 0, the best of scores, for a label of -100.
    log_p = full_precision(logits).log_softmax(1)
    return -log_p.gather(1, classes.unsqueeze(1)).squeeze(1)


@dataclass(frozen=True)
class Source:
    """Batches to score.

    Attributes:
        batches: Batches ``(inputs, labels, …)``, or mappings.
        size: How many samples there are, where that is known.
        index: Place or name of the indices of the samples in a batch, or a function of it; ``None``
            when batches come in the order of the samples.
    """

    batches: Iterable[Any]
    size: int | None
    index: Part


def source_of(data: Any, index: Part, batch_size: int) -> Source:
    """Decide how ``data`` is read and how its samples are identified.

    Raises:
        DataError: When the order of the samples is unknown.
    """
    if isinstance(data, TensorLoader):
        # The loader itself is not used: it may be in the middle of an epoch.
        return Source(_in_order(data.data, batch_size, data.transform), len(data.data), None)
    if isinstance(data, LabelledTensors):
        return Source(_in_order(data, batch_size, None), len(data), None)
    if isinstance(data, DataLoader):
        if index is None and not _reads_in_order(data):
            raise DataError(
                "A DataLoader that shuffles, or has a sampler of its own "
                f"({type(data.sampler).__name__}), was given without index=...: nothing says which "
                "sample a score belongs to. Let batches hold (inputs, labels, indices) and give "
                "index=2, give its dataset instead, or use shuffle=False."
            )
        return Source(data, _size(data), index)
    if isinstance(data, (list, tuple)):
        return Source(data, None, index)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return Source(DataLoader(data, batch_size), len(data), index)
    if index is None:
        raise DataError(
            f"{type(data).__name__} was given without index=...: it may not read samples in a "
            "fixed order. Let batches hold (inputs, labels, indices) and give index=2, or give a "
            "dataset, LabelledTensors, or a list of batches."
        )
    return Source(data, None, index)


def member_scores(
    members: Sequence[nn.Module],
    source: Source,
    metric: Metric,
    progress: bool,
    reader: BatchReader,
) -> Tensor:
    """Return the score of every sample by every member, (N, K), without a graph.

    The CPU's global random stream is restored afterwards.

    Raises:
        DataError: When a sample was not read, an index does not fit, or a score is nan.
        LossError: When the metric does not return one number per sample.
    """
    device = next((p.device for member in members for p in member.parameters()), None)
    rows: list[Tensor] = []
    places: list[Tensor] = []
    read = 0
    with (
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        tqdm(total=source.size, desc="scoring", unit="sample", disable=not progress) as bar,
    ):
        for batch in source.batches:
            inputs, labels, _ = reader.read(batch)
            if device is not None:
                inputs, labels = move_batch((inputs, labels), device)
            outputs = (reader.outputs(member, inputs) for member in members)
            scores = [_checked(metric(output, labels), labels) for output in outputs]
            rows.append(torch.stack(scores, dim=1))
            places.append(_places(batch, source.index, read, rows[-1]))
            read += len(rows[-1])
            bar.update(len(rows[-1]))
    if not rows:
        raise DataError("The data to score gave no batch; give at least one sample.")
    return _by_index(torch.cat(rows), torch.cat(places), source.size)


def _in_order(
    data: Gathered, batch_size: int, transform: Callable[[Tensor], Tensor] | None
) -> Iterator[tuple[Tensor, Tensor]]:
    held: object = transform
    state = held.state_dict() if isinstance(held, Resumable) else None
    try:
        for positions in torch.split(torch.arange(len(data), device=data.device), batch_size):
            inputs, labels = data.gather(positions)
            yield (inputs if transform is None else transform(inputs)), labels
    finally:
        if isinstance(held, Resumable) and state is not None:
            held.load_state_dict(state)


def _reads_in_order(loader: DataLoader[Any]) -> bool:
    batches: Any = loader.batch_sampler
    sampler = batches.sampler if type(batches) is BatchSampler else loader.sampler
    own = batches is not None and type(batches) is not BatchSampler
    return not own and isinstance(sampler, SequentialSampler)


def _size(loader: DataLoader[Any]) -> int | None:
    dataset: Any = loader.dataset
    # Without a batch sampler an item of the dataset is a batch: its length counts no samples.
    return (
        len(dataset) if loader.batch_sampler is not None and hasattr(dataset, "__len__") else None
    )


def _checked(scores: Tensor, labels: Any) -> Tensor:
    wanted = len(labels)
    if not isinstance(scores, Tensor) or scores.ndim != 1 or len(scores) != wanted:
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise LossError(
            f"The metric returned {shape} for a batch of {wanted} samples; return one number per "
            f"sample, shape ({wanted},), for instance with reduction='none'."
        )
    return scores if scores.dtype.itemsize >= 4 and scores.is_floating_point() else scores.float()


def _places(batch: Any, index: Part, read: int, rows: Tensor) -> Tensor:
    size = len(rows)
    if index is None:
        return torch.arange(read, read + size, device=rows.device)
    places = read_values(part_of("An ensemble", batch, index, "index"), "Sample indices", DataError)
    integers = not places.is_floating_point() and places.dtype != torch.bool
    if places.shape != (size,) or not integers:
        raise DataError(
            f"Part {index!r} of a batch has shape {tuple(places.shape)} and type {places.dtype}; "
            f"give one integer index for each of its {size} samples."
        )
    return places.to(rows.device, torch.int64, non_blocking=True)


def _by_index(rows: Tensor, places: Tensor, size: int | None) -> Tensor:
    low, high = (int(v) for v in torch.aminmax(places))
    size = high + 1 if size is None else size
    if low < 0 or high >= size:
        raise DataError(
            f"Sample indices span {low} to {high} for {size} samples; give positions in the data, "
            "counted from 0."
        )
    table = rows.new_empty(size, rows.shape[1])
    table[places] = rows
    read = torch.zeros(size, dtype=torch.bool, device=rows.device)
    read[places] = True
    missing = (~read).nonzero()
    if len(missing):
        raise DataError(
            f"{len(missing)} of {size} samples were not read and have no score, sample "
            f"{int(missing[0])} first; read each of them, without drop_last, and count indices "
            "from 0."
        )
    unknown = table.isnan().nonzero()
    if len(unknown):
        sample, member = (int(v) for v in unknown[0])
        raise DataError(
            f"Member {member} of {table.shape[1]} scores sample {sample} with nan; check its "
            "weights, the inputs and the metric."
        )
    return table
