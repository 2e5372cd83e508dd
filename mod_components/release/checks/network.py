"""Builds the network of ``inference.json`` in a process of its own, and fits the weights to it.

Run as ``python -m mod_components.release.checks.network FOLDER SHAPE`` it prints what it found;
this builds code that the bundle names, so that all other checks come first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import mod_components
from mod_components.release.checks.bundle import Bundle, Problem
from mod_components.release.checks.configs import INFERENCE
from mod_components.release.checks.files import WEIGHTS
from mod_components.release.checks.metadata import METADATA, smallest_shape
from mod_components.release.checks.rendered import CARD, PARAMETERS
from mod_components.release.checks.weights import OF_MOD, load_weights

__all__ = ["check_network"]

SECONDS = 600
ROOM = 4 * 2**30  # bytes
ANSWER = "network: "
SETTINGS = (
    "give it the weights and the training.json of one training, whose settings it is built by"
)


def check_network(bundle: Bundle) -> list[Problem]:
    """Build the network, run it on the smallest input, and compare its tensors with the weights.

    The pass is on torch's meta device, which computes shapes alone: seconds for any network.

    Args:
        bundle: the bundle; all other checks have passed.
    """
    shape = smallest_shape(bundle.object(METADATA))
    found = _in_process(bundle.folder, shape)
    if "error" in found:
        message = (
            f"'network_def' can't be built ({found['error']}); correct it or {WEIGHTS}'s record"
        )
        return [Problem("network", INFERENCE, message)]
    problems = [Problem("network", METADATA, message) for message in _output(bundle, shape, found)]
    count = PARAMETERS.search(bundle.texts.get(CARD, "")) if bundle.package else None
    if count and count[1] != (own := f"{found['parameters'] / 1e6:.1f} M"):
        message = f"gives the network {count[1]} parameters, and it has {own}; pack it anew"
        problems.append(Problem("network", CARD, message))
    if WEIGHTS in bundle.entries:
        weights = {
            str(name): list(tensor.shape)
            for name, tensor in load_weights(bundle).items()
            if not OF_MOD & set(str(name).split("."))  # reported already
        }
        for message in _misfits(weights, found["tensors"], found["class"]):
            problems.append(Problem("fit", WEIGHTS, message))
    return problems


def _misfits(weights: Mapping[str, Any], network: Mapping[str, Any], name: str) -> Iterator[str]:
    names = [*network, *(key for key in weights if key not in network)]
    differ = [
        f"{key} is {weights.get(key, 'missing')} in the file and {network.get(key, 'missing')} "
        "in the network"
        for key in names
        if weights.get(key) != network.get(key)
    ]
    if differ:
        yield (
            f"does not fit {name}: {len(differ)} of {len(network)} tensors differ, first "
            f"{', '.join(differ[:3])}; {SETTINGS}"
        )


def _output(bundle: Bundle, shape: Sequence[int], found: Mapping[str, Any]) -> Iterator[str]:
    if not shape:
        return  # metadata that say nothing of it are reported already
    if "pass" in found:
        yield (
            f"'network_def' does not take an input of its 'spatial_shape', {list(shape)} "
            f"({found['pass']}); give the sizes that the network takes"
        )
        return
    outputs = bundle.object(METADATA)["network_data_format"]["outputs"]["pred"]
    expected = [1, outputs["num_channels"], *shape[2:]]
    if found["output"] != expected:
        yield (
            f"'network_def' makes {found['output']} of {list(shape)}, not {expected}; correct "
            "'num_channels' or the network"
        )


def _in_process(folder: Path, shape: Sequence[int]) -> dict[str, Any]:
    home = str(Path(mod_components.__file__).parents[1])
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONDONTWRITEBYTECODE": "1",  # no caches in the bundle
        "PYTHONPATH": os.pathsep.join([home, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }
    command = [sys.executable, "-m", __name__, str(folder.resolve()), json.dumps(list(shape))]
    with tempfile.TemporaryDirectory() as elsewhere:
        try:
            done = subprocess.run(
                command,
                cwd=elsewhere,
                env=environment,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"it took more than {SECONDS} seconds"}
    answers = [line for line in done.stdout.splitlines() if line.startswith(ANSWER)]
    if not answers:
        return {"error": (done.stderr.strip().splitlines() or ["it said nothing"])[-1]}
    return dict(json.loads(answers[-1].removeprefix(ANSWER)))


def _build(folder: str, shape: Sequence[int]) -> dict[str, Any]:
    from monai.bundle import ConfigParser

    sys.path.insert(0, folder)
    try:
        parser = ConfigParser()
        parser.read_config(os.path.join(folder, INFERENCE))
        parser["bundle_root"] = folder
        parser["device"] = "cpu"
        network = parser.get_parsed_content("network_def")
        if not isinstance(network, torch.nn.Module):
            return {"error": f"it is a {type(network).__name__}"}
    except Exception as error:  # whatever the config's components raise
        return {"error": _cause(error)}
    found: dict[str, Any] = {
        "class": type(network).__name__,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "tensors": {name: list(tensor.shape) for name, tensor in network.state_dict().items()},
    }
    if shape:
        try:
            network = network.eval().to("meta")
            with torch.no_grad():
                found["output"] = list(network(torch.empty(*shape, device="meta")).shape)
        except Exception as error:
            found["pass"] = _cause(error)
    return found


def _limit_memory(weights: Path) -> None:
    """Let this process have what a network of these weights can need: a record may name any width.

    Only on Linux, where the system tells how much the process has already.
    """
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        size = weights.stat().st_size if weights.is_file() else 0
        limit = pages * resource.getpagesize() + ROOM + 4 * size
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, OSError, ValueError):
        pass


def _cause(error: BaseException) -> str:
    """First line of the error that MONAI wraps once for each config entry."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    first = str(error).strip().partition("\n")[0]
    return first[:300] or type(error).__name__


if __name__ == "__main__":
    _limit_memory(Path(sys.argv[1]) / WEIGHTS)
    print(ANSWER + json.dumps(_build(sys.argv[1], json.loads(sys.argv[2]))))
