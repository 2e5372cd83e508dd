"""Sets up MONAI Label for packed bundles, serves them, and checks that they answer rightly.

Needs Python 3.10 or 3.11 and nothing else. Everything it makes lies in one folder:

    python monai_label.py setup FOLDER
    python monai_label.py serve FOLDER swinunetr_mod_v0.1.0.zip --studies STUDIES
    python monai_label.py check FOLDER swinunetr_mod_v0.1.0.zip segmamba_mod_v0.1.0.zip

How to use it with a viewer is told in monai-label.md.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, NoReturn

MONAI_LABEL = "monailabel==0.8.5"
# the newest that MONAI Label can live with, and what it was tried with
PINS = """\
torch==2.13.0 torchvision==0.28.0 monai==1.6.1 pytorch-ignite==0.5.5 numpy==1.26.4 nibabel==5.4.2
einops==0.8.2 itk==5.4.7 pydicom==2.4.5 pydicom-seg==0.4.1 dicomweb-client==0.60.1 fastapi==0.165.0
starlette==1.10.0 uvicorn==0.54.0 pydantic==2.14.4 pydantic-settings==2.16.3
python-multipart==0.0.34 timeloop==1.0.2 watchdog==7.1.0"""
PACKAGES = """\
monai[nibabel,skimage,pillow,tensorboard,gdown,ignite,torchvision,itk,tqdm,lmdb,psutil,openslide,fire]
uvicorn pydantic pydantic-settings python-dotenv fastapi python-multipart httpx schedule timeloop
dicomweb-client[gcp] expiringdict expiring_dict cachetools watchdog pydicom pydicom-seg pynetdicom
pynrrd numpymaxflow girder-client ninja einops pyyaml filelock passlib pyjwt bcrypt shapely requests
requests-toolbelt urllib3 scikit-learn scipy google-auth matplotlib setuptools"""
MODALITIES = {"t1ce": "t1ce|t1c", "t1": "t1|t1n", "t2": "t2|t2w", "flair": "flair|t2f"}
LARGEST = 8 * 2**30  # bytes that a zip may unpack to
# RuntimeError: encrypted, or by a method that zipfile does not know
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError)
BAD_SIGNS = ("Checkpoint keys don't match", "Traceback (most recent call last)")

MAKE_SAMPLE = """
import importlib, sys
bundle, package, folder = sys.argv[1:]
sys.path.insert(0, bundle)
importlib.import_module(package + ".data").make_sample(folder, cases=4)
"""
# stored with its first two axes the other way round: the answer has to come back the same way
STACK = """
import nibabel, numpy, sys
*parts, target = sys.argv[1:]
scans = [nibabel.load(part) for part in parts]
voxels = numpy.stack([numpy.asarray(scan.dataobj) for scan in scans], axis=-1)
stack = nibabel.Nifti1Image(voxels, scans[0].affine)
nibabel.save(stack.as_reoriented([[0, -1], [1, -1], [2, 1]]), target)
"""
COMPARE = """
import json, nibabel, numpy, sys
one, other = (nibabel.load(path) for path in sys.argv[1:])
voxels = [numpy.asarray(scan.dataobj) for scan in (one, other)]
same_shape = one.shape == other.shape
print(json.dumps({
    "shapes": [list(scan.shape) for scan in (one, other)],
    "different voxels": int((voxels[0] != voxels[1]).sum()) if same_shape else -1,
    "affines differ by": float(abs(one.affine - other.affine).max()),
    "codes": [int(code) for code in numpy.unique(voxels[0])],
}))
"""


class UserError(Exception):
    """Something the user can mend, or a check that did not pass; its message says what."""


class Place:
    """The folder that everything lies in."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder).expanduser().resolve()
        scripts = "Scripts" if os.name == "nt" else "bin"
        self.python = self.folder / "venv" / scripts / "python"
        self.app = self.folder / "apps" / "monaibundle"
        self.ready = self.folder / "venv" / "ready"

    def environment(self) -> dict[str, str]:
        """Variables that keep caches, sessions and temporary files in the folder."""
        # code elsewhere on this machine must not stand in for what a bundle lacks
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        cache = str(self.folder / "cache")
        names = ("MOD_CACHE", "XDG_CACHE_HOME", "MPLCONFIGDIR", "MONAI_LABEL_DATASTORE_CACHE_PATH")
        return {
            **kept,
            **dict.fromkeys(names, cache),
            "MONAI_LABEL_SESSION_PATH": str(self.folder / "sessions"),
            "TMPDIR": str(self.folder / "tmp"),
            "PIP_CONSTRAINT": str(self.folder / "constraints.txt"),
            "PYTHONNOUSERSITE": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def run(self, *arguments: str | Path) -> str:
        """Run the environment's Python, and return what it printed."""
        done = subprocess.run(
            [str(part) for part in (self.python, *arguments)],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            shown = " ".join(str(part).strip().splitlines()[0] for part in arguments[:8])
            output = done.stdout + done.stderr
            first = re.search(r"^[\w.]*(Error|Exception): .*", output, re.MULTILINE)
            why = first[0] if first else output[-2000:]
            log = self.folder / "error.log"
            log.write_text(output, encoding="utf-8")
            raise UserError(f"python {shown} ended with: {why}\nAll that it printed is in {log}.")
        return done.stdout

    def needs_setup(self) -> None:
        if not self.ready.is_file():
            raise UserError(f"{self.folder} holds no MONAI Label yet: run 'setup' with it first.")


def set_up(place: Place, torch_index: str) -> None:
    """An environment with MONAI Label and its monaibundle app."""
    if sys.version_info[:2] not in ((3, 10), (3, 11)):
        raise UserError("MONAI Label 0.8.5 needs Python 3.10 or 3.11: start this script with one.")
    for name in ("tmp", "cache", "sessions"):
        (place.folder / name).mkdir(parents=True, exist_ok=True)
    (place.folder / "constraints.txt").write_text("\n".join(PINS.split()) + "\n")
    if not place.python.exists():
        print("making an environment ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(place.folder / "venv")], check=True)
    pip = ("-m", "pip", "install")
    print("installing, which takes some minutes ...", flush=True)
    index = ("--index-url", torch_index) if torch_index else ()
    place.run(*pip, *index, "torch", *(("torchvision",) if index else ()))
    wheels = ("--only-binary", ":all:", "--no-binary", "timeloop")
    place.run(*pip, *wheels, *PACKAGES.split())
    place.run(*pip, "--no-deps", MONAI_LABEL)  # its own list wants SAM 2 and MLflow
    mend_torchvision(place)
    if not place.app.is_dir():
        app = ("apps", "--download", "--name", "monaibundle", "--output", place.app.parent)
        place.run("-m", "monailabel.main", *app)
    place.ready.write_text(MONAI_LABEL + "\n")
    print(f"MONAI Label is ready in {place.folder}")


def mend_torchvision(place: Place) -> None:
    """Let a torchvision that was built for CUDA import beside a torch for the CPU."""
    try:
        place.run("-c", "import torchvision")
    except UserError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        code = "import importlib.util as u; print(u.find_spec('torchvision').origin)"
        # its registrations are of operators that neither MONAI Label nor the bundles use
        Path(place.run("-c", code).strip()).with_name("_meta_registrations.py").write_text("")
        place.run("-c", "import torchvision")


def put_bundle(place: Place, source: str, models: Path, replace: bool) -> str:
    """Put a packed bundle, a zip or a folder, among an app's models, and return its name."""
    path = Path(source).expanduser().resolve()
    if not path.is_dir() and not zipfile.is_zipfile(path):
        raise UserError(f"{path} is no bundle's folder and no whole zip of one: give another.")
    name = path.name if path.is_dir() else checked_zip(path)
    target = models / name
    if os.path.lexists(target) and not replace:
        print(f"note: {name} stays as it is in {models}, trained or not; --replace replaces it")
        check_packed(target, target)
        add_packages(place, target)
        return name
    real = target.resolve()
    if path in (real, *real.parents) or real in path.parents:
        raise UserError(
            f"{path} can't replace {target}, one lies in the other: leave out --replace to serve "
            "what is there, or give a zip or a folder from elsewhere."
        )
    # beside the app: what lies among its models is served, whole or not
    with tempfile.TemporaryDirectory(prefix="incoming_", dir=place.folder) as folder:
        new = Path(folder) / name
        if path.is_dir():
            # MONAI Label would load the weights file with the shortest name, were there several
            others = shutil.ignore_patterns("last.pt", "model_ema.pt", "previous", "__pycache__")
            shutil.copytree(path, new, ignore=others)
        else:
            with readable(path), zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
        check_packed(new, path)
        add_packages(place, new)
        swap(new, target, place.folder / "replaced")
    return name


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn the errors of damaged contents into one that names the bundle."""
    try:
        yield
    except UNREADABLE as error:
        raise UserError(f"{path} is damaged or encrypted ({error}): pack it anew.") from error


def check_packed(bundle: Path, source: Path) -> None:
    """Refuse a bundle, come from a source, that is not whole or does not bring its code along."""
    configs = [f"configs/{name}.json" for name in ("metadata", "inference", "train")]
    lacks = [file for file in (*configs, "models/model.pt") if not (bundle / file).is_file()]
    if not lacks:
        with readable(source):
            texts = [(bundle / config).read_text(encoding="utf-8") for config in configs]
            for text in texts:
                json.loads(text)
        named = set(re.findall(r"\bmod_components\w*(?=\.)", texts[-1]))
        brought = {file.parent.name for file in bundle.glob("mod_components_*/__init__.py")}
        # with MONAI's networks it would answer without its code, and fail when it trains
        if not named or named - brought:
            lacks = ["package mod_components_VERSION of its own"]
    if lacks:
        raise UserError(
            f"{source} has no {', '.join(lacks)}: pack the bundle first, with 'python -m "
            "mod_components pack', and give that zip (with --replace if it was served before)."
        )


def swap(new: Path, target: Path, kept: Path) -> None:
    """Put a checked bundle in its place; what was there is kept."""
    if os.path.lexists(target):
        number = next(n for n in itertools.count(1) if not (kept / str(n)).exists())
        old = kept / str(number) / target.name
        old.parent.mkdir(parents=True)
        os.replace(target, old)
        print(f"note: the {target.name} that was served before is now {old}", flush=True)
    os.replace(new, target)


def checked_zip(path: Path) -> str:
    """The one top folder of a zip that writes nothing anywhere else."""
    with readable(path), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    for entry in entries:
        parts = PurePosixPath(entry.filename).parts
        plain = parts and not {"..", "/"} & set(parts) and not re.search(r"[\\:]", entry.filename)
        if not plain or stat.S_ISLNK(entry.external_attr >> 16):
            raise UserError(f"{path}: its entry {entry.filename!r} leads elsewhere: do not use it.")
    if sum(entry.file_size for entry in entries) > LARGEST:
        raise UserError(f"{path} would unpack to more than {LARGEST // 2**30} GiB: do not use it.")
    tops = {PurePosixPath(entry.filename).parts[0] for entry in entries}
    if len(tops) != 1:
        raise UserError(f"{path} has {len(tops)} top folders, not one: it is no packed bundle.")
    return tops.pop()


def add_packages(place: Place, bundle: Path) -> None:
    """Install what a bundle's metadata require and the environment lacks."""
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    names = [*metadata.get("required_packages_version", {})]
    code = (
        "import sys; from importlib.metadata import distributions as d;"
        "have = {str(x.name).lower().replace('_', '-') for x in d()};"
        "print(*[n for n in sys.argv[1:] if n.lower().replace('_', '-') not in have])"
    )
    if missing := place.run("-c", code, *names).split():
        print(f"installing what {bundle.name} needs: {', '.join(missing)}", flush=True)
        place.run("-m", "pip", "install", "--only-binary", ":all:", *missing)


class Server:
    """MONAI Label with some bundles; stops when the ``with`` block ends, however it ends."""

    def __init__(
        self, place: Place, app: Path, names: Sequence[str], studies: Path, port: int, log: Path
    ) -> None:
        self.log = log
        self.address = f"http://127.0.0.1:{port}"
        options = ["-a", app, "-s", studies, "-i", "127.0.0.1", "-p", port]
        options += ["--conf", "models", ",".join(names)]
        options += ["--conf", "zoo_source", "local", "--conf", "sam2", "false"]
        command = [place.python, "-m", "monailabel.main", "start_server", *options]
        with open(log, "w", encoding="utf-8") as file:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                cwd=place.folder,
                env=place.environment(),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a training is a process of its own
            )

    def __enter__(self) -> Server:
        try:
            return self.wait()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def wait(self, seconds: float = 600) -> Server:
        """Return when it answers."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.ask("/info/")
            except OSError:
                time.sleep(1)
            else:
                return self
        raise UserError(f"the server did not start; the end of {self.log}:\n{self.tail()}")

    def stop(self) -> None:
        """End the server and all that it has started."""
        for end in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
            try:
                if hasattr(os, "killpg"):
                    os.killpg(self.process.pid, end)
                else:
                    self.process.send_signal(end)
                self.process.wait(20)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue

    def tail(self) -> str:
        """The last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])

    def ask(self, path: str, data: bytes | None = None, kind: str = "application/json") -> bytes:
        """The answer to a REST call; a POST where data are given."""
        request = urllib.request.Request(self.address + path, data, {"Content-Type": kind})
        # a proxy of the user's must not be asked for what is on this machine
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=3600) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            raise UserError(f"{path}: HTTP {error.code} {text}; log:\n{self.tail()}") from error

    def segment(self, name: str, image: str, device: str, target: Path) -> Path:
        """Write the label map that a bundle answers with for an image of the studies."""
        query = urllib.parse.urlencode({"image": image, "output": "image"})
        form = urllib.parse.urlencode({"params": json.dumps({"device": device})}).encode()
        kind = "application/x-www-form-urlencoded"
        target.write_bytes(self.ask(f"/infer/{name}?{query}", form, kind))
        return target

    def train(self, name: str, device: str) -> None:
        """One epoch on the labelled images of the studies, to the end."""
        settings = {"device": device, "max_epochs": 1, "val_split": 0.25, "multi_gpu": False}
        self.ask(f"/train/{name}", json.dumps(settings).encode())
        while (task := json.loads(self.ask("/train/")))["status"] in ("SUBMITTED", "RUNNING"):
            time.sleep(2)
        if task["status"] != "DONE":
            raise UserError(f"training {name} ended as {task['status']}; log:\n{self.tail()}")


