"""The folder for Hugging Face: the packed files, a card with front matter, weights in LFS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mod_components.release.huggingface import model_card, write_folder
from tests.release.runs import METRICS

SETTINGS = {"dataset_dir": 'Brain: "A"', "validation_cases": 4}
FILES: dict[str, bytes | Path] = {
    "docs/README.md": b"# Model overview\n\nText.\n",
    "models/model.pt": b"weights",
    "configs/train.json": b"{}\n",
}


def front_matter(card: str) -> tuple[dict[str, Any], str]:
    yaml = pytest.importorskip("yaml")
    empty, front, text = card.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(front), text


def test_the_front_matter() -> None:
    card = model_card("a_mod", "# Model\n", {"settings": SETTINGS, "metrics": METRICS})
    front, text = front_matter(card)
    assert text == "\n# Model\n"
    assert (front["license"], front["library_name"]) == ("apache-2.0", "monai")
    assert front["pipeline_tag"] == "image-segmentation"
    assert {"medical", "monai", "brain-tumour"} <= set(front["tags"])
    (model,) = front["model-index"]
    assert model["name"] == "a_mod"
    (result,) = model["results"]
    assert result["task"] == {"type": "image-segmentation"}
    assert result["dataset"]["name"] == 'Brain: "A"'
    assert "4 validation cases, which chose the epoch" in result["dataset"]["split"]
    assert [(m["type"], m["value"]) for m in result["metrics"]] == [
        ("dice", round(value, 4)) for value in METRICS.values()
    ]


def test_no_figure_that_was_not_measured() -> None:
    """Plain reading, where there is no YAML."""
    card = model_card("a_mod", "# Model\n", {"settings": SETTINGS, "metrics": {}})
    assert "model-index" not in card
    card = model_card("a_mod", "# Model\n", {"settings": SETTINGS, "metrics": METRICS})
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert card.count("value: ") == 4
    assert "      value: 0.6254\n" in card


def test_the_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "a_mod"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("ref")
    (folder / "old.txt").write_text("old")
    weights = tmp_path / "weights"
    weights.write_bytes(b"weights")
    files = {**FILES, "models/model.pt": weights}
    assert write_folder(folder, files, {"settings": SETTINGS}) == folder
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == {*FILES, "README.md", ".gitattributes", ".git/HEAD"}
    assert (folder / "models" / "model.pt").read_bytes() == b"weights"
    assert "*.pt filter=lfs diff=lfs merge=lfs -text\n" in (folder / ".gitattributes").read_text()
    assert (folder / "README.md").read_text().endswith("---\n\n# Model overview\n\nText.\n")
    assert {path.name for path in tmp_path.iterdir()} == {"a_mod", "weights"}
