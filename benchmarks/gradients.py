"""How hard each loss pulls on the encoder: norms of their gradients, and the angles between them.

Run from the repository's root, with a training's config file and any of its settings::

    python benchmarks/gradients.py bundles/unetr_mod/configs/train.json dataset_dir=/data/BraTS2021

A file with settings may stand in between (a study's ``run.json``). The training runs as it would,
so that the figures are those of the weights on its way; the weight w of MOD's losses is one of the
settings, the norms are those of the losses without their weights. A weighted loss whose gradient
is far below the segmentation's teaches the encoder nothing; one far above it takes it over.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from common import setting

OURS = ("bundle_root", "ckpt_dir", "output_dir", "resume", "study_digest")


class Gradients:
    """Collects the unweighted losses of a step and measures their gradients.

    Args:
        trainer: the trainer.
        network: its network.
        mod: MOD's components by name.
    """

    def __init__(self, trainer: Any, network: Any, mod: dict[str, Any]) -> None:
        from monai.engines.utils import IterationEvents

        self.losses: dict[str, Any] = {}
        self.sums: dict[str, list[float]] = defaultdict(list)
        if "views" not in mod:
            raise SystemExit("this training has no loss of MOD: set use_mod=true")
        modules = dict(network.named_modules())
        self.encoder = [
            parameter
            for name in sorted(mod["views"].encoder_modules)
            for parameter in modules[name].parameters(recurse=False)
            if parameter.requires_grad
        ]
        trainer.loss_function = self.noting(trainer.loss_function, "segmentation")
        if tokenizer := mod.get("tokenizer"):
            object.__setattr__(tokenizer, "losses", self.noting(tokenizer.losses, "token", "class"))
        if predictor := mod.get("predictor"):
            object.__setattr__(predictor, "loss", self.noting(predictor.loss, "reconstruction"))
        trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, self.measure)

    def noting(self, function: Any, *names: str) -> Any:
        """The same function, whose results are kept under these names."""

        def noted(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            self.losses.update(zip(names, result if len(names) > 1 else [result], strict=True))
            return result

        return noted

    def measure(self, _engine: Any) -> None:
        """Norm of each loss's gradient, and its cosine with the segmentation's."""
        import torch

        flat = {}
        for name, loss in self.losses.items():
            parts = torch.autograd.grad(
                loss, self.encoder, retain_graph=True, materialize_grads=True
            )
            flat[name] = torch.cat([part.flatten() for part in parts])
        for name, gradient in flat.items():
            self.sums[f"norm, {name}"].append(float(gradient.norm()))
            if name != "segmentation":
                pair = torch.cosine_similarity(gradient, flat["segmentation"], dim=0)
                self.sums[f"cosine, {name}"].append(float(pair))
        self.losses.clear()

    def row(self) -> dict[str, float]:
        """Means since the last row."""
        means = {name: fmean(values) for name, values in self.sums.items()}
        self.sums.clear()
        return means


def run(options: argparse.Namespace, folder: str) -> None:
    """Train for some updates and print a table."""
    from ignite.engine import Events
    from monai.bundle import ConfigParser

    config = ConfigParser(ConfigParser.load_config_file(options.config))
    given: dict[str, Any] = {}
    for text in options.settings:
        given |= dict([setting(text)]) if "=" in text else json.loads(Path(text).read_text())
    given = {key: value for key, value in given.items() if key not in OURS}
    given |= {"bundle_root": str(Path(options.config).resolve().parents[1])}
    given |= {"ckpt_dir": f"{folder}/models", "output_dir": f"{folder}/eval"}
    config.update(given)
    config.get_parsed_content("initialize")
    trainer = config.get_parsed_content("train#trainer")
    found = {name: part for name, part in config.get_parsed_content("mod").items() if part}
    gradients = Gradients(trainer, config.get_parsed_content("network"), found)

    @trainer.on(Events.ITERATION_COMPLETED(every=options.interval))
    def show(engine: Any) -> None:
        row = gradients.row()
        if engine.state.iteration == options.interval:
            print("| updates |", " | ".join(row), "|")
            print("|---" * (len(row) + 1) + "|")
        figures = " | ".join(f"{value:.3f}" for value in row.values())
        print(f"| {engine.state.iteration} | {figures} |", flush=True)
        if engine.state.iteration >= options.updates:
            engine.terminate()

    trainer.run()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config", help="a bundle's configs/train.json")
    parser.add_argument("settings", nargs="*", help="KEY=VALUE, or a JSON file of settings")
    parser.add_argument("--updates", type=int, default=150)
    parser.add_argument("--interval", type=int, default=25, help="updates of a row")
    with tempfile.TemporaryDirectory() as folder:
        run(parser.parse_args(), folder)


if __name__ == "__main__":
    main()
