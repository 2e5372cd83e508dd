"""Prepared cases on disk: the same items as without, made anew when anything has changed."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor
from monai.data.utils import set_rnd
from monai.transforms import (
    Compose,
    CropForegroundd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    RandFlipd,
    RandSpatialCropd,
    SpatialPadd,
)

from mod_components.data import (
    CachedCases,
    FindModalitiesd,
    LabelsToRegionsd,
    RandShiftForegroundd,
    find_cases,
)
from mod_components.data.cache import KeptCases, _tell_of_caches
from mod_components.data.unlabelled import add_unlabelled
from mod_components.errors import DataError
from tests.data.folders import OLD, SHAPE, label_map, write_volume

BOTH = ["image", "label"]
CODES = {"necrosis": 1, "oedema": 2, "enhancing": 4}


@pytest.fixture
def cases(tmp_path: Path) -> list[dict[str, Any]]:
    """Three cases of noise with an empty border, so that cropping and scaling do something."""
    generator = np.random.default_rng(3)
    for case in ("A", "B", "C"):
        for suffix in OLD:
            write_voxels(tmp_path / "data" / case / f"{case}_{suffix}.nii.gz", generator)
        write_volume(tmp_path / "data" / case / f"{case}_seg.nii.gz", label_map())
    return find_cases(tmp_path / "data")


def write_voxels(path: Path, generator: np.random.Generator) -> None:
    voxels = np.zeros(SHAPE, np.int16)
    voxels[1:, 1:, 1:] = generator.integers(1, 999, [side - 1 for side in SHAPE])
    write_volume(path, voxels)


def chain(pad: int = 8, codes: dict[str, int] | None = None) -> Compose:
    return Compose(
        [
            FindModalitiesd("image"),
            LoadImaged(BOTH, reader="NibabelReader", ensure_channel_first=True),
            Orientationd(BOTH, axcodes="LPS", labels=None),
            LabelsToRegionsd("label", codes or CODES),
            CropForegroundd(BOTH, "image", allow_smaller=True),
            NormalizeIntensityd("image", nonzero=True, channel_wise=True),
            SpatialPadd(BOTH, (pad, 4, 4)),
            RandSpatialCropd(BOTH, (4, 4, 4), random_size=False),
            RandFlipd(BOTH, prob=0.5, spatial_axis=0),
            RandShiftForegroundd("image", 0.1, prob=1.0),
        ]
    )


def assert_equal(one: Any, other: Any) -> None:
    """Bit for bit, with types and metadata."""
    assert one.keys() == other.keys()
    assert one["case"] == other["case"]
    for key in BOTH:
        a, b = one[key], other[key]
        assert type(a) is type(b) is MetaTensor
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
        assert a.meta.keys() == b.meta.keys()
        for name, value in a.meta.items():
            assert type(value) is type(b.meta[name])
            np.testing.assert_array_equal(value, b.meta[name], strict=isinstance(value, np.ndarray))
        applied = [[step["class"] for step in x.applied_operations] for x in (a, b)]
        assert applied[0] == applied[1]


def entries(dataset: CachedCases) -> dict[str, tuple[int, int]]:
    """Inode and time of change of each entry, by name; nothing else may lie there."""
    assert dataset.kept is not None
    files = {path.name: path.stat() for path in dataset.kept.folder.iterdir()}
    del files["transforms.json"]
    assert all(name.endswith(".pt") for name in files)
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in files.items()}


@pytest.mark.parametrize("cache_rate", [0.0, 0.5, 1.0])
def test_items_equal_those_without_a_cache(
    cases: list[dict[str, Any]], tmp_path: Path, cache_rate: float
) -> None:
    plain = Dataset(cases, chain())
    set_rnd(plain, 5)
    expected = [plain[index] for index in (0, 1, 2, 0, -1)]
    for _ in range(2):  # an empty folder, then a full one
        dataset = CachedCases(cases, chain(), cache_rate, tmp_path / "cache", progress=False)
        set_rnd(dataset, 5)
        for index, item in zip((0, 1, 2, 0, -1), expected, strict=True):
            assert_equal(dataset[index], item)
        assert len(entries(dataset)) == 3
    assert [item["case"] for item in dataset[1:]] == ["B", "C"]


def test_a_full_cache_prepares_nothing(
    cases: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = CachedCases(cases, chain(), cache_dir=tmp_path)
    items = [first[index] for index in range(3)]
    before = entries(first)
    monkeypatch.setattr(LoadImaged, "__call__", None)
    second = CachedCases(cases, chain(), 1.0, tmp_path, progress=False)
    assert [second[index]["case"] for index in range(3)] == [item["case"] for item in items]
    assert entries(second) == before


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_equal_those_without_a_cache(
    cases: list[dict[str, Any]], tmp_path: Path, workers: int
) -> None:
    def epochs(dataset: Dataset) -> list[Any]:
        loader = DataLoader(dataset, batch_size=2, shuffle=True, num_workers=workers)
        batches = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            set_rnd(dataset, seed)
            batches += list(loader)
        return batches

    expected = epochs(CacheDataset(cases, chain(), cache_rate=0))
    for kept in (epochs(CachedCases(cases, chain(), cache_dir=tmp_path)) for _ in range(2)):
        for a, b in zip(kept, expected, strict=True):
            assert a["case"] == b["case"]
            assert all(torch.equal(a[key], b[key]) for key in BOTH)
            assert a["image"].meta["filename_or_obj"] == b["image"].meta["filename_or_obj"]


def test_transforms_without_randomness(cases: list[dict[str, Any]], tmp_path: Path) -> None:
    whole = Compose(chain().transforms[:6])
    expected = Dataset(cases, whole)[1]
    for _ in range(2):
        assert_equal(CachedCases(cases, whole, cache_dir=tmp_path)[1], expected)


@pytest.mark.parametrize("changed", ["A_t2.nii.gz", "A_seg.nii.gz"])
@pytest.mark.parametrize("listed", [False, True])
def test_a_changed_file_is_noticed(
    cases: list[dict[str, Any]], tmp_path: Path, changed: str, listed: bool
) -> None:
    if listed:  # one file of four, as another program lists a case
        cases = [{**case, "image": case["image"][0]} for case in cases]
    cache = tmp_path / "cache"
    first = CachedCases(cases, chain(), cache_dir=cache)
    _ = [first[index] for index in range(3)]
    before = entries(first)
    path = tmp_path / "data" / "A" / changed
    if "seg" in changed:
        write_volume(path, label_map((4, 2, 1)))
    else:
        write_voxels(path, np.random.default_rng(4))
    for dataset in (first, CachedCases(cases, chain(), cache_dir=cache)):
        plain = Dataset(cases, chain())
        for data in (dataset, plain):
            set_rnd(data, 1)
        for index in range(3):
            assert_equal(dataset[index], plain[index])
    after = entries(first)
    assert after.keys() == before.keys()
    assert sum(after[name] != before[name] for name in before) == 1


def test_changed_transforms_are_noticed(cases: list[dict[str, Any]], tmp_path: Path) -> None:
    def folder(transform: Compose) -> str:
        dataset = CachedCases(cases, transform, cache_dir=tmp_path)
        assert_equal(dataset[0], dataset[0]) if dataset.first_random is None else dataset[0]
        assert dataset.kept is not None
        return dataset.kept.folder.name

    fixed = folder(chain())
    assert folder(chain()) == fixed
    assert folder(chain(pad=12)) != fixed
    assert folder(chain(codes={**CODES, "enhancing": 3})) != fixed
    other_augmentation = chain()
    other_augmentation.transforms = other_augmentation.transforms[:8]
    assert folder(other_augmentation) == fixed
    used = chain()
    _ = Dataset(cases, used)[0]  # readers remember what they read
    assert folder(used) == fixed


def test_folders_of_old_transforms_go(cases: list[dict[str, Any]], tmp_path: Path) -> None:
    mine = tmp_path / "0123456789abcdef"
    mine.mkdir()
    (mine / "scan.pt").write_text("not of this cache")
    folders = []
    for pad in range(6, 16):
        folders.append(KeptCases(tmp_path, chain(pad).transforms[:7]).folder)
        os.utime(folders[-1] / "transforms.json", (pad, pad))
    assert [folder.is_dir() for folder in folders] == [False] * 2 + [True] * 8
    KeptCases(tmp_path, chain(8).transforms[:7])  # used again: now the next one is the oldest
    KeptCases(tmp_path, chain(99).transforms[:7])
    assert [folder.is_dir() for folder in folders] == [False] * 2 + [True, False] + [True] * 6
    assert (mine / "scan.pt").is_file()


def test_the_folder_of_a_training_stays_in_use(cases: list[dict[str, Any]], tmp_path: Path) -> None:
    dataset = CachedCases(cases, chain(), cache_dir=tmp_path)
    assert dataset.kept is not None
    marker = dataset.kept.folder / "transforms.json"
    content = marker.read_bytes()
    os.utime(marker, (1, 1))
    _ = dataset[0]
    assert marker.stat().st_mtime > time.time() - 60
    shutil.rmtree(dataset.kept.folder)  # eight other chains were used since
    _ = dataset[0]
    assert marker.read_bytes() == content  # so that this folder can go again, too
    assert len(entries(dataset)) == 1


def test_a_folder_cleared_away_in_a_write_is_made_again(
    cases: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = CachedCases(cases, chain(), cache_dir=tmp_path)
    assert dataset.kept is not None
    folder, replace, times = dataset.kept.folder, os.replace, [0]

    def late(source: Any, target: Any) -> None:
        times[0] += 1
        if times[0] == 1:
            shutil.rmtree(folder)
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    assert dataset[0]["case"] == "A"
    assert times == [3]  # an entry in vain, the marker, the entry
    assert len(entries(dataset)) == 1


@pytest.mark.parametrize("context_manager", [True, False])
def test_entries_are_read_with_older_libraries(
    cases: list[dict[str, Any]], tmp_path: Path, context_manager: bool,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """MONAI 1.5 declares less safe than 1.6, and torch 2.4 has no ``safe_globals``."""
    first = CachedCases(cases, chain(), cache_dir=tmp_path)
    _ = first[0]
    before = entries(first)
    if not context_manager:
        monkeypatch.delattr(torch.serialization, "safe_globals", raising=False)
    declared = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        _ = CachedCases(cases, chain(), cache_dir=tmp_path)[0]
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(declared)
    assert "damaged" not in caplog.text
    assert entries(first) == before


class Thing:
    """What a transform may put into an item."""


def test_only_what_can_be_read_back_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    item = {
        "scalar": np.float32(1.5), "count": np.int64(2), "path": tmp_path,
        "array": np.arange(3), "text": "a", "nested": {"image": torch.ones(2)},
    }  # fmt: skip
    kept = KeptCases(tmp_path, [])
    for _ in range(2):
        back = kept.get({"case": "A"}, lambda: item)
        assert str(back) == str(item)
    assert "damaged" not in caplog.text
    message = r"holds what cannot be .*\(tests\.data\.test_cache\.Thing\)\. Leave out --cache_dir"
    for thing in (Thing(), lambda: None):
        other = KeptCases(tmp_path / "other", [])
        with pytest.raises(DataError, match=message if isinstance(thing, Thing) else "lambda"):
            other.get({"case": "B"}, lambda thing=thing: {"thing": thing})
        assert [path.name for path in other.folder.iterdir()] == ["transforms.json"]


class Harmful:
    """What a pickle that runs code looks like."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("code-was-run",)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "zeros", "harmful", "another"])
