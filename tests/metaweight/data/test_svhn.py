from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from torchvision.datasets import SVHN

from metaweight.data import DatasetUnavailableError, load_svhn

TRAIN, TEST = "train_32x32.mat", "test_32x32.mat"
TRAIN_LABELS, TEST_LABELS = [1, 10, 9, 2, 10], [3, 10, 4]


def pixels(count: int, seed: int) -> np.ndarray:
    shape = (32, 32, 3, count)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, labels: list[int], seed: int) -> str:
    column = np.array(labels, dtype=np.uint8)[:, None]
    savemat(path, {"X": pixels(len(labels), seed), "y": column})
    return hashlib.md5(path.read_bytes()).hexdigest()


def use(monkeypatch, address: str, sums: dict[str, str]) -> None:
    files = {"train": TRAIN, "test": TEST}
    entries = {k: [f"{address}/{file}", file, sums[file]] for k, file in files.items()}
    monkeypatch.setattr(SVHN, "split_list", SVHN.split_list | entries)


@pytest.fixture
def sums(tmp_path) -> dict[str, str]:
    """A few images in the official format, and their checksums."""
    return {
        TRAIN: write(tmp_path / TRAIN, TRAIN_LABELS, 0),
        TEST: write(tmp_path / TEST, TEST_LABELS, 1),
    }


@pytest.fixture
def svhn(tmp_path, sums, monkeypatch) -> Path:
    """The folder of these files, which cannot be downloaded from anywhere."""
    use(monkeypatch, (tmp_path / "nowhere").as_uri(), sums)
    return tmp_path


def test_images_and_labels_are_those_of_the_files(svhn):
    train, test = load_svhn(svhn)
    assert train.inputs.dtype == torch.uint8
    assert train.inputs.shape == (5, 3, 32, 32)
    assert train.inputs.is_contiguous()
    source = pixels(5, 0)
    for sample, channel, y, x in [(0, 0, 0, 0), (2, 1, 5, 17), (4, 2, 31, 30)]:
        assert train.inputs[sample, channel, y, x] == source[y, x, channel, sample]
    assert torch.equal(test.inputs, torch.from_numpy(pixels(3, 1)).permute(3, 2, 0, 1))


def test_the_digit_zero_is_class_zero(svhn):
    train, test = load_svhn(svhn)
    assert train.labels.tolist() == [1, 0, 9, 2, 0]
    assert test.labels.tolist() == [3, 0, 4]
    for part in (train, test):
        assert torch.equal(part.clean_labels, part.labels)
        assert part.indices.tolist() == list(range(len(part)))
        assert part.num_classes == 10


def test_the_official_files_are_asked_for():
    assert SVHN.split_list["train"][1] == TRAIN
    assert SVHN.split_list["test"][1] == TEST


def test_download_fetches_what_is_not_there(tmp_path, sums, site, monkeypatch):
    use(monkeypatch, site, sums)
    root = tmp_path / "new"
    root.mkdir()
    (root / TRAIN).write_bytes((tmp_path / TRAIN).read_bytes())
    (tmp_path / TRAIN).unlink()
    train, test = load_svhn(root, download=True)
    assert (len(train), len(test)) == (5, 3)


def test_missing_data_say_what_where_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetUnavailableError) as caught:
        load_svhn("data")
    root = tmp_path / "data"
    assert str(caught.value) == (
        f"svhn was looked for in {root / TRAIN}, which does not exist: put the official file of "
        "http://ufldl.stanford.edu/housenumbers/train_32x32.mat there, or use `--dataset digits`, "
        "which needs no download."
    )
    assert not root.exists()


def test_a_missing_test_file_is_named(svhn):
    (svhn / TEST).unlink()
    with pytest.raises(DatasetUnavailableError, match=f"{TEST}, which does not exist: put"):
        load_svhn(svhn)


def test_an_altered_file_is_found(svhn):
    with (svhn / TRAIN).open("ab") as file:
        file.write(b"x")
    with pytest.raises(DatasetUnavailableError, match=f"{TRAIN}, which fails its checksum: put"):
        load_svhn(svhn)


def test_a_failed_download_says_why(svhn):
    message = "does not exist, and downloading it failed .*No such file.*: put the official"
    with pytest.raises(DatasetUnavailableError, match=message):
        load_svhn(svhn / "data", download=True)


def test_a_download_of_something_else_is_refused(tmp_path, sums, site, monkeypatch):
    use(monkeypatch, site, sums)
    (tmp_path / TRAIN).write_text("Moved.")
    message = re.escape("fails its checksum, and downloading it failed (File not found or corrupt")
    with pytest.raises(DatasetUnavailableError, match=message):
        load_svhn(tmp_path / "data", download=True)


def test_without_scipy_the_error_says_how_to_install_it(svhn, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.delitem(sys.modules, "scipy.io")
    message = "SciPy, which reads its files, could not be imported .*: pip install scipy"
    with pytest.raises(ImportError, match=message):
        load_svhn(svhn)
