"""Packed bundles where this project is not installed: downloaded, loaded, run."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from mod_components.release.pack import pack
from mod_components.release.vendor import vendored_name
from tests.backbones import BACKBONES
from tests.bundles.conftest import REPOSITORY, run_bundle, run_python
from tests.release.runs import make_run

GUIDE = REPOSITORY / "docs" / "how-to" / "load-a-bundle.md"
WITHOUT_PACKAGE = "import sys; sys.modules['mod_components'] = None"
NAMES = [f"{backbone}_mod" for backbone in BACKBONES]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A training of a small network of each backbone."""
    folder = tmp_path_factory.mktemp("runs")
    made = {}
    for number, backbone in enumerate(BACKBONES):
        torch.manual_seed(number)
        made[f"{backbone}_mod"] = make_run(folder / backbone, backbone)
    return made


@pytest.fixture(scope="module")
def dist(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All six, packed."""
    folder = tmp_path_factory.mktemp("dist")
    for name, run in runs.items():
        pack(name, run=run, dist=folder, bundles=REPOSITORY / "bundles")
    return folder


class Quiet(SimpleHTTPRequestHandler):
    """A server that prints nothing."""

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def server(dist: Path) -> Iterator[str]:
    """Address of a server of the zips on the loopback interface."""
    handler = functools.partial(Quiet, directory=str(dist))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> str:
    """``PYTHONPATH`` of a Python in which this project can't be imported."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(WITHOUT_PACKAGE)
    return str(folder)


@pytest.fixture(scope="module")
def downloaded(server: str, outside: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder into which MONAI has downloaded all six over HTTP."""
    folder = tmp_path_factory.mktemp("empty")
    calls = "\n".join(
        f"download(name={name!r}, bundle_dir='bundles', url='{server}/{name}_v0.1.0.zip')"
        for name in NAMES
    )
    run_program(f"from monai.bundle import download\n{calls}\n", folder, outside)
    return folder


def run_program(text: str, folder: Path, outside: str) -> None:
    done = run_python("-c", text, cwd=folder, PYTHONPATH=outside)
    assert done.returncode == 0, done.stderr[-3000:]


def examples() -> list[str]:
    """The Python examples of the how-to."""
    return re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)


def label_maps_here(runs: dict[str, Path], case: Path, folder: Path) -> dict[str, Any]:
    """Label maps of the repository's own bundles, made in a process like that of the others.

    What earlier tests have set in this one (deterministic kernels, threads) changes the rounding,
    and with it a voxel at the threshold.
    """
    configs = {name: str(REPOSITORY / "bundles" / name / "configs") for name in NAMES}
    models = {name: str(run / "models") for name, run in runs.items()}
    program = (
        "import numpy\nfrom monai.bundle import ConfigWorkflow\n"
        f"for name, configs in {configs!r}.items():\n"
        "    workflow = ConfigWorkflow(configs + '/inference.json', logging_file=False,\n"
        f"        workflow_type='inference', ckpt_dir={models!r}[name])\n"
        "    workflow.initialize()\n"
        f"    found = workflow.parser.get_parsed_content('segment')({str(case)!r})\n"
        f"    numpy.savez({str(folder)!r} + f'/{{name}}.npz', voxels=found, affine=found.affine)\n"
    )
    done = run_python("-c", program, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: np.load(folder / f"{name}.npz") for name in NAMES}


@pytest.fixture(scope="module")
def maps_here(
    runs: dict[str, Path], small_sample: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Label maps of a sample case by all six."""
    return label_maps_here(runs, small_sample / "Sample_002", tmp_path_factory.mktemp("maps"))


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_of_the_how_to(
    name: str,
    runs: dict[str, Path],
    maps_here: dict[str, Any],
    downloaded: Path,
    outside: str,
    small_sample: Path,
    tmp_path: Path,
) -> None:
    """Six lines from path to label map, and the network alone, also with MONAI's own defaults."""
    case = small_sample / "Sample_002"
    segment, load = (text.replace("swinunetr_mod", name) for text in examples())
    assert len([line for line in segment.splitlines() if line.strip()]) <= 6
    segment = segment.replace("/data/scans/BraTS2021_00495", str(case))
    home = ("monai.networks.nets.", f"{vendored_name()}.networks.")
    run_program(
        f"import numpy, torch\n{segment}\n"
        f"numpy.savez({str(tmp_path / 'map.npz')!r}, voxels=label_map, affine=label_map.affine)\n"
        f"{load}\nother = monai.bundle.load({name!r}, bundle_dir='bundles')\n"
        f"saved = torch.load({str(runs[name] / 'models' / 'model.pt')!r}, weights_only=True)\n"
        "for state in (network.state_dict(), other.state_dict()):\n"
        "    assert state.keys() == saved.keys()\n"
        "    assert all(torch.equal(state[key], saved[key]) for key in saved)\n"
        f"assert type(network).__module__.startswith({home!r})\n",
        downloaded,
        outside,
    )
    here, there = maps_here[name], np.load(tmp_path / "map.npz")
    assert len(np.unique(here["voxels"])) > 1
    np.testing.assert_array_equal(there["voxels"], here["voxels"])
    np.testing.assert_array_equal(there["affine"], here["affine"])


@pytest.mark.parametrize(
    "name", [pytest.param("swinunetr_mod", marks=pytest.mark.slow), "segmamba_mod"]
)
def test_the_command_writes_the_label_map_of_the_repository(
    name: str,
    maps_here: dict[str, Any],
    downloaded: Path,
    outside: str,
    small_sample: Path,
    tmp_path: Path,
) -> None:
    case = small_sample / "Sample_002"
    done = run_bundle(
        f"bundles/{name}/configs/inference.json",
        *("--dataset_dir", str(case), "--output_dir", str(tmp_path)),
        cwd=downloaded,
        PYTHONPATH=outside,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    there = nib.load(tmp_path / "Sample_002_seg.nii.gz")
    np.testing.assert_array_equal(there.dataobj, maps_here[name]["voxels"])


def test_download_from_a_file(dist: Path, outside: str, tmp_path: Path) -> None:
    url = (dist / "segmamba_mod_v0.1.0.zip").as_uri()
    done = run_python(
        *("-m", "monai.bundle", "download", "--name", "segmamba_mod"),
        *("--bundle_dir", "bundles", "--url", url),
        cwd=tmp_path,
        PYTHONPATH=outside,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path.name for path in (tmp_path / "bundles" / "segmamba_mod").iterdir()} == {
        *("LICENSE", "configs", "docs", "models", vendored_name())
    }


def test_get_bundle_as_the_guide_says(server: str, dist: Path, tmp_path: Path) -> None:
    """With Python alone: no site-packages at all."""
    (command,) = re.findall(r"^python get_bundle\.py .*$", GUIDE.read_text(), re.MULTILINE)
    words = command.replace("http://localhost:8000", server).split()[2:]
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(dist / "get_bundle.py"), *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "bundles" / "swinunetr_mod" / "models" / "model.pt").is_file()


@pytest.mark.parametrize(
    "name", [pytest.param("swinunetr_mod", marks=pytest.mark.slow), "segmamba_mod"]
)
def test_a_downloaded_bundle_trains_and_evaluates(
    name: str, downloaded: Path, outside: str, small_sample: Path, tmp_path: Path
) -> None:
    """With all of MOD, from the code in the bundle; its settings are those of its training."""
    configs = downloaded / "bundles" / name / "configs"
    done = run_bundle(
        configs / "train.json",
        *("--dataset_dir", str(small_sample), "--epochs", "1", "--val_interval", "1"),
        *("--batch_size", "1", "--num_workers", "0", "--cache_rate", "1.0", "--overlap", "0.1"),
        *("--train#trainer#epoch_length", "1", "--bundle_root", str(tmp_path)),
        cwd=tmp_path,
        PYTHONPATH=outside,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    old = torch.load(downloaded / "bundles" / name / "models" / "model.pt", weights_only=True)
    new = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert {key: value.shape for key, value in new.items()} == {
        key: value.shape for key, value in old.items()
    }
    done = run_bundle(
        configs / "evaluate.json",
        *("--dataset_dir", str(small_sample), "--ckpt_dir", str(tmp_path / "models")),
        *("--output_dir", str(tmp_path / "eval"), "--report_pictures", "1"),
        cwd=tmp_path,
        PYTHONPATH=outside,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "eval" / "metrics_per_case.csv").is_file()


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.timeout(3600)
def test_all_six_in_a_fresh_environment(
    runs: dict[str, Path], server: str, real_data: Path, tmp_path: Path
) -> None:
    """Only MONAI, torch, nibabel, Ignite, and the einops that MONAI's transformers need."""
    case = sorted((real_data / "brats2018_2mm").glob("Brats18_*"))[0]
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    packages = ["monai", "torch", "nibabel", "pytorch-ignite", "einops"]
    install = [python, "-m", "pip", "install", "-q", "-c", REPOSITORY / "constraints.txt"]
    subprocess.run([*install, *packages], check=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "here").mkdir()
    maps = label_maps_here(runs, case, tmp_path / "here")
    for name in NAMES:
        program = (
            "from monai.bundle import download, run\n"
            f"download(name={name!r}, bundle_dir='bundles', url='{server}/{name}_v0.1.0.zip')\n"
            f"run(config_file='bundles/{name}/configs/inference.json', dataset_dir={str(case)!r}, "
            f"output_dir='out/{name}')\n"
        )
        subprocess.run([python, "-c", program], cwd=tmp_path / "empty", check=True)
        there = nib.load(tmp_path / "empty" / "out" / name / f"{case.name}_seg.nii.gz")
        np.testing.assert_array_equal(there.dataobj, maps[name]["voxels"], err_msg=name)
        np.testing.assert_array_equal(there.affine, maps[name]["affine"], err_msg=name)
        assert len(np.unique(maps[name]["voxels"])) > 1
