"""Images in files, one folder a class or listed in a table, as uint8 tensors of one size."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metaweight._host import as_tensor
from metaweight.problems import DataError
from metaweight.problems.base.settings import is_count, shown

from .labelled import LabelledTensors

COLUMNS = ("path", "label")
# How many files, rows or names an error lists.
_SHOWN = 5


class LabelledImages(NamedTuple):
    """Images that were read, with what their numbers stand for."""

    data: LabelledTensors
    """The samples, in the order of ``paths``; ``paths[i]`` is the file of the one with index i."""
    classes: tuple[str, ...]
    """Names of the classes, in the order of the labels."""
    paths: tuple[Path, ...]
    """Files of the samples."""


class _Sample(NamedTuple):
    path: Path
    label: str


def load_image_folder(
    folder: str | Path, size: int = 32, *, classes: Sequence[str] | None = None
) -> LabelledImages:
    """Read images of a folder, or of a CSV file that lists them, into memory.

    A folder has one sub-folder a class, as for ``torchvision.datasets.ImageFolder``, which finds
    its images, also in folders below. A CSV file has a header with the columns ``path``, relative
    to the file, and ``label``, the name of a class. The shorter side of every image is scaled to
    ``size``, then its centre is cut out; grey images get three equal channels, those of 16 bits
    scaled to 8. Images are turned upright by the orientation that their camera noted.

    Data that belong together, as training, clean and test images, need the same classes: give those
    of the first as ``classes`` for the others.

    Args:
        folder: The folder, or a file that ends in ``.csv``.
        size: Height and width of the images afterwards.
        classes: Names of the classes, in the order of their labels; left out, those found, in
            alphabetical order.

    Returns:
        The data: inputs (N, 3, size, size), uint8, red-green-blue, on the CPU, sorted by class and
        path, or in the order of the file; with the names of the classes and the paths.

    Raises:
        DataError: When there is no such folder or file or no image in it, a class has no image or
            is none of ``classes``, an image cannot be read or has numbers of 32 bits, of which none
            is known to be white, the file lacks a column, or a row of it a label or an image. Files
            are looked for before the first is read.
    """
    if not is_count(size, least=1):
        raise DataError(
            f"load_image_folder was asked for size={size!r}; give the pixels of a side."
        )
    where = Path(folder).expanduser()
    found, samples = _listed(where)
    names = tuple(found if classes is None else classes)
    if isinstance(classes, str) or len(set(names)) < len(names):
        raise DataError(
            f"load_image_folder received classes={shown(classes)}; give a list of names, each once."
        )
    _require_classes(where, samples, found, names)
    labels = as_tensor([names.index(sample.label) for sample in samples], torch.int64)
    paths = tuple(sample.path for sample in samples)
    data = LabelledTensors(_read(paths, size), labels, num_classes=len(names))
    return LabelledImages(data, names, paths)


def _listed(where: Path) -> tuple[list[str], list[_Sample]]:
    """Return the classes in alphabetical order and the images."""
    if where.is_dir():
        found, samples = _listed_by_folders(where)
    elif where.is_file() and where.suffix.lower() == ".csv":
        samples = _listed_by_file(where)
        found = sorted({sample.label for sample in samples})
    else:
        raise DataError(
            f"Images were looked for in {where}, which is neither a folder nor a CSV file; give a "
            "folder with one sub-folder a class, or a .csv with the columns path and label."
        )
    if not found:
        raise DataError(
            f"{where} has no images; put those of each class into a sub-folder with its name, or "
            "list them in a .csv."
        )
    return found, samples


def _listed_by_folders(folder: Path) -> tuple[list[str], list[_Sample]]:
    from torchvision.datasets import ImageFolder  # noqa: PLC0415 (slow to import)

    try:
        listed = ImageFolder(str(folder), allow_empty=True)
    except FileNotFoundError:
        return [], []
    samples = [_Sample(Path(path), listed.classes[label]) for path, label in listed.samples]
    return listed.classes, samples


def _listed_by_file(file: Path) -> list[_Sample]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            rows = csv.DictReader(opened)
            lacking = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
            if lacking:
                raise DataError(
                    f"{file} has the columns {', '.join(rows.fieldnames or ()) or '(none)'}, but "
                    f"not {' and '.join(lacking)}; its first row must be a header with path and "
                    "label, separated by commas."
                )
            samples = []
            for row in rows:
                values = [(row[name] or "").strip() for name in COLUMNS]
                if not all(values):
                    raise DataError(
                        f"Row {rows.line_num} of {file} has no "
                        f"{COLUMNS[values.index('')]}; complete or remove it."
                    )
                path = file.parent / values[0]
                if not path.is_file():
                    raise DataError(
                        f"Row {rows.line_num} of {file} names {values[0]!r}, but there is no file "
                        f"{path}; paths are relative to the folder of the CSV file."
                    )
                samples.append(_Sample(path, values[1]))
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise DataError(f"{file} cannot be read as a CSV file in UTF-8 ({error}).") from error
    return samples


def _require_classes(
    where: Path, samples: Sequence[_Sample], found: Sequence[str], names: Sequence[str]
) -> None:
    """Refuse a class without an image, and one that is none of ``names``."""
    others = [name for name in found if name not in names]
    if others:
        raise DataError(
            f"{where} has the classes {_few(others)}, which are not among the classes "
            f"{_few(names)}; correct the names, or leave these images out."
        )
    present = {sample.label for sample in samples}
    empty = [name for name in names if name not in present]
    if empty:
        raise DataError(
            f"{where} has no image of the classes {_few(empty)}; add some to each, or remove the "
            "classes."
        )


def _read(paths: Sequence[Path], size: int) -> Tensor:
    images = torch.empty((len(paths), 3, size, size), dtype=torch.uint8, device="cpu")
    broken = []
    for position, path in enumerate(paths):
        try:
            images[position] = _image(path, size)
        except Exception as error:
            broken.append(f"{path} ({type(error).__name__}: {error})")
            if len(broken) == _SHOWN:
                break
    if broken:
        raise DataError(
            f"{len(broken)} image files cannot be read, of those tried: {'; '.join(broken)}. "
            "Replace or remove them."
        )
    return images


def _image(path: Path, size: int) -> Tensor:
    from PIL import Image, ImageOps  # noqa: PLC0415 (slow to import)
    from torchvision.transforms import functional  # noqa: PLC0415 (slow to import)

    with Image.open(path) as opened:
        upright = ImageOps.exif_transpose(opened)
        if upright.mode.startswith("I;16"):
            # Pillow would cut these numbers off at 255.
            wide = np.asarray(upright).astype(np.uint32)
            upright = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
        elif upright.mode in ("I", "F"):
            raise DataError(
                f"its mode {upright.mode} does not say which numbers are black and white; save it "
                "with 8 or 16 bits a pixel"
            )
        image: Any = functional.resize(upright.convert("RGB"), [size])
    pixels = np.array(functional.center_crop(image, [size]))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _few(names: Iterable[str]) -> str:
    shown = [repr(name) for name in names]
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more
