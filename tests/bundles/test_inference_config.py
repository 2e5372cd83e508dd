"""``inference.json`` finds cases, channel order and label codes by itself, as training does."""

from __future__ import annotations

import errno
import gc
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from monai.transforms import SaveImage

from mod_components.data import case_name, find_cases, find_layout
from tests.bundles.conftest import REPOSITORY, run_bundle
from tests.data.folders import NEW, TASK01, write_case, write_volume

CONFIG = REPOSITORY / "bundles" / "swinunetr_mod" / "configs" / "inference.json"


def parsed(folder: Path, *ids: str, **settings: Any) -> list[Any]:
    workflow = ConfigWorkflow(
        str(CONFIG), logging_file=False, workflow_type=None, dataset_dir=str(folder), **settings
    )
    return [workflow.parser.get_parsed_content(name) for name in ids]


def refused(folder: Path, **settings: Any) -> str:
    with pytest.raises(RuntimeError) as caught:
        parsed(folder, "checks", **settings)
    return str(caught.value.__cause__)


def write_task(folder: Path, modality: dict[str, str], labels: dict[str, str]) -> Path:
    for case in ("BRATS_001", "BRATS_002"):
        write_volume(folder / "imagesTr" / f"{case}.nii.gz", np.zeros((6, 5, 4, 4), np.int16))
    write_volume(folder / "imagesTr" / "._BRATS_001.nii.gz", np.zeros((2, 2, 2), np.int16))
    content = {"modality": modality, "labels": labels}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_brats_folders(tmp_path: Path) -> None:
    write_case(tmp_path / "old" / "HGG" / "A_1", "A_1")
    write_case(tmp_path / "old" / "LGG" / "B_2", "B_2", codes=None, extension=".nii")
    write_case(tmp_path / "new" / "C-3", "C-3", suffixes=NEW, separator="-", codes=(1, 2, 3))
    for name, codes in (("old", [1, 2, 4]), ("new", [1, 2, 3])):
        datalist, label_codes, order_of = parsed(
            tmp_path / name, "datalist", "label_codes", "order_of"
        )
        found = [{"case": c["case"], "image": c["image"]} for c in find_cases(tmp_path / name)]
        assert datalist == found
        assert label_codes == codes
        assert order_of(datalist[0]["image"]) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("modality", "labels"),
    [
        (TASK01["modality"], TASK01["labels"]),
        (
            {"0": "T1w", "1": "T2w", "2": "T1gd", "3": "FLAIR"},
            {"0": "background", "3": "edema", "1": "non-enhancing tumor", "2": "enhancing tumour"},
        ),
    ],
)
def test_decathlon_folder(modality: dict[str, str], labels: dict[str, str], tmp_path: Path) -> None:
    folder = write_task(tmp_path / "Task01", modality, labels)
    datalist, codes, order_of = parsed(folder, "datalist", "label_codes", "order_of")
    layout = find_layout(folder)
    assert [c["case"] for c in datalist] == ["BRATS_001", "BRATS_002"]
    assert codes == layout.label_codes
    assert order_of(datalist[0]["image"]) == list(layout.channel_order)


def test_what_cannot_be_told_apart_is_refused(tmp_path: Path) -> None:
    write_case(tmp_path / "mixed" / "A", "A")
    write_case(tmp_path / "mixed" / "B", "B", suffixes=NEW, separator="-")
    assert "whose label codes differ" in refused(tmp_path / "mixed")
    write_case(tmp_path / "twice" / "1" / "A", "A")
    write_case(tmp_path / "twice" / "2" / "A", "A")
    message = refused(tmp_path / "twice")
    assert "holds case A twice" in message
    assert "1/A/A_t1.nii.gz" in message
    assert "2/A/A_t1.nii.gz" in message
    write_case(tmp_path / "own" / "A", "A")
    message = refused(tmp_path / "own", output_dir=str(tmp_path / "own" / "A"))
    assert "A_seg.nii.gz would be replaced" in message
    write_case(tmp_path / "shapes" / "A", "A")
    write_volume(tmp_path / "shapes" / "A" / "A_t2.nii.gz", np.zeros((3, 5, 4), np.int16))
    assert "Case A: its files differ in shape or affine" in refused(tmp_path / "shapes")
    shutil.rmtree(tmp_path / "twice" / "1" / "A")
    assert "model.pt does not exist" in refused(
        tmp_path / "twice", output_dir=str(tmp_path), ckpt_dir=str(tmp_path)
    )


def test_no_scan_is_written_over(tmp_path: Path) -> None:
    """Without a postfix a label map has the name of a 4D scan."""
    write_volume(tmp_path / "scan1.nii.gz", np.ones((6, 5, 4, 4), np.int16))
    message = refused(tmp_path, output_dir=str(tmp_path), output_postfix="")
    assert "scan1.nii.gz would be replaced" in message


