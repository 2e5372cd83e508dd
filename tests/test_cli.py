"""The verbs of ``python -m mod_components``, each from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import matplotlib.image
import pytest

from mod_components.data import make_sample
from tests.bundles.conftest import run_python
from tests.evaluation.test_tuning import make_runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sample(tmp_path_factory.mktemp("data") / "sample", cases=3)


def test_check(data: Path, tmp_path: Path) -> None:
    done = run_python("-m", "mod_components", "check", str(data), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Sample_003" in done.stdout
    assert "no problem found" in done.stdout
    bad = tmp_path / "bad"
    shutil.copytree(data, bad)
    (bad / "Sample_002" / "Sample_002_t1.nii.gz").write_bytes(b"")
    done = run_python("-m", "mod_components", "check", str(bad), "--json", cwd=tmp_path)
    assert done.returncode == 1
    problems = json.loads(done.stdout)["problems"]
    assert [(p["case"], p["severity"]) for p in problems] == [("Sample_002", "error")]
    done = run_python("-m", "mod_components", "check", str(tmp_path / "none"), cwd=tmp_path)
    assert done.returncode == 1
    assert "does not exist" in done.stdout
    assert "Traceback" not in done.stderr


def test_view(data: Path, tmp_path: Path) -> None:
    label = data / "Sample_001" / "Sample_001_seg.nii.gz"
    command = ["-m", "mod_components", "view", str(label.parent), "--pred", str(label)]
    done = run_python(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert matplotlib.image.imread(tmp_path / "Sample_001.png").ndim == 3
    done = run_python(*command[:3], "Nobody", "--dataset_dir", str(data), cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.startswith("error: ")
    assert "Nobody" in done.stderr


def test_compare(tmp_path: Path) -> None:
    header = "case," + ",".join(
        f"{metric}_{region}" for metric in ("dice", "hd95") for region in ("tc", "wt", "et")
    )
    for name, gain in (("a", 0.0), ("b", 0.1)):
        (tmp_path / name).mkdir()
        rows = [f"C{i},{0.5 + i / 50 + gain},0.8,0.7,5,6,{7 + i}" for i in range(6)]
        (tmp_path / name / "metrics_per_case.csv").write_text("\n".join([header, *rows]) + "\n")
    done = run_python("-m", "mod_components", "compare", "a", "b", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "TC" in done.stdout
    done = run_python("-m", "mod_components", "compare", "a", "b", "--json", cwd=tmp_path)
    first = run_python("-m", "mod_components", "compare", "--json", "a", "b", cwd=tmp_path)
    between = run_python("-m", "mod_components", "compare", "a", "--json", "b", cwd=tmp_path)
    assert first.stdout == done.stdout == between.stdout
    row = next(
        row
        for row in json.loads(done.stdout)["differences"]
        if (row["metric"], row["region"]) == ("dice", "TC")
    )
    assert row["n"] == 6
    assert row["difference"] == pytest.approx(0.1)
    assert row["p"] == pytest.approx(2 / 2**6)  # exact: all six signs alike


def test_tune(tmp_path: Path) -> None:
    runs = [str(run) for run in make_runs(tmp_path)]
    done = run_python("-m", "mod_components", "tune", *runs, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "all together" in done.stdout
    assert all((Path(run) / "models" / "postprocessing.json").is_file() for run in runs)
    done = run_python("-m", "mod_components", "tune", runs[0], cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.startswith("error: tune needs the runs of at least two folds")


def test_words_stay_words(data: Path, tmp_path: Path) -> None:
    """Fire would make a number of 2021 and a tuple of a,b; a switch may come first."""
    for name in ("2021", "a,b"):
        shutil.copytree(data, tmp_path / name)
        done = run_python("-m", "mod_components", "check", "--fast", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "headers and label maps only" in done.stdout
    done = run_python("-m", "mod_components", "check", "--json", "2021", cwd=tmp_path)
    assert len(json.loads(done.stdout)["cases"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check"], "error: check: give the folder"),
        (["check", "2021", "--workers", "many"], "error: workers must be a whole number"),
        (["check", "2021", "--fast", "maybe"], "error: expected true or false, got 'maybe'"),
        (["compare", "no", "where"], "error: "),
        (["compare", "1"], "error: compare: give two folders of evaluations, got 1"),
        (["curves", "runs/a/eval"], "error: curves: give each run as name=folder, got runs/a/eval"),
        (["curves", "a=1", "a=2"], "error: curves: two runs have one name"),
    ],
)
def test_plain_errors(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run_python("-m", "mod_components", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr


def test_a_console_without_our_letters(tmp_path: Path) -> None:
    command = ("-m", "mod_components", "check", "nowhere")
    done = run_python(*command, cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    assert "does not exist" in " ".join(done.stdout.split())  # lines are broken where the path ends
    assert "Traceback" not in done.stderr
