"""The folder for Hugging Face: the packed files, a card with front matter, weights in LFS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mod_components.errors import SettingsError
from mod_components.release import huggingface
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


@pytest.fixture
def cloned(tmp_path: Path) -> Path:
    folder = write_folder(tmp_path / "a_mod", FILES, {"settings": SETTINGS})
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref")
    return folder


@pytest.mark.parametrize("killed_at", range(1, 4))
def test_the_repository_outlives_a_call_that_is_killed(
    cloned: Path, killed_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each of the renamings; nothing but the next call puts it right."""
    rename, done = Path.rename, 0

    def killed(self: Path, target: Path) -> Path:
        nonlocal done
        done += 1
        if done == killed_at:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            write_folder(cloned, FILES, {"settings": SETTINGS})
    write_folder(cloned, FILES, {"settings": SETTINGS})
    assert (cloned / ".git" / "HEAD").read_text() == "ref"
    assert [path.name for path in cloned.parent.iterdir()] == ["a_mod"]


def test_the_repository_outlives_a_folder_that_cannot_be_deleted(
    cloned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise PermissionError(path)

    with monkeypatch.context() as patch:
        patch.setattr(huggingface.shutil, "rmtree", refuse)
        write_folder(cloned, FILES, {"settings": SETTINGS})
    write_folder(cloned, FILES, {"settings": SETTINGS})
    assert (cloned / ".git" / "HEAD").read_text() == "ref"
    assert [path.name for path in cloned.parent.iterdir()] == ["a_mod"]


def test_two_repositories_are_both_kept(cloned: Path) -> None:
    """One in the folder where releases before this one built: whose it is, nobody knows."""
    left = cloned.with_name(".a_mod.tmp") / ".git"
    left.mkdir(parents=True)
    with pytest.raises(SettingsError, match="only one can be kept: remove the other"):
        write_folder(cloned, FILES, {"settings": SETTINGS})
    assert left.is_dir()
    (cloned / ".git" / "HEAD").unlink()
    (cloned / ".git").rmdir()
    write_folder(cloned, FILES, {"settings": SETTINGS})
    assert (cloned / ".git").is_dir()
    assert not left.exists()


def test_the_picture_is_found_from_the_root_too() -> None:
    card = model_card("a_mod", "![Curves](curves.png)\n", {"settings": SETTINGS})
    assert card.endswith("![Curves](docs/curves.png)\n")


def test_a_figure_that_is_none_is_left_out() -> None:
    metrics = {**METRICS, "val_dice_et": float("nan")}
    card = model_card("a_mod", "", {"settings": SETTINGS, "metrics": metrics})
    assert card.count("value: ") == 3
