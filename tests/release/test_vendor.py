"""What a bundle brings along is all that it needs, under its new name alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from mod_components import __version__
from mod_components.errors import SettingsError
from mod_components.release import backbones, render_bundle
from mod_components.release.vendor import (
    _renamed,
    config_modules,
    vendored_files,
    vendored_name,
)

PACKAGE = vendored_name()


def of_bundle(name: str) -> dict[str, str]:
    texts = render_bundle(name, package=PACKAGE)
    configs = [text for path, text in texts.items() if path.startswith("configs/")]
    return vendored_files(PACKAGE, config_modules(configs, PACKAGE))


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    return of_bundle("swinunetr")


def test_the_name_tells_the_release() -> None:
    assert vendored_name("1.2.3rc1") == "mod_components_1_2_3rc1"
    assert __version__.replace(".", "_") in PACKAGE
    assert PACKAGE.isidentifier()


@pytest.mark.parametrize("name", backbones())
def test_all_bundles_of_a_release_share_their_code(name: str, files: dict[str, str]) -> None:
    """The first of a server's bundles to be imported serves the others."""
    assert of_bundle(name) == files


def test_what_makes_and_studies_bundles_stays_at_home(files: dict[str, str]) -> None:
    parts = {path.split("/")[1] for path in files}
    assert parts >= {"__init__.py", "mod", "networks", "data", "handlers", "losses.py"}
    assert not parts & {"release", "study", "cli.py", "__main__.py"}
    with pytest.raises(SettingsError, match=r"mod_components\.study.* belongs into no bundle"):
        vendored_files(PACKAGE, ["mod_components.study"])
    for root in ("mod_components.nothing.X", "numpy"):
        with pytest.raises(SettingsError, match=f"{root} is no module of mod_components"):
            vendored_files(PACKAGE, [root])


def test_every_file_is_sound_and_names_itself_alone(files: dict[str, str]) -> None:
    for path, text in files.items():
        for node in ast.walk(ast.parse(text, path)):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] != "mod_components", path
            elif isinstance(node, ast.Import):
                assert all(a.name.split(".")[0] != "mod_components" for a in node.names), path
            elif isinstance(node, ast.Name):
                assert node.id != "mod_components", path
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert "mod_components." not in node.value.replace(f"{PACKAGE}.", ""), path
                assert "mod_components::" not in node.value.replace(f"{PACKAGE}::", ""), path
        compile(text, path, "exec")


def test_it_is_imported_where_the_package_is_not(files: dict[str, str], tmp_path: Path) -> None:
    """And beside the package, in one process: their operators and loggers do not meet."""
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    modules = [
        path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in files
    ]
    code = "\n".join(
        [
            "import importlib, sys",
            "if sys.argv[1] == 'alone': sys.modules['mod_components'] = None",
            "else: import mod_components.networks",
            f"for name in {modules!r}: importlib.import_module(name)",
            "foreign = [n for n in sys.modules if n.startswith('mod_components.')]",
            "assert sys.argv[1] == 'beside' or not foreign, foreign",
            f"import {PACKAGE} as package",
            f"assert package.__version__ == {__version__!r}",
        ]
    )
    for how in ("alone", "beside"):
        done = subprocess.run(
            [sys.executable, "-c", code, how],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]


def test_what_is_imported_late_comes_along() -> None:
    """The closure of one module, against an independent reading of the import statements."""
    found = {
        path.removeprefix(f"{PACKAGE}/")
        for path in vendored_files(PACKAGE, ["mod_components.losses"])
    }
    assert {"__init__.py", "losses.py"} <= found
    found = set(vendored_files("x", ["mod_components.networks.tap"]))
    assert "x/networks/__init__.py" in found  # a package's own file runs first
    assert "x/networks/segmamba.py" in found  # which imports this


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import mod_components\n", "import new\n"),
        ("from mod_components.a import b\n", "from new.a import b\n"),
        ("    v = mod_components.__version__\n", "    v = new.__version__\n"),
        ('log("mod_components.mod")\n', 'log("new.mod")\n'),
        ('op("mod_components::scan")\n', 'op("new::scan")\n'),
        ('"""A\nmod_components.a\nC"""\n', '"""A\nnew.a\nC"""\n'),
        ('":class:`~mod_components.a.B`"\n', '":class:`~new.a.B`"\n'),
        ('f"{mod_components.x} at {y!r}"\n', 'f"{new.x} at {y!r}"\n'),
        ('"python -m mod_components tune"\n', None),
        ('"run mod_components. It is"\n', None),
        ('cache / "mod_components"\n', None),
        ('"~/.cache/mod_components.d"\n', None),
        ('d["mod_components"] = my_mod_components.x\n', None),
        ("x = 1  # mod_components.a\n", None),
    ],
)  # fmt: skip
def test_names_are_changed_where_they_mean_the_package(text: str, expected: str | None) -> None:
    if text.startswith("    "):
        text, expected = f"if x:\n{text}", f"if x:\n{expected}"
    assert _renamed(text, "new") == (text if expected is None else expected)
