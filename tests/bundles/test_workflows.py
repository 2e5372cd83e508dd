"""A trained bundle does everything that a bundle is for, small and on the CPU."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, load, verify_net_in_out

from mod_components.data import make_datalist, select
from tests.backbones import build_network, needs_package
from tests.bundles.conftest import REPOSITORY, run_bundle, run_python, short_training

CONFIGS = REPOSITORY / "bundles" / "swinunetr_mod" / "configs"
WITHOUT_PACKAGE = "import sys; sys.modules['mod_components'] = None"


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_seed_orders_the_cases_of_several_processes() -> None:
    config = json.loads((CONFIGS / "multi_gpu_train.json").read_text())["train#sampler"]

    def order(seed: int) -> list[int]:
        here = {"dataset": list(range(12)), "num_replicas": 2, "rank": 0}
        parser = ConfigParser({"seed": seed, "sampler": {**config, **here}})
        return list(parser.get_parsed_content("sampler"))

    assert order(1) == order(1) != order(2)


def test_training_leaves_a_flat_model_and_its_story(trained: Path, backbone: str) -> None:
    weights = torch.load(trained / "models" / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
    of_mod = {"mod", "views", "fill", "teacher", "tokenizer", "centre", "token_head", "class_head"}
    assert not [name for name in weights if of_mod & set(name.split("."))]
    story = json.loads((trained / "models" / "training.json").read_text())
    assert story["settings"]["bundle"] == f"{backbone}_mod"
    assert story["settings"]["training_cases"] == 3
    assert 0 <= story["metrics"]["val_mean_dice"] <= 1
    rows = read_csv(trained / "eval" / "train.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for term in ("loss", "loss_seg", "loss_token", "loss_class", "loss_recon"):
        assert all(np.isfinite(float(row[term])) for row in rows), term
    assert float(rows[0]["token_max_entropy"]) == pytest.approx(np.log(512))
    assert len(read_csv(trained / "eval" / "validation.csv")) == 2
    assert (trained / "eval" / "previews").is_dir()
    assert list((trained / "eval" / "tensorboard").glob("events.*"))


def test_weights_fit_the_plain_network(trained: Path, backbone: str) -> None:
    """Every tensor, and none besides: MOD leaves no trace."""
    network = build_network(backbone, (64, 64, 64))
    home = "mod_components.networks." if needs_package(backbone) else "monai.networks.nets."
    assert type(network).__module__.startswith(home)
    network.load_state_dict(
        torch.load(trained / "models" / "model.pt", weights_only=True), strict=True
    )


@pytest.mark.parametrize(
    ("config", "kind"),
    [("train.json", "train"), ("evaluate.json", "eval"), ("inference.json", "inference")],
)
def test_check_properties(trained: Path, small_sample: Path, config: str, kind: str) -> None:
    workflow = ConfigWorkflow(
        str(trained / "configs" / config),
        logging_file=False,
        workflow_type=kind,
        dataset_dir=str(small_sample),
        roi_size=[64, 64, 64],
        ckpt_dir=str(trained / "models"),
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def test_evaluate_is_an_overlay_too(trained: Path, small_sample: Path) -> None:
    """The Model Zoo lays ``evaluate.json`` over ``train.json``: it works both ways."""
    workflow = ConfigWorkflow(
        [str(trained / "configs" / name) for name in ("train.json", "evaluate.json")],
        logging_file=False,
        workflow_type="train",
        dataset_dir=str(small_sample),
        ckpt_dir=str(trained / "models"),
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    data = workflow.parser.get_parsed_content("evaluation_data")
    assert [case["case"] for case in data.validation] == ["Sample_004"]


def test_evaluate_and_infer_agree(
    trained: Path, backbone: str, small_sample: Path, tmp_path: Path
) -> None:
    configs = trained / "configs"
    done = run_bundle(
        configs / "evaluate.json", "--output_dir", str(tmp_path / "evaluated"), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    _, held_out = select(make_datalist(small_sample))
    rows = read_csv(tmp_path / "evaluated" / "metrics_per_case.csv")
    assert [row["case"] for row in rows] == [case["case"] for case in held_out]

    (tmp_path / "site").mkdir()
    if not needs_package(backbone):  # a MONAI network is segmented with where we are not installed
        (tmp_path / "site" / "sitecustomize.py").write_text(WITHOUT_PACKAGE)
    done = run_bundle(
        configs / "inference.json",
        *("--dataset_dir", str(small_sample), "--output_dir", str(tmp_path / "inferred")),
        *("--save_probabilities", "true"),
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path / "site"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((tmp_path / "inferred").glob("*_seg.nii.gz"))) == 4
    for case, row in zip(held_out, rows, strict=True):
        scan = nib.load(case["label"])
        truth = np.asarray(scan.dataobj)
        evaluated = nib.load(tmp_path / "evaluated" / f"{case['case']}_seg.nii.gz")
        inferred = nib.load(tmp_path / "inferred" / f"{case['case']}_seg.nii.gz")
        np.testing.assert_array_equal(inferred.affine, scan.affine)
        np.testing.assert_array_equal(inferred.dataobj, evaluated.dataobj)
        voxels = np.asarray(inferred.dataobj)
        assert inferred.get_data_dtype() == np.uint8
        assert set(np.unique(voxels)) <= {0, 1, 2, 4}
        whole, true = voxels > 0, truth > 0
        dice = 2 * (whole & true).sum() / max(1, whole.sum() + true.sum())
        assert float(row["dice_wt"]) == pytest.approx(dice, abs=1e-5)
        probabilities = nib.load(tmp_path / "inferred" / f"{case['case']}_prob.nii.gz")
        assert probabilities.shape == (*truth.shape, 3)
        np.testing.assert_array_equal(
            whole, (np.asarray(probabilities.dataobj) >= 0.5).any(axis=-1)
        )


def test_one_case(trained: Path, small_sample: Path, tmp_path: Path) -> None:
    workflow = ConfigWorkflow(
        str(trained / "configs" / "inference.json"),
        logging_file=False,
        workflow_type="infer",
        dataset_dir=str(small_sample),
        case="Sample_002",
        output_dir=str(tmp_path),
    )
    workflow.initialize()
    workflow.run()
    assert [path.name for path in tmp_path.iterdir()] == ["Sample_002_seg.nii.gz"]


def test_loaded_network_has_the_trained_weights(trained: Path) -> None:
    torch.manual_seed(123)
    network = load(
        name=trained.name,
        bundle_dir=str(trained.parent),
        workflow_type="inference",
        source="github",
        workflow_name="ConfigWorkflow",
    )
    saved = torch.load(trained / "models" / "model.pt", weights_only=True)
    assert isinstance(network, torch.nn.Module)
    state = network.state_dict()
    assert state.keys() == saved.keys()
    assert all(torch.equal(state[name], saved[name]) for name in saved)


def test_verify_net_in_out(trained: Path) -> None:
    configs = trained / "configs"
    verify_net_in_out(
        "network_def",
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.json"),
        device="cpu",
        bundle_root=str(trained),
        roi_size=[128, 128, 128],  # what the metadata say of networks of one input size
    )


def test_two_processes_train(
    bundle: Path, backbone: str, small_sample: Path, tmp_path: Path
) -> None:
    configs = [bundle / "configs" / name for name in ("train.json", "multi_gpu_train.json")]
    done = run_python(
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("-m", "monai.bundle", "run", "--config_file", str([str(path) for path in configs])),
        *short_training(backbone, small_sample, epochs=2),
        *("--fold", "0", "--bundle_root", str(tmp_path)),
        cwd=tmp_path,
        threads=1,
        CUDA_VISIBLE_DEVICES="",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "models" / "model.pt").is_file()
    assert torch.load(tmp_path / "models" / "last.pt", weights_only=True)["iteration"] == 2
    assert len(read_csv(tmp_path / "eval" / "train.csv")) == 2


def test_resume(trained: Path, backbone: str, small_sample: Path, tmp_path: Path) -> None:
    """The finished training goes on for one more epoch, with every part of its state."""
    shutil.copytree(trained / "models", tmp_path / "models")
    before = torch.load(tmp_path / "models" / "last.pt", weights_only=True)
    done = run_bundle(
        trained / "configs" / "train.json",
        *short_training(backbone, small_sample, epochs=3),
        *("--resume", "true", "--bundle_root", str(tmp_path)),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "after epoch 2 of 3" in done.stdout + done.stderr
    after = torch.load(tmp_path / "models" / "last.pt", weights_only=True)
    assert (before["epoch"], after["epoch"]) == (2, 3)
    assert before.keys() == after.keys()
    assert after["mod.teacher"]["_extra_state"]["steps"] == 9


def test_baseline_trains(bundle: Path, backbone: str, small_sample: Path, tmp_path: Path) -> None:
    done = run_bundle(
        [bundle / "configs" / name for name in ("train.json", "baseline.json")],
        *short_training(backbone, small_sample, epochs=1),
        *("--bundle_root", str(tmp_path)),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    network = build_network(backbone, (64, 64, 64))
    network.load_state_dict(torch.load(tmp_path / "models" / "model.pt", weights_only=True))
    assert "loss_token" not in read_csv(tmp_path / "eval" / "train.csv")[0]


def test_baseline_is_the_plain_pipeline(bundle: Path, small_sample: Path, tmp_path: Path) -> None:
    configs = [str(bundle / "configs" / name) for name in ("train.json", "baseline.json")]
    workflow = ConfigWorkflow(
        configs, logging_file=False, workflow_type="train", dataset_dir=str(small_sample)
    )
    workflow.initialize()
    assert workflow.parser.get_parsed_content("mod") == {}
    workflow = ConfigWorkflow(
        configs[0],
        logging_file=False,
        workflow_type="train",
        dataset_dir=str(small_sample),
        roi_size=[64, 64, 64],
        use_predictor="false",
    )
    workflow.initialize()
    mod = workflow.parser.get_parsed_content("mod")
    assert set(mod) == {"views", "teacher", "tokenizer"}