def test_a_damaged_entry_is_made_anew(
    cases: list[dict[str, Any]],
    tmp_path: Path,
    damage: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = Compose(chain().transforms[:7])
    dataset = CachedCases(cases[:1], whole, cache_dir=tmp_path / "cache")
    expected = dataset[0]
    assert dataset.kept is not None
    (path,) = dataset.kept.folder.glob("*.pt")
    content = path.read_bytes()
    if damage == "harmful":
        torch.save({"stamps": Harmful()}, path)
    elif damage == "another":
        torch.save([1, 2], path)
    else:
        bad = {"cut": content[: len(content) // 2], "empty": b"", "text": b"words"}
        path.write_bytes(bad.get(damage, bytes(len(content))))
    assert_equal(dataset[0], expected)
    assert f"{path} is damaged" in caplog.text
    assert path.read_bytes() == content
    assert not Path("code-was-run").exists()
    caplog.clear()
    assert_equal(dataset[0], expected)
    assert "damaged" not in caplog.text


def test_that_pickle_would_have_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Harmful()))
    assert Path("code-was-run").exists()


def test_a_full_disk_is_one_error(cases: list[dict[str, Any]], tmp_path: Path) -> None:
    dataset = CachedCases(cases, chain(pad=200), cache_dir=tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # a stand-in for a full disk
    try:
        with pytest.raises(DataError) as caught:
            _ = dataset[0]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = str(caught.value)
    assert message.startswith(f"cache_dir {tmp_path} cannot be written to (File too large, ")
    assert message.endswith(
        " GB free): make room there, give another folder, or leave out --cache_dir."
    )
    assert entries(dataset) == {}
    assert dataset[0]["case"] == "A"  # there is room again


def test_a_folder_that_cannot_be(cases: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cache_dir .*/file cannot be written to \(Not a dir"):
        CachedCases(cases, chain(), cache_dir=tmp_path / "file")


def test_what_a_killed_run_left_goes(cases: list[dict[str, Any]], tmp_path: Path) -> None:
    folder = KeptCases(tmp_path, chain().transforms[:7]).folder
    old, fresh = folder / ".old.tmp", folder / ".fresh.tmp"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    KeptCases(tmp_path, chain().transforms[:7])
    assert (old.exists(), fresh.exists()) == (False, True)


def read_all(folder: Path, cases: list[dict[str, Any]], start: Any) -> None:
    start.wait()
    whole = Compose(chain(pad=64).transforms[:7])
    for _ in range(3):
        dataset = CachedCases(cases, whole, cache_dir=folder)
        plain = Dataset(cases, whole)
        for index in range(len(cases)):
            assert_equal(dataset[index], plain[index])
            assert dataset.kept is not None
            for path in dataset.kept.folder.glob("*.pt"):
                path.unlink(missing_ok=True)  # so that all write all the time


def test_processes_that_write_at_once(cases: list[dict[str, Any]], tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Event()
    arguments = (tmp_path / "cache", cases, start)
    processes = [context.Process(target=read_all, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert not list((tmp_path / "cache").glob("*/.*.tmp"))


def test_one_line_tells_of_the_caches(
    cases: list[dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    _tell_of_caches.cache_clear()
    CachedCases(cases, chain(), 1.0, progress=False)
    CachedCases(cases, chain(), cache_dir=tmp_path)
    CachedCases([], chain())
    assert "--cache_dir FOLDER" not in caplog.text
    for _ in range(2):
        CachedCases(cases, chain())
    assert caplog.text.count("--cache_dir FOLDER") == 1


def test_unlabelled_scans_are_kept_too(cases: list[dict[str, Any]], tmp_path: Path) -> None:
    labelled, others = cases[:1], [{"case": c["case"], "image": c["image"]} for c in cases[1:]]

    def items(cache_dir: str) -> list[Any]:
        dataset = CachedCases(labelled, chain(), cache_dir=cache_dir)
        mixed = add_unlabelled(dataset, others, ratio=2, cache_dir=cache_dir)
        set_rnd(mixed, 9)
        return [mixed[0] for _ in range(4)]

    expected = items("")
    for _ in range(2):
        for a, b in zip(items(str(tmp_path / "cache")), expected, strict=True):
            assert all(torch.equal(a[key], b[key]) for key in (*BOTH, "unlabelled"))
            assert torch.equal(a["unlabelled_key"], b["unlabelled_key"])
    assert len(list((tmp_path / "cache").glob("*/*.pt"))) == 3
