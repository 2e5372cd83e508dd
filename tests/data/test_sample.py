"""The sample data set: the same everywhere, whole or remade, and not solved by a threshold."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mod_components.data import (
    DataError,
    best_flair_threshold,
    check_cases,
    find_cases,
    find_layout,
    make_datalist,
    make_sample,
    scan,
    select,
)
from mod_components.data.phantom import SHAPE, make_phantom
from mod_components.data.sample import CASES, SEED, _cached
from tests.data.folders import OLD, write_case, write_volume

FEW = 6
# Of make_phantom((42, 0)): a change of the sample data set must be on purpose.
DIGEST = "60eb87042bd1de76a29a850fa56c254244d2375924e13d92d0ee257596ecaeea"


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(array.astype("<i2").tobytes() for array in arrays)).hexdigest()


def voxels(path: str) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sample(tmp_path_factory.mktemp("cache") / "sample", cases=FEW)


def test_voxels_are_the_same_everywhere(sample: Path) -> None:
    images, labels = make_phantom((SEED, 0))
    assert digest(*images, labels) == DIGEST
    case = find_cases(sample)[0]
    assert digest(*map(voxels, case["image"]), voxels(case["label"])) == DIGEST
    assert digest(*make_phantom((SEED + 1, 0))[0]) != digest(*images)


def test_it_is_an_ordinary_brats_data_set(sample: Path) -> None:
    layout, records = find_layout(sample), scan(sample)
    assert layout.name == "brats"
    assert check_cases(records, layout, full=True) == []
    assert [record.case for record in records] == [f"Sample_{i:03d}" for i in range(1, FEW + 1)]
    train, validation = select(make_datalist(sample))
    assert (len(train), len(validation)) == (5, 1)
    case = sample / "Sample_001"
    assert sorted(path.name for path in case.iterdir()) == sorted(
        f"Sample_001_{suffix}.nii.gz" for suffix in (*OLD, "seg")
    )
    image = nib.load(case / "Sample_001_flair.nii.gz")
    assert (image.shape, image.get_data_dtype()) == (SHAPE, np.dtype(np.int16))
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    np.testing.assert_allclose(image.header.get_zooms(), 2.5)


def test_brains_and_tumours(sample: Path) -> None:
    for index, case in enumerate(find_cases(sample)):
        images = np.stack([voxels(path) for path in case["image"]])
        label = voxels(case["label"])
        brain = images[0] > 0
        assert 0.15 < brain.mean() < 0.35
        assert ((images > 0) == brain).all()
        assert images.max() > 255
        assert not label[~brain].any()
        assert 0.003 < (label > 0).sum() / brain.sum() < 0.3
        # The sixth case has no enhancing tumour.
        assert set(np.unique(label)) == ({0, 1, 2} if index == 5 else {0, 1, 2, 4})
        usual = np.median(images[:, brain], axis=1)
        oedema = np.median(images[:, label == 2], axis=1)
        assert (oedema[2:] > 1.05 * usual[2:]).all()
        if index != 5:
            rim = np.median(images[0][label == 4])
            assert rim > 1.2 * usual[0]
            assert np.median(images[0][label == 1]) < 0.85 * rim


def test_no_threshold_solves_it(sample: Path) -> None:
    threshold, dice = best_flair_threshold(find_cases(sample))
    assert 0.5 < threshold < 2.0
    assert 0.40 < dice < 0.68


def test_threshold_against_a_plain_search(sample: Path) -> None:
    case = find_cases(sample)[2]
    flair, tumour = voxels(case["image"][3]).astype(float), voxels(case["label"]) > 0
    brain = flair != 0
    score = (flair - flair[brain].mean()) / flair[brain].std()
    results = {}
    for threshold in np.arange(-1, 4.001, 0.05):
        predicted = (score > threshold) & brain
        both = (predicted & tumour).sum()
        results[threshold] = 2 * both / (predicted.sum() + tumour.sum())
    best = max(results, key=lambda t: results[t])
    assert best_flair_threshold([case]) == pytest.approx((best, results[best]))


def test_threshold_of_a_stacked_file_and_of_no_tumour(tmp_path: Path) -> None:
    stack = np.zeros((4, 4, 4, 4), np.int16)
    stack[..., 0] = np.arange(64).reshape(4, 4, 4)
    write_volume(tmp_path / "image.nii.gz", stack)
    write_volume(tmp_path / "label.nii.gz", (stack[..., 0] > 48).astype(np.uint8))
    case = {"image": str(tmp_path / "image.nii.gz"), "label": str(tmp_path / "label.nii.gz")}
    assert best_flair_threshold([case], channel_order=(2, 1, 3, 0))[1] == pytest.approx(1.0)
    write_volume(tmp_path / "label.nii.gz", np.zeros((4, 4, 4), np.uint8))
    assert best_flair_threshold([case], channel_order=(2, 1, 3, 0))[1] == 1.0
    with pytest.raises(ValueError, match="at least one case"):
        best_flair_threshold([])


def test_made_once(sample: Path, capsys: pytest.CaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in sample.rglob("*")}
    assert make_sample(sample, cases=FEW) == sample
    assert {path: path.stat().st_mtime_ns for path in sample.rglob("*")} == before
    assert "making" not in capsys.readouterr().err
    assert [path.name for path in sample.parent.iterdir()] == [sample.name]


@pytest.mark.parametrize("lost", ["sample.json", "Sample_002", "Sample_001/Sample_001_t2.nii.gz"])
def test_a_half_written_folder_is_remade(tmp_path: Path, lost: str) -> None:
    folder = make_sample(tmp_path / "sample", cases=2)
    path = folder / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / "Sample_001" / "Sample_001_t1.nii.gz").write_bytes(b"half")
    make_sample(folder, cases=2)
    assert check_cases(scan(folder), find_layout(folder), full=True) == []
    assert len(scan(folder)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mod_components.data.sample.nib.save", stop)
        with pytest.raises(KeyboardInterrupt):
            make_sample(tmp_path / "sample", cases=1)
    assert list(tmp_path.iterdir()) == []


def test_what_killed_runs_left_is_removed(tmp_path: Path) -> None:
    old, running = tmp_path / ".sample.tmp-old", tmp_path / ".sample.tmp-running"
    for folder in (old, running):
        (folder / "Sample_001").mkdir(parents=True)
    os.utime(old, (1, 1))
    make_sample(tmp_path / "sample", cases=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [running.name, "sample"]


def test_two_at_the_same_time(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def make() -> None:
        try:
            make_sample(tmp_path / "sample", cases=1)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]
    assert len(scan(tmp_path / "sample")) == 1


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    write_case(tmp_path / "Mine", "Mine")
    with pytest.raises(DataError, match="holds Mine, which is not the sample"):
        make_sample(tmp_path, cases=1)
    assert len(scan(tmp_path)) == 1


def test_a_cache_that_can_not_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container whose user has no home."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/.cache")

    monkeypatch.setattr(Path, "mkdir", refuse)
    message = r"can't be made in .* \(Permission denied\): name a folder .* MOD_CACHE, or give --da"
    with pytest.raises(DataError, match=message):
        make_sample(tmp_path / "no" / "sample", cases=1)


def test_where_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert _cached(CASES, SEED) == tmp_path / "xdg" / "mod_components" / "sample_v1"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert _cached(CASES, SEED) == tmp_path / "home/.cache/mod_components/sample_v1"
    monkeypatch.setenv("MOD_CACHE", str(tmp_path / "mod"))
    folder = make_sample(cases=1, seed=3)
    assert folder == tmp_path / "mod" / "sample_v1_1_3"
    splits = json.loads((folder / "splits.json").read_text())
    assert splits == {"train": ["Sample_001"], "validation": []}


def test_no_cases(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        make_sample(tmp_path / "sample", cases=0)
