"""The samples whose labels a trained classifier doubts most, as a table and a picture."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from .files import write_figure, write_text
from .settings import Splits

_IN_A_ROW = 10


@dataclass(frozen=True)
class Suspicious:
    """The most suspicious samples, the worst first.

    Args:
        positions: Positions in the training split, (K,).
        scores: Their scores, (K,).
        suggested: The class each is taken for, (K,).
    """

    positions: Tensor
    scores: Tensor
    suggested: Tensor


def write_suspicious(folder: Path, name: str, table: Suspicious, splits: Splits) -> None:
    """Write ``NAME-suspicious.csv`` and, for images, a picture of the same name."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "sample", "given label", "suggested label", "score"])
    names, files = splits.class_names, splits.files
    train = splits.train
    rows = zip(
        table.positions.tolist(), table.scores.tolist(), table.suggested.tolist(), strict=True
    )
    titles = []
    for rank, (place, score, suggested) in enumerate(rows, 1):
        sample = int(train.indices[place]) if files is None else files[place]
        given = names[int(train.labels[place])]
        writer.writerow([rank, sample, given, names[suggested], f"{score:.4g}"])
        titles.append(f"{given}\n→ {names[suggested]}?")
    write_text(folder / f"{name}-suspicious.csv", text.getvalue())
    if train.inputs.dim() == 4:
        images = train.inputs[table.positions.to(train.device)].cpu()
        write_figure(folder / f"{name}-suspicious.png", _mosaic(images, titles))


def _mosaic(images: Tensor, titles: list[str]) -> Figure:
    rows = -(-len(titles) // _IN_A_ROW)
    figure = Figure(figsize=(1.3 * _IN_A_ROW, 1.7 * rows), layout="constrained")
    for axes in figure.subplots(rows, _IN_A_ROW, squeeze=False).ravel():
        axes.set_axis_off()
    for axes, image, title in zip(figure.axes, images, titles, strict=False):
        axes.imshow(image.permute(1, 2, 0).squeeze(2).numpy(), cmap="gray")
        axes.set_title(title, fontsize="xx-small")
    return figure