def serve(place: Place, sources: Sequence[str], studies: str, port: int, replace: bool) -> None:
    """Serve bundles until the user stops it."""
    models = place.app / "model"
    models.mkdir(exist_ok=True)
    names = [put_bundle(place, source, models, replace) for source in sources]
    log = place.folder / "server.log"
    folder = Path(studies).expanduser().resolve()
    print(f"starting; the log is {log}", flush=True)
    with Server(place, place.app, names, folder, port or free_port(), log) as server:
        print(f"MONAI Label serves {', '.join(names)} at {server.address}; stop it with Ctrl+C")
        sys.stdout.flush()
        server.process.wait()
        raise UserError(f"the server ended; the end of {log}:\n{server.tail()}")


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Check:
    """An app, studies and scans of its own, and what has to hold of its answers."""

    def __init__(self, place: Place, sources: Sequence[str], scan: str, device: str) -> None:
        self.place, self.device = place, device
        self.folder = place.folder / "check"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.app, self.scans = self.folder / "app", self.folder / "scans"
        self.studies, self.answers = self.folder / "studies", self.folder / "answers"
        for folder in (self.scans, self.studies, self.answers):
            folder.mkdir(parents=True)
        # of its own: a check trains, and must not touch what annotators work with
        shutil.copytree(place.app, self.app, ignore=shutil.ignore_patterns("model", "logs"))
        self.models = self.app / "model"
        self.models.mkdir()
        self.names = [put_bundle(place, source, self.models, True) for source in sources]
        self.images = self.prepare(Path(scan).expanduser() if scan else None)

    def prepare(self, scan: Path | None) -> dict[str, str]:
        """Labelled studies of the bundles' sample; the scan as four files and as one."""
        bundle = self.models / self.names[0]
        package = next(bundle.glob("mod_components_*/__init__.py")).parent.name
        sample = self.folder / "sample"
        self.place.run("-c", MAKE_SAMPLE, bundle, package, sample)
        labels = self.studies / "labels" / "final"
        labels.mkdir(parents=True)
        cases = sorted(path for path in sample.iterdir() if path.is_dir())
        for case in cases:
            for modality, file in modality_files(case).items():
                shutil.copy(file, self.studies / f"{case.name}_{modality}.nii.gz")
            shutil.copy(case / f"{case.name}_seg.nii.gz", labels / f"{case.name}_t1ce.nii.gz")
        files = modality_files(scan or cases[0])
        parts = []
        for modality, file in files.items():
            ending = ".nii.gz" if file.name.lower().endswith(".gz") else ".nii"
            parts.append(Path(shutil.copy(file, self.scans / f"Scan_{modality}{ending}")))
        self.place.run("-c", STACK, *parts, self.scans / "Stack.nii.gz")
        for file in self.scans.iterdir():
            shutil.copy(file, self.studies)
        return {"Stack": "Stack", "Scan": "Scan_t2"}  # any of the four stands for all

    def run(self) -> None:
        """All checks; raises at the first that fails."""
        with self.server("server.log") as server:
            for name in self.names:
                self.check_labels(server, name)
            # one after the other for each step: the bundles share one server's process
            before = {name: self.check_answers(server, name, "before") for name in self.names}
            for name in self.names:
                self.check_training(server, name, before[name])
        with self.server("server_again.log") as server:
            for name in self.names:
                self.check_answers(server, name, "after a restart")
        for log in self.folder.glob("*.log"):
            text = log.read_text(errors="replace")
            if found := [sign for sign in BAD_SIGNS if sign in text]:
                raise UserError(f"{log} has {found}")

    def server(self, log: str) -> Server:
        path = self.folder / log
        return Server(self.place, self.app, self.names, self.studies, free_port(), path)

    def labels(self, name: str) -> dict[str, int]:
        """What a bundle's metadata say of its label map."""
        text = (self.models / name / "configs" / "metadata.json").read_text(encoding="utf-8")
        told = json.loads(text)["network_data_format"]["outputs"]["pred"]["channel_def"]
        return {label.lower(): int(code) for code, label in told.items() if int(code)}

    def check_labels(self, server: Server, name: str) -> None:
        expected = self.labels(name)
        found = json.loads(server.ask("/info/"))["models"][name]["labels"]
        if found != expected:
            raise UserError(f"{name}: /info/ names the labels {found}, its metadata {expected}")
        print(f"{name}: labels {found}", flush=True)

    def check_answers(self, server: Server, name: str, when: str) -> dict[str, Path]:
        """Answers for one 4D file and for four files, each what ``monai.bundle run`` writes."""
        folder = self.answers / f"{name} {when}"
        folder.mkdir()
        config = self.models / name / "configs" / "inference.json"
        run = ("-m", "monai.bundle", "run", "--config_file", config, "--dataset_dir", self.scans)
        self.place.run(*run, "--output_dir", folder, "--device", self.device)
        answers = {}
        for case, image in self.images.items():
            answer = server.segment(name, image, self.device, folder / f"{case}_answer.nii.gz")
            found = self.compare(answer, folder / f"{case}_seg.nii.gz")
            if found["different voxels"] or found["affines differ by"] > 1e-4:
                raise UserError(f"{name} {when}: {image} has another label map: {found}")
            if unknown := set(found["codes"]) - {0, *self.labels(name).values()}:
                raise UserError(f"{name} {when}: {image} has codes that nothing names: {unknown}")
            print(f"{name} {when}: {image} as monai.bundle run writes it, {found}", flush=True)
            answers[case] = answer
        return answers

    def check_training(self, server: Server, name: str, before: dict[str, Path]) -> None:
        """Training writes new weights, and the next answers come from them."""
        weights = self.models / name / "models" / "model.pt"
        old, start = sha256(weights), time.monotonic()
        server.train(name, self.device)
        if sha256(weights) == old:
            raise UserError(f"{name}: training over REST left {weights} as it was")
        print(f"{name}: trained in {time.monotonic() - start:.0f} s", flush=True)
        after = self.check_answers(server, name, "after training")
        if not any(self.compare(after[case], before[case])["different voxels"] for case in after):
            raise UserError(f"{name}: answers after training are those from before")

    def compare(self, one: Path, other: Path) -> dict[str, Any]:
        return dict(json.loads(self.place.run("-c", COMPARE, one, other)))


