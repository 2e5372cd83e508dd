"""``bundle_root`` is the bundle's folder from wherever a config is run."""

from __future__ import annotations

from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow

from tests.bundles.conftest import REPOSITORY

BUNDLE = REPOSITORY / "bundles" / "swinunetr_mod"


@pytest.mark.parametrize("config", ["train.json", "evaluate.json", "inference.json"])
@pytest.mark.parametrize(
    ("start", "path"),
    [
        (REPOSITORY, "bundles/swinunetr_mod/configs"),
        (BUNDLE, "configs"),
        (BUNDLE / "configs", "."),
        (None, str(BUNDLE / "configs")),
    ],
    ids=["repository", "bundle", "configs", "elsewhere"],
)
def test_bundle_root(
    config: str, start: Path | None, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(start or tmp_path)
    workflow = ConfigWorkflow(f"{path}/{config}", logging_file=False)
    workflow.initialize()
    assert Path(workflow.bundle_root) == BUNDLE
    assert workflow.parser.get_parsed_content("ckpt_dir") == str(BUNDLE / "models")


def test_bundle_root_can_be_given(tmp_path: Path) -> None:
    workflow = ConfigWorkflow(
        str(BUNDLE / "configs" / "train.json"), logging_file=False, bundle_root=str(tmp_path)
    )
    workflow.initialize()
    assert workflow.parser.get_parsed_content("ckpt_dir") == f"{tmp_path}/models"
