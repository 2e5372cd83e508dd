"""``segment`` of ``inference.json``: a path in, a label map out, as a run writes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from mod_components.release import render_bundle
from tests.backbones import build_network, small_settings

Segment = Callable[[Any], Any]
MODALITIES = ("t1ce", "t1", "t2", "flair")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a small network of random weights."""
    folder = tmp_path_factory.mktemp("bundles") / "swinunetr_mod"
    for path, text in render_bundle("swinunetr").items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    (folder / "models").mkdir()
    torch.manual_seed(5)
    network = build_network("swinunetr", (64, 64, 64))
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    settings = {**small_settings("swinunetr"), "roi_size": [64, 64, 64], "overlap": 0.1}
    (folder / "models" / "training.json").write_text(json.dumps({"settings": settings}))
    return folder


def workflow(bundle: Path, **settings: Any) -> ConfigWorkflow:
    made = ConfigWorkflow(
        str(bundle / "configs" / "inference.json"),
        logging_file=False,
        workflow_type="inference",
        **settings,
    )
    made.initialize()
    return made


@pytest.fixture(scope="module")
def segment(bundle: Path) -> Segment:
    function: Segment = workflow(bundle).parser.get_parsed_content("segment")
    return function


@pytest.fixture(scope="module")
def case(small_sample: Path) -> Path:
    return sorted(path for path in small_sample.iterdir() if path.is_dir())[0]


