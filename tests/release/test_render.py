"""Committed bundles are what the template and the table give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mod_components.release import backbones, render, render_bundle
from tests.backbones import build_network

# parameters in millions at 128³, four channels in and three out, as published
PUBLISHED = {
    "vit": 98.5,
    "unetr": 102.1,
    "unetrpp": 42.65,
    "swinunetr": 62.2,
    "swinunetrv2": 72.8,
    "segmamba": 67.4,
}
BUNDLES = Path(__file__).resolve().parents[2] / "bundles"


@pytest.mark.parametrize("name", backbones())
def test_committed_bundle_equals_its_source(name: str) -> None:
    folder = BUNDLES / f"{name}_mod"
    for path, content in render_bundle(name).items():
        assert (folder / path).read_bytes() == content.encode(), (
            f"{folder / path} differs: edit the template and run 'python -m mod_components render'"
        )


def test_every_committed_bundle_is_in_the_table() -> None:
    assert {path.name for path in BUNDLES.iterdir()} == {f"{name}_mod" for name in backbones()}


@pytest.mark.parametrize("name", backbones())
def test_no_placeholder_is_left(name: str) -> None:
    for path, content in render_bundle(name).items():
        if path.endswith(".json"):
            assert content == json.dumps(json.loads(content), indent=4, ensure_ascii=False) + "\n"
            assert '"..."' not in content
            assert '"<' not in content


def test_version_is_in_the_changelog() -> None:
    for name in backbones():
        metadata = json.loads(render_bundle(name)["configs/metadata.json"])
        assert metadata["version"] in metadata["changelog"]


def test_render_writes_what_differs_and_keeps_the_rest(tmp_path: Path) -> None:
    first = render(tmp_path, ["swinunetr"])
    assert {path.name for path in first} >= {"train.json", "LICENSE", "README.md"}
    assert render(tmp_path, ["swinunetr"]) == []
    weights = tmp_path / "swinunetr_mod" / "models" / "model.pt"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    config = tmp_path / "swinunetr_mod" / "configs" / "train.json"
    config.write_text("{}")
    assert render(tmp_path, ["swinunetr"]) == [config]
    assert weights.read_bytes() == b"weights"


def test_line_ends_of_windows_differ_and_are_mended(tmp_path: Path) -> None:
    """A checkout can have them; packing compares bytes and sends to this."""
    render(tmp_path, ["swinunetr"])
    config = tmp_path / "swinunetr_mod" / "configs" / "train.json"
    plain = config.read_bytes()
    config.write_bytes(plain.replace(b"\n", b"\r\n"))
    assert render(tmp_path, ["swinunetr"]) == [config]
    assert config.read_bytes() == plain


def test_git_keeps_the_line_ends_of_what_is_rendered() -> None:
    lines = (BUNDLES.parent / ".gitattributes").read_text().splitlines()
    assert "bundles/** text eol=lf" in lines
    assert "mod_components/release/templates/** text eol=lf" in lines


@pytest.mark.parametrize("name", PUBLISHED)
def test_number_of_parameters_in_the_table(name: str) -> None:
    row = backbones()[name]
    network = build_network(name, row["roi_size"], small=False)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert row["parameters"] == f"{count / 1e6:.1f} M"
    assert count == pytest.approx(PUBLISHED[name] * 1e6, rel=0.01)


def test_unknown_backbone_is_named() -> None:
    with pytest.raises(ValueError, match=r"no backbone 'unet' in the table; it has .*swinunetr"):
        render_bundle("unet")
