"""The how-to page's seventh backbone works as the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow, verify_net_in_out
from monai.networks.nets import SegResNet

from mod_components.data import make_sample
from mod_components.errors import SettingsError
from mod_components.release import backbones, render
from tests.bundles.conftest import run_bundle, run_python

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "another-backbone.md"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seventh")
    row = re.search(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert row is not None
    (folder / "segresnet.json").write_text(row[1])
    command = ["render", "--table", "segresnet.json", "--folder", "my_bundles"]
    done = run_python("-m", "mod_components", *command, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "my_bundles" / "segresnet_mod"


def test_it_trains_with_mod_and_fits_monais_class(bundle: Path, tmp_path: Path) -> None:
    data = make_sample(tmp_path / "sample", cases=4)
    small = backbones(bundle.parents[1] / "segresnet.json")["segresnet"]["test_settings"]
    done = run_bundle(
        bundle / "configs" / "train.json",
        *("--dataset_dir", str(data), "--epochs", "1", "--val_interval", "1"),
        *("--roi_size", "[64,64,64]", "--batch_size", "1", "--num_workers", "0"),
        *(part for key, value in small.items() for part in (f"--{key}", str(value))),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    network = SegResNet(spatial_dims=3, in_channels=4, out_channels=3, dropout_prob=0.2, **small)
    network.load_state_dict(weights, strict=True)
    header = (bundle / "eval" / "train.csv").read_text().splitlines()[0].split(",")
    assert {"loss_seg", "loss_token", "loss_class", "loss_recon"} <= set(header)


def test_it_is_a_whole_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle)
    workflow = ConfigWorkflow("configs/train.json", logging_file=False, workflow_type="train")
    workflow.initialize()
    assert workflow.check_properties() == []
    count = sum(parameter.numel() for parameter in workflow.network_def.parameters())
    assert f"{count / 1e6:.1f} M parameters" in (bundle / "docs" / "README.md").read_text()
    verify_net_in_out(
        "network_def",
        meta_file="configs/metadata.json",
        config_file="configs/inference.json",
        device="cpu",
    )


def test_a_row_that_lacks_something_is_named(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"unet": {"title": "U-Net"}}))
    with pytest.raises(SettingsError, match=r"table\.json: the row 'unet' lacks network_def"):
        backbones(path)
    path.write_text("{")
    with pytest.raises(SettingsError, match="is no table of backbones"):
        backbones(path)
    with pytest.raises(SettingsError, match="is no table of backbones"):
        backbones(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("segresnet_vae", "SegResNet", r"must be named by letters, .* without '_v', behind which"),
        ("seg resnet", "SegResNet", "must be named by letters, digits"),
        ("segresnet", "", "has a network_def that is no object with a _target_"),
        (
            "segresnet",
            "monai.networks.nets.segresnet.SegResNet",
            r"has the network .*: write monai\.networks\.nets\.SegResNet\.",
        ),
    ],
)
def test_what_could_not_be_packed_is_refused_before_it_is_trained(
    name: str, target: str, message: str, tmp_path: Path
) -> None:
    written = re.search(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert written is not None
    row = json.loads(written[1])["segresnet"]
    row["network_def"] = {**row["network_def"], "_target_": target} if target else "SegResNet"
    (tmp_path / "table.json").write_text(json.dumps({name: row}))
    with pytest.raises(SettingsError, match=message):
        backbones(tmp_path / "table.json")


def test_rows_of_ones_own_are_rendered_alone(bundle: Path, tmp_path: Path) -> None:
    table = backbones(bundle.parents[1] / "segresnet.json")
    written = render(tmp_path, table=table)
    assert {path.relative_to(tmp_path).parts[0] for path in written} == {"segresnet_mod"}