@pytest.fixture(scope="module")
def written(bundle: Path, case: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The label map that a run of the config writes for the case."""
    out = tmp_path_factory.mktemp("out")
    made = workflow(bundle, dataset_dir=str(case), output_dir=str(out))
    made.run()
    return nib.load(out / f"{case.name}_seg.nii.gz")


def refused(segment: Segment, image: Any) -> str:
    """The message of the error that the user can mend."""
    with pytest.raises((RuntimeError, ValueError)) as caught:
        segment(image)
    error: BaseException | None = caught.value
    while error is not None and type(error).__name__ != "UserError":
        error = error.__cause__
    return str(error)


def stacked(case: Path, target: Path, order: tuple[int, ...] = (0, 1, 2, 3)) -> Path:
    """The four files of a case as one 4D file."""
    scans = [nib.load(case / f"{case.name}_{name}.nii.gz") for name in MODALITIES]
    volume = np.stack([np.asarray(scans[channel].dataobj) for channel in order], axis=-1)
    target.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume, scans[0].affine), target)
    return target


def test_any_way_to_name_a_case_gives_the_map_that_a_run_writes(
    segment: Segment, case: Path, written: Any, tmp_path: Path
) -> None:
    files = [case / f"{case.name}_{name}.nii.gz" for name in MODALITIES]
    truth = np.asarray(written.dataobj)
    assert set(np.unique(truth)) <= {0, 1, 2, 4}
    assert len(np.unique(truth)) > 1
    ways = [case, str(files[0]), files[3], [str(file) for file in files]]
    ways.append(stacked(case, tmp_path / "scan.nii.gz"))
    for way in ways:
        found = segment(way)
        assert (found.ndim, found.dtype) == (3, torch.uint8)
        np.testing.assert_array_equal(found.numpy(), truth)
        np.testing.assert_array_equal(found.affine, written.affine)


def test_channels_in_the_order_that_a_dataset_json_declares(
    segment: Segment, case: Path, written: Any, tmp_path: Path
) -> None:
    """FLAIR, T1, T1ce, T2: as Decathlon Task01 has them, with and without its dataset.json."""
    task01 = (3, 1, 0, 2)
    named = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    flat = stacked(case, tmp_path / "flat" / "scan.nii.gz", task01)
    assert (segment(flat).numpy() != np.asarray(written.dataobj)).any()
    (flat.parent / "dataset.json").write_text(json.dumps({"modality": named}))
    np.testing.assert_array_equal(segment(flat).numpy(), written.dataobj)
    inside = stacked(case, tmp_path / "task" / "imagesTs" / "scan.nii.gz", task01)
    np.testing.assert_array_equal(segment(inside).numpy(), written.dataobj)
    (tmp_path / "task" / "dataset.json").write_text(
        json.dumps({"modality": {"0": "T1ce", "1": "T1", "2": "T2", "3": "FLAIR"}})
    )
    assert (segment(inside).numpy() != np.asarray(written.dataobj)).any()


def test_what_is_no_case_is_refused(segment: Segment, case: Path, tmp_path: Path) -> None:
    shutil.copytree(case, tmp_path / "lacking")
    (tmp_path / "lacking" / f"{case.name}_t2.nii.gz").unlink()
    other = tmp_path / "lacking" / f"{case.name}_flair.nii.gz"
    for image, words in (
        (other, "lacks a modality"),
        (shutil.copy(other, tmp_path / "alone.nii.gz"), "give one file with four channels"),
    ):
        assert words in refused(segment, image)


def test_a_run_finds_4d_files_beside_label_maps(bundle: Path, case: Path, tmp_path: Path) -> None:
    """A folder of studies as MONAI Label has it."""
    stacked(case, tmp_path / "studies" / "one.nii.gz")
    stacked(case, tmp_path / "studies" / "two.nii")
    label = tmp_path / "studies" / "labels" / "final" / "one.nii.gz"
    label.parent.mkdir(parents=True)
    shutil.copy(case / f"{case.name}_seg.nii.gz", label)
    shutil.copy(case / f"{case.name}_seg.nii.gz", tmp_path / "studies" / "one_seg.nii.gz")
    made = workflow(bundle, dataset_dir=str(tmp_path / "studies"))
    datalist = made.parser.get_parsed_content("datalist")
    assert [item["case"] for item in datalist] == ["one", "two"]


def test_a_pickle_is_refused(bundle: Path, case: Path, tmp_path: Path) -> None:
    """Nothing of a checkpoint is run, and the error names the file."""
    trace = tmp_path / "trace"

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (trace,))

    weights = tmp_path / "model.pt"
    torch.save({"weight": Hostile()}, weights)
    made = workflow(
        bundle, dataset_dir=str(case), output_dir=str(tmp_path), checkpoint=str(weights)
    )
    with pytest.raises(RuntimeError) as caught:
        made.run()
    assert "model.pt is no file of weights alone" in str(caught.value.__cause__)
    assert not trace.exists()


def test_a_folder_with_one_case_and_no_other(
    segment: Segment, case: Path, written: Any, small_sample: Path, tmp_path: Path
) -> None:
    shutil.copytree(case, tmp_path / "mac")
    for name in MODALITIES:
        (tmp_path / "mac" / f"._{case.name}_{name}.nii.gz").write_bytes(b"junk")
    np.testing.assert_array_equal(segment(tmp_path / "mac").numpy(), written.dataobj)
    stacked(case, tmp_path / "one" / "scan.nii.gz")
    np.testing.assert_array_equal(segment(tmp_path / "one").numpy(), written.dataobj)
    other = sorted(path for path in small_sample.iterdir() if path.is_dir())[1]
    for folder in (case, other):
        shutil.copytree(folder, tmp_path / "two", dirs_exist_ok=True)
    (tmp_path / "none").mkdir()
    assert refused(segment, tmp_path / "two").startswith(
        f"{tmp_path / 'two'} holds several cases, {case.name}, {other.name}: give"
    )
    assert "holds no case: give a folder" in refused(segment, tmp_path / "none")
    assert "nowhere does not exist: give" in refused(segment, tmp_path / "nowhere")


def test_a_run_tells_cases_from_other_files(bundle: Path, case: Path, tmp_path: Path) -> None:
    """Beside the four files of a case nothing else is one; a file that can't be read is named."""
    shutil.copytree(case, tmp_path / "a" / case.name)
    stacked(case, tmp_path / "a" / case.name / "dwi.nii.gz")
    (tmp_path / "a" / case.name / "mask.nii.gz").write_bytes(b"junk")
    made = workflow(bundle, dataset_dir=str(tmp_path / "a"))
    datalist = made.parser.get_parsed_content("datalist")
    assert [item["case"] for item in datalist] == [case.name]
    (tmp_path / "a" / "broken.nii.gz").write_bytes(b"junk")
    made = workflow(bundle, dataset_dir=str(tmp_path / "a"))
    with pytest.raises(RuntimeError) as caught:
        made.run()
    assert "broken.nii.gz can't be read; copy or download it again" in str(caught.value.__cause__)


def test_weights_that_are_not_there(bundle: Path, case: Path, tmp_path: Path) -> None:
    made = workflow(bundle, checkpoint=str(tmp_path / "model.pt"))
    segment = made.parser.get_parsed_content("segment")
    assert f"{tmp_path / 'model.pt'} does not exist: train first" in refused(segment, case)


def test_4d_files_and_four_files_side_by_side(bundle: Path, case: Path, tmp_path: Path) -> None:
    """A flat folder of studies holds both."""
    shutil.copytree(case, tmp_path / "studies")
    stacked(case, tmp_path / "studies" / "stack.nii.gz")
    made = workflow(bundle, dataset_dir=str(tmp_path / "studies"))
    datalist = made.parser.get_parsed_content("datalist")
    assert sorted(item["case"] for item in datalist) == [case.name, "stack"]