def modality_files(folder: Path) -> dict[str, Path]:
    """The four files of a case, by modality."""
    found = {}
    for modality, names in MODALITIES.items():
        pattern = re.compile(rf".+[-_]({names})\.nii(\.gz)?", re.IGNORECASE)
        files = [p for p in sorted(folder.iterdir()) if pattern.fullmatch(p.name)]
        if len(files) != 1:
            raise UserError(f"{folder} has {len(files)} {modality} files: give one case's folder.")
        found[modality] = files[0]
    return found


def sha256(path: Path) -> str:
    """Digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    verbs = top.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("setup", help="install MONAI Label into FOLDER")
    verb.add_argument("folder")
    verb.add_argument("--torch-index", default="", help="package index with torch for the CPU")
    verb = verbs.add_parser("serve", help="serve bundles until Ctrl+C")
    verb.add_argument("folder")
    verb.add_argument("bundles", nargs="+", help="zips or folders of packed bundles")
    verb.add_argument("--studies", required=True, help="folder with the scans")
    verb.add_argument("--port", type=int, default=0, help="by default a free one")
    verb.add_argument("--replace", action="store_true", help="replace those served before")
    verb = verbs.add_parser("check", help="check that bundles segment and train over REST")
    verb.add_argument("folder")
    verb.add_argument("bundles", nargs="+", help="zips or folders of packed bundles")
    verb.add_argument("--scan", default="", help="folder with the four files of one case")
    verb.add_argument("--device", default="cpu")
    return top


def main() -> int:
    """Run a verb; the exit status is 0 where all went well."""
    arguments = parser().parse_args()
    place = Place(arguments.folder)

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    passed, reason = False, ""
    try:
        if arguments.verb == "setup":
            set_up(place, arguments.torch_index)
        else:
            place.needs_setup()
        if arguments.verb == "serve":
            serve(place, arguments.bundles, arguments.studies, arguments.port, arguments.replace)
        elif arguments.verb == "check":
            Check(place, arguments.bundles, arguments.scan, arguments.device).run()
        passed = True
    except (UserError, OSError, ValueError, KeyError, subprocess.CalledProcessError) as error:
        reason = str(error)
    except KeyboardInterrupt:
        reason, passed = "stopped", arguments.verb == "serve"
    if arguments.verb == "check":
        print("PASS" if passed else f"FAIL: {reason}")
    elif not passed:
        print(f"error: {reason}", file=sys.stderr)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