@pytest.mark.parametrize(
    ("name", "value", "files"),
    [("T2", np.nan, "A_t2.nii.gz"), ("T1ce", np.inf, "A_t1ce.nii.gz")],
)
def test_a_scan_with_voxels_that_are_no_numbers(
    tmp_path: Path, name: str, value: float, files: str
) -> None:
    write_case(tmp_path / "A", "A")
    scan = np.ones((6, 5, 4), np.float32)
    scan[1, 2, 3] = value
    write_volume(tmp_path / "A" / files, scan)
    datalist, read = parsed(tmp_path, "datalist", "read")
    with pytest.raises(ValueError, match=rf"not numbers \(NaN or infinite\) in {name}, "):
        read(datalist[0]["image"])


@pytest.mark.parametrize("kind", ["four files", "one file"])
def test_a_download_that_was_cut_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "scan.nii.gz"
    if kind == "four files":
        path = write_case(tmp_path / "A", "A") / "A_t2.nii.gz"
    shape = (6, 5, 4) if kind == "four files" else (16, 16, 16, 4)
    noise = np.random.default_rng(0).integers(0, 999, shape)
    write_volume(path, noise.astype(np.int16))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    datalist, read = parsed(tmp_path, "datalist", "read")
    with pytest.raises(ValueError, match=rf"^{path} can't be read; copy or download it again \("):
        read(datalist[0]["image"])


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_what_is_no_image_is_named_before_anything_runs(tmp_path: Path, content: bytes) -> None:
    path = write_case(tmp_path / "A", "A") / "A_t2.nii.gz"
    path.write_bytes(content)
    assert refused(tmp_path).startswith(f"{path} can't be read; copy or download it again")


def test_files_of_other_shapes_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_volume(tmp_path / "P1.nii.gz", np.ones((6, 5, 4, 3), np.int16))
    write_volume(tmp_path / "P1_prob.nii.gz", np.ones((6, 5, 4, 3), np.int16))
    message = refused(tmp_path)
    assert message.startswith("No case ")
    assert "P1.nii.gz has shape (6, 5, 4, 3), and a case in one file has four channels" in message
    assert "P1_prob" not in message
    write_volume(tmp_path / "P2.nii.gz", np.ones((6, 5, 4, 4), np.int16))
    datalist, _ = parsed(tmp_path, "datalist", "note", load_pretrain=False)
    assert [case["case"] for case in datalist] == ["P2"]
    assert "note: " in (told := capsys.readouterr().err)
    assert "P1.nii.gz has shape (6, 5, 4, 3)" in told


def test_an_output_folder_that_can_not_be_written_is_told_first(tmp_path: Path) -> None:
    write_case(tmp_path / "A", "A")
    (tmp_path / "file").write_text("no folder")
    message = refused(tmp_path, load_pretrain=False, output_dir=str(tmp_path / "file" / "x"))
    assert message.startswith(f"{tmp_path}/file/x can't be written; make room there, or give ano")


def test_label_maps_are_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    writer, show = parsed(tmp_path, "whole_writer", "show_plain_errors")
    path = tmp_path / "out" / "A_seg.nii.gz"
    path.parent.mkdir()
    image = MetaTensor(torch.ones(1, 4, 4, 4), meta={"filename_or_obj": "A.nii.gz"})
    saving = SaveImage(path.parent, "seg", separate_folder=False, writer=writer, print_log=False)
    saving(image)
    before = path.read_bytes()

    def cut(_image: Any, part: str) -> None:
        Path(part).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("monai.data.image_writer.nib.save", cut)
    with pytest.raises(RuntimeError) as caught:
        saving(image)
    gc.collect()
    assert [(p.name, p.read_bytes()) for p in path.parent.iterdir()] == [(path.name, before)]
    show(RuntimeError, caught.value, None)
    assert capsys.readouterr().err == (
        f"error: {path} can't be written (No space left on device): make room there, or give "
        "another --output_dir.\n"
    )


def test_an_error_from_within_a_transform_is_its_message_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_case(tmp_path / "A", "A") / "A_t2.nii.gz"
    write_volume(path, np.full((6, 5, 4), np.nan, np.float32))
    seen: list[BaseException] = []
    monkeypatch.setattr("sys.excepthook", lambda _kind, error, _trace: seen.append(error))
    show, datalist, preprocessing = parsed(
        tmp_path, "show_plain_errors", "datalist", "preprocessing"
    )
    with pytest.raises(RuntimeError) as caught:
        preprocessing(datalist[0])
    show(RuntimeError, caught.value, None)
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "has voxels that are not numbers" in told
    assert not seen
    monkeypatch.setenv("MOD_TRACEBACK", "1")
    show(RuntimeError, caught.value, None)
    assert seen == [caught.value]


def test_labels_of_unknown_names(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "Task01", TASK01["modality"], {"1": "ED", "2": "NCR", "3": "ET"})
    with pytest.raises(RuntimeError) as caught:
        parsed(folder, "label_codes")
    message = str(caught.value.__cause__)
    assert f"{folder}: the labels " in message
    assert "correct their names" in message


