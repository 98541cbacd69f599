from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from metaweight.data import CIFAR_MEAN, CIFAR_STD, DatasetUnavailableError, load_cifar


class Python2Pickler(pickle.Pickler):
    """Writes NumPy dtypes with an integer flag, as the official files have them.

    They also have a second one, with which only NumPy 2.4.0 to 2.4.4 warn; without it all later
    releases do.
    """

    def reducer_override(self, obj):
        if isinstance(obj, np.dtype):
            _, (name, *_), state = obj.__reduce__()
            return np.dtype, (name, 0), state
        return NotImplemented


def write(path: Path, content: dict) -> str:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(content)
    path.write_bytes(buffer.getvalue())
    return hashlib.md5(buffer.getvalue()).hexdigest()


def pixels(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """Three samples a batch in the official layout, with checksums to match."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    train = []
    for i in range(1, 6):
        batch = {"data": pixels(3, i), "labels": [i, i - 1, 9 - i], "batch_label": f"{i} of 5"}
        train.append([f"data_batch_{i}", write(folder / f"data_batch_{i}", batch)])
    test = write(folder / "test_batch", {"data": pixels(4, 9), "labels": [3, 8, 8, 0]})
    meta = write(folder / "batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", test]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": meta})
    return tmp_path


@pytest.fixture
def packed(cifar10, monkeypatch):
    """The same as an archive, without the folder."""
    folder = cifar10 / "cifar-10-batches-py"
    archive = cifar10 / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    return archive


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", (tmp_path / "nowhere.tar.gz").as_uri())


def test_batches_are_joined_and_planes_are_red_green_blue(cifar10):
    train, test = load_cifar("cifar10", cifar10)
    rows = np.concatenate([pixels(3, i) for i in range(1, 6)])
    assert train.inputs.dtype == torch.uint8
    assert train.inputs.shape == (15, 3, 32, 32)
    assert train.inputs.is_contiguous()
    for sample, channel, y, x in [(0, 0, 0, 0), (4, 1, 5, 17), (14, 2, 31, 30)]:
        value = rows[sample, channel * 1024 + y * 32 + x]
        assert train.inputs[sample, channel, y, x] == value
    assert train.labels.tolist() == [v for i in range(1, 6) for v in (i, i - 1, 9 - i)]
    assert test.labels.tolist() == [3, 8, 8, 0]
    assert torch.equal(test.clean_labels, test.labels)
    assert test.indices.tolist() == [0, 1, 2, 3]
    assert train.num_classes == 10


def test_cifar100_has_fine_labels(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    batch = {"data": pixels(2, 0), "fine_labels": [99, 4], "coarse_labels": [1, 0]}
    names = {"fine_label_names": [str(i) for i in range(100)]}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", write(folder / "train", batch)]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", write(folder / "test", batch)]])
    md5 = write(folder / "meta", names)
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": md5})
    train, _ = load_cifar("cifar100", tmp_path)
    assert train.labels.tolist() == [99, 4]
    assert train.num_classes == 100


def test_an_archive_in_place_is_unpacked_without_network(packed, no_network):
    train, test = load_cifar("cifar10", packed.parent)
    assert (len(train), len(test)) == (15, 4)


def test_an_archive_repairs_a_broken_folder(packed, no_network):
    (packed.parent / "cifar-10-batches-py").mkdir()
    assert len(load_cifar("cifar10", packed.parent)[0]) == 15


def test_download_fetches_the_archive(packed, site, tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", f"{site}/{packed.name}")
    train, _ = load_cifar("cifar10", tmp_path / "new", download=True)
    assert len(train) == 15


@pytest.mark.parametrize(
    ("name", "folder", "archive"),
    [
        ("cifar10", "cifar-10-batches-py", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python", "cifar-100-python.tar.gz"),
    ],
)
def test_missing_data_say_what_where_and_what_to_do(tmp_path, name, folder, archive, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetUnavailableError) as caught:
        load_cifar(name, "data")
    root = tmp_path / "data"
    assert str(caught.value) == (
        f"{name} was looked for in {root / folder}, which does not exist: put the official "
        f"archive {archive} into {root}, where it is unpacked at the next start, or use "
        "`--dataset digits`, which needs no download."
    )
    assert not root.exists()


def test_an_altered_file_is_found(cifar10):
    with (cifar10 / "cifar-10-batches-py" / "data_batch_3").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DatasetUnavailableError, match="is incomplete or fails its checksums: put"):
        load_cifar("cifar10", cifar10)


def test_an_altered_archive_is_named(packed, no_network):
    packed.write_bytes(b"not the archive")
    with pytest.raises(DatasetUnavailableError, match=r"archive /.*tar\.gz fails its checksum: "):
        load_cifar("cifar10", packed.parent)
    assert packed.read_bytes() == b"not the archive"


def test_a_failed_download_says_why(tmp_path, no_network):
    message = "does not exist, and downloading it failed .*No such file.*: put the official"
    with pytest.raises(DatasetUnavailableError, match=message):
        load_cifar("cifar10", tmp_path, download=True)


def test_a_download_of_something_else_is_refused(site, tmp_path, monkeypatch):
    (tmp_path / "page.html").write_text("Moved.")
    monkeypatch.setattr(CIFAR10, "url", f"{site}/page.html")
    with pytest.raises(DatasetUnavailableError, match=r"failed \(File not found or corrupted\): "):
        load_cifar("cifar10", tmp_path / "data", download=True)


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="asked for 'cifar'; use 'cifar10' or 'cifar100'"):
        load_cifar("cifar", tmp_path)


def test_normalisation_constants_are_the_published_ones():
    assert [255 * m for m in CIFAR_MEAN] == pytest.approx([125.3, 123.0, 113.9])
    assert [255 * s for s in CIFAR_STD] == pytest.approx([63.0, 62.1, 66.7])
