"""Trained bundles as zips that run where this package is not installed."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

from mod_components import __version__
from mod_components.errors import CheckpointError, SettingsError
from mod_components.files import DATALIST, POSTPROCESSING, file_digest, save_json, write_atomically
from mod_components.release.card import CURVES, card_values, metadata_values
from mod_components.release.curves import training_curves
from mod_components.release.huggingface import write_folder
from mod_components.release.privacy import cleaned, datalist_without_paths, without_case_ids
from mod_components.release.render import backbones, render_bundle
from mod_components.release.trained import (
    check_weights,
    read_training,
    recorded_network,
    trained_row,
)
from mod_components.release.vendor import config_modules, vendored_files, vendored_name

__all__ = ["pack", "pack_all"]

INFO = "model_info.json"
_DATE = (1980, 1, 1, 0, 0, 0)  # the oldest that a zip can tell
_UNIX = 3
_LEVEL = 9


@dataclass(frozen=True)
class _Packed:
    """A bundle that has passed all checks: its files, by path inside it."""

    name: str
    files: Mapping[str, bytes | Path]
    training: Mapping[str, Any]


def pack(
    name: str,
    *,
    bundles: str | Path = "bundles",
    run: str | Path = "",
    dist: str | Path = "dist",
    base_url: str = "",
    datalist: bool = False,
    table: str | Path = "",
) -> Path:
    """Pack one trained bundle, with all checks before anything is written.

    Writes ``<name>_v<version>.zip``, an entry of ``model_info.json``, ``get_bundle.py`` and the
    folder ``huggingface/<name>``. The same inputs give the same bytes.

    Args:
        name: of the bundle, with or without its ``_mod``.
        bundles: the folder of the repository's bundles.
        run: folder (``bundle_root``) of the training, with ``models/``; by default the bundle's.
        dist: the folder to write into.
        base_url: where the zip will be found; empty if that is not known.
        datalist: put ``datalist.json`` into the bundle, with the ids of all cases.
        table: a JSON file with rows for backbones of your own, in place of the package's.

    Returns:
        The zip.

    Raises:
        SettingsError: for a bundle that the table does not have, or whose files are not as
            rendered, or a version without a changelog entry, or a ``dist`` that can't be written.
        CheckpointError: for a training that is missing, damaged, or another bundle's.
    """
    rows = backbones(table or None)
    ready = _prepare(name, rows, Path(bundles), Path(run) if run else None, datalist)
    return _write([ready], Path(dist), base_url)[0]


def pack_all(
    *,
    bundles: str | Path = "bundles",
    dist: str | Path = "dist",
    base_url: str = "",
    datalist: bool = False,
    table: str | Path = "",
) -> list[Path]:
    """Pack every bundle of the table, or none.

    Args:
        bundles: the folder of the repository's bundles.
        dist: the folder to write into.
        base_url: where the zips will be found.
        datalist: as for :func:`pack`.
        table: as for :func:`pack`.

    Returns:
        The zips.

    Raises:
        SettingsError: as :func:`pack`.
        CheckpointError: when a bundle has no weights, naming all of these; and as :func:`pack`.
    """
    root, rows = Path(bundles), backbones(table or None)
    bare = [n for n in rows if not (root / f"{n}_mod" / "models" / "model.pt").is_file()]
    if bare:
        commands = "\n".join(_training_command(root / f"{name}_mod") for name in bare)
        raise CheckpointError(
            f"{len(bare)} bundles in {root} have no models/model.pt: {', '.join(bare)}. Train "
            f"them first, or pack the others one by one:\n{commands}"
        )
    ready = [_prepare(name, rows, root, None, datalist) for name in rows]
    return _write(ready, Path(dist), base_url)


def _prepare(
    name: str, table: Mapping[str, Any], bundles: Path, run: Path | None, datalist: bool
) -> _Packed:
    """Check a bundle and its training, and gather what goes into the zip."""
    short = name.removesuffix("_mod")
    if short not in table:
        raise SettingsError(f"no bundle {name!r} to pack; there are {', '.join(table)}.")
    full = f"{short}_mod"
    _check_texts(short, table, bundles / full)
    root = run or bundles / full
    models = root / "models"
    training = read_training(models, full, _training_command(bundles / full))
    row = trained_row(table[short], training["settings"], models / "training.json")
    row["parameters"] = f"{check_weights(row, models / 'model.pt') / 1e6:.1f} M"
    training["settings"].setdefault("network", recorded_network(row))  # older ones lack it
    files: dict[str, bytes | Path] = {"models/model.pt": models / "model.pt"}
    package = vendored_name()
    curves = training_curves(root, training, full)
    training = cleaned({k: v for k, v in training.items() if k != "curves"}, package)
    if curves:
        files[f"docs/{CURVES}"] = curves
        training["curves"] = CURVES
    files["models/training.json"] = _json(training, models / "training.json")
    files |= _other_records(models, datalist)
    values = {
        **card_values(training, row, package=package, with_datalist=datalist),
        **metadata_values(training, row),
    }
    texts = render_bundle(short, {short: row}, package=package, values=values)
    configs = [text for path, text in texts.items() if path.startswith("configs/")]
    texts |= vendored_files(package, config_modules(configs, package))
    files |= {path: text.encode() for path, text in texts.items()}
    return _Packed(full, files, training)


def _other_records(models: Path, datalist: bool) -> dict[str, bytes]:
    files = {}
    path = models / POSTPROCESSING
    if path.is_file():
        found = _read_json(path, "make it again with tune")
        if found.get("weights") not in (None, file_digest(models / "model.pt")):
            raise CheckpointError(
                f"{path} was not made for {models / 'model.pt'} as it is: make it again with tune, "
                "or take it away."
            )
        try:
            found = found if datalist else without_case_ids(found)
        except ValueError as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}): make it again with tune."
            ) from error
        files[f"models/{POSTPROCESSING}"] = _json(found, path)
    if datalist:
        found = _read_json(models / DATALIST, "train again, or leave out --datalist")
        files[f"models/{DATALIST}"] = _json(datalist_without_paths(found), models / DATALIST)
    return files


def _check_texts(short: str, table: Mapping[str, Any], folder: Path) -> None:
    """The bundle in the repository is what will be packed, and its version has been told of."""
    rendered = render_bundle(short, dict(table))
    metadata = json.loads(rendered["configs/metadata.json"])
    if __version__ not in metadata["changelog"]:
        raise SettingsError(
            f"mod_components/release/release.json has no entry for version {__version__} in its "
            "changelog: add one, and run 'python -m mod_components render'."
        )
    stale = [
        path
        for path, text in rendered.items()
        if not (folder / path).is_file() or (folder / path).read_bytes() != text.encode()
    ]
    if stale:
        raise SettingsError(
            f"{folder} is not as rendered ({', '.join(stale[:5])}): run 'python -m mod_components "
            "render' from the repository's root (with --table and --folder for a bundle of your "
            "own), and train again if a setting has changed."
        )


def _training_command(folder: Path) -> str:
    return f"python -m monai.bundle run --config_file {folder / 'configs' / 'train.json'}"


def _write(bundles: Sequence[_Packed], dist: Path, base_url: str) -> list[Path]:
    try:
        return _write_all(bundles, dist, base_url)
    except OSError as error:
        raise SettingsError(
            f"{dist} cannot be written ({error}): give --dist a folder that can."
        ) from error


def _write_all(bundles: Sequence[_Packed], dist: Path, base_url: str) -> list[Path]:
    info = _read_json(dist / INFO, "remove it") if (dist / INFO).is_file() else {}
    paths = []
    for bundle in bundles:
        title = f"{bundle.name}_v{__version__}"
        path = dist / f"{title}.zip"
        write_atomically(path, lambda file, bundle=bundle: _zip(file, bundle))  # type: ignore[misc]
        source = f"{base_url.rstrip('/')}/{path.name}" if base_url else ""
        info[title] = {"checksum": _sha1(path), "source": source}
        write_folder(dist / "huggingface" / bundle.name, bundle.files, bundle.training)
        paths.append(path)
    save_json(dict(sorted(info.items())), dist / INFO)
    downloader = resources.files("mod_components.release").joinpath("unpack.py")
    if downloader.is_file():
        text = downloader.read_text(encoding="utf-8").encode()  # with plain line ends everywhere
        write_atomically(dist / "get_bundle.py", lambda file: file.write(text))
    return paths


def _zip(file: BinaryIO, bundle: _Packed) -> None:
    """Nothing of the machine, the day or the user's umask in it."""
    with zipfile.ZipFile(file, "w") as archive:
        for path, content in sorted(bundle.files.items()):
            entry = zipfile.ZipInfo(f"{bundle.name}/{path}", _DATE)
            entry.create_system = _UNIX
            entry.external_attr = 0o100644 << 16
            stored = path.endswith(".pt")  # weights hardly shrink
            entry.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
            if isinstance(content, Path):
                entry.file_size = content.stat().st_size
                with open(content, "rb") as source, archive.open(entry, "w") as target:
                    shutil.copyfileobj(source, target, 2**20)
            else:
                archive.writestr(entry, content, compresslevel=_LEVEL)


def _sha1(path: Path) -> str:
    digest = hashlib.sha1(usedforsecurity=False)  # what model_info.json holds in the Model Zoo
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _json(content: Any, path: Path) -> bytes:
    try:
        text = json.dumps(content, indent=4, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise CheckpointError(
            f"{path} holds a number that JSON does not have ({error}): correct it, or make it "
            "again."
        ) from error
    return f"{text}\n".encode()


def _read_json(path: Path, mend: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): {mend}.") from error
    return content