def test_a_folder_that_is_linked_twice_counts_once(tmp_path: Path) -> None:
    write_case(tmp_path / "all" / "B", "B")
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "B").symlink_to(tmp_path / "all" / "B")
    (datalist,) = parsed(tmp_path, "datalist")
    assert datalist == [{"case": c["case"], "image": c["image"]} for c in find_cases(tmp_path)]


def test_a_folder_that_can_not_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else patients would be missing in what comes out, without a word."""
    for case in ("A", "B"):
        write_case(tmp_path / case, case)
    scan = os.scandir

    def refuse(path: str | Path) -> Any:
        if Path(path).name == "A":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    message = refused(tmp_path)
    assert f"{tmp_path / 'A'} can't be read (Permission denied)" in message


def test_names_of_label_maps(tmp_path: Path) -> None:
    """MONAI takes an ending off; of ids with dots it must not be a part."""
    (formatted,) = parsed(tmp_path, "name_formatter")
    names = ["1.2.840.1_t1ce.nii.gz", "1.2.840.2_t1ce.nii.gz", "P01_2019.03.nii", "B-t1c.nii.gz"]
    for name in names:
        meta = {"filename_or_obj": f"/data/{name}"}
        assert formatted(meta, None) == case_name(meta, None)


def test_linked_folders_and_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_case(tmp_path / "elsewhere" / "A", "A")
    write_volume(tmp_path / "elsewhere" / "hidden" / ".git" / "B_t1.nii.gz", np.ones((6, 5, 4)))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "A").symlink_to(tmp_path / "elsewhere" / "A")
    (tmp_path / "data" / "h").symlink_to(tmp_path / "elsewhere" / "hidden")
    (datalist,) = parsed(tmp_path / "data", "datalist")
    assert datalist == [
        {"case": c["case"], "image": c["image"]} for c in find_cases(tmp_path / "data")
    ]
    write_volume(tmp_path / "flat" / "C.nii.gz", np.ones((6, 5, 4, 4), np.int16))
    monkeypatch.chdir(tmp_path / "flat")
    datalist, order_of = parsed(Path("."), "datalist", "order_of")
    assert [c["case"] for c in datalist] == ["C"]
    assert order_of(datalist[0]["image"]) == [0, 1, 2, 3]


def test_codes_of_a_training_that_took_code_2_for_enhancing(tmp_path: Path) -> None:
    """Label maps then say what those of an evaluation say."""
    folder = write_task(tmp_path / "Task01", TASK01["modality"], TASK01["labels"])
    (tmp_path / "training.json").write_text(json.dumps({"settings": {"legacy_et": True}}))
    (codes,) = parsed(folder, "label_codes", checkpoint=str(tmp_path / "model.pt"))
    assert (
        codes == find_layout(folder, legacy_et=True).label_codes != find_layout(folder).label_codes
    )


@pytest.mark.parametrize("given", ["~/out", "out"])
def test_a_home_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_case(tmp_path / "A", "A")
    for config in ("train", "evaluate", "inference"):
        workflow = ConfigWorkflow(
            str(CONFIG.with_name(f"{config}.json")),
            logging_file=False,
            workflow_type=None,
            output_dir=given,
            ckpt_dir=given,
        )
        for name in ("output_path", *(["ckpt_path"] if config == "train" else [])):
            expected = given.replace("~", str(tmp_path))
            assert workflow.parser.get_parsed_content(name) == expected


def test_processes_that_read_can_be_started_anew() -> None:
    """Where a system does not fork, they get the transforms as pickles."""
    names = {"train": "validate#crop_to_brain", "evaluate": "preprocessing#transforms"}
    for config, name in names.items():
        file = str(CONFIG.with_name(f"{config}.json"))
        parser = ConfigWorkflow(file, logging_file=False, workflow_type=None).parser
        steps = [
            parser.get_parsed_content(f"{name}#{number}")
            for number, step in enumerate(parser.get(name))
            if "evaluation_data" not in str(step)
        ]
        pickle.dumps(steps)
        assert {"CropForegroundd", "EnsureFinited"} <= {type(step).__name__ for step in steps}


def test_a_case_whose_id_is_a_number(tmp_path: Path) -> None:
    for case in ("000", "001"):
        write_case(tmp_path / "data" / case, case)
    (datalist,) = parsed(tmp_path / "data", "datalist", case="001")
    assert [c["case"] for c in datalist] == ["001"]
    (datalist,) = parsed(tmp_path / "data", "datalist", case=0)
    assert datalist == []  # refused by the checks, not taken for all cases


def test_settings_lie_beside_the_checkpoint(tmp_path: Path) -> None:
    write_case(tmp_path / "data" / "A", "A")
    (tmp_path / "training.json").write_text(json.dumps({"settings": {"feature_size": 24}}))
    (size,) = parsed(tmp_path / "data", "feature_size", checkpoint=str(tmp_path / "model.pt"))
    assert size == 24


def test_command_line_ends_with_the_error_alone(tmp_path: Path) -> None:
    done = run_bundle(CONFIG, "--dataset_dir", "/data/none", cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: Data folder /data/none does not exist")
    assert "Traceback" not in done.stderr
