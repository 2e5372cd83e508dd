"""The report of a study: tables and figures of its finished runs in one folder."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mod_components.data import SAMPLE, make_sample
from mod_components.errors import UserError
from mod_components.study import figures, panels
from mod_components.study.learnt import learnt_table
from mod_components.study.matched import unlike_settings, unmatched
from mod_components.study.page import REPORT, Page
from mod_components.study.plan import LAST_STATE, OWN_SPLIT, Plan
from mod_components.study.published import caveats, published_tables
from mod_components.study.results import (
    Finished,
    StudyResults,
    by_bundle,
    count_name,
    network_name,
    read_study,
    thread_name,
)
from mod_components.study.statistics import differences
from mod_components.study.tables import (
    catch_up_table,
    cost_table,
    count_table,
    difference_table,
    level_table,
    progress_table,
    score_table,
)

__all__ = ["REPORT", "write_report"]


def write_report(study: str | os.PathLike[str], output: str = "") -> list[Path]:
    """Write tables and figures of a study's finished runs.

    The same records give the same bytes, with the same versions of numpy and matplotlib.

    Args:
        study: the study's folder.
        output: folder to write into; by default ``report`` in the study's.

    Returns:
        The files: ``report.md``, then those that it refers to.

    Raises:
        DataError: if the plan or the record of a finished run is damaged.
        SettingsError: if the plan has something unknown or lacks something.
        DiskError: if the disk does not take a file.
    """
    results = read_study(study)
    report = Page(Path(output) if output else Path(study) / "report")
    report.folder.mkdir(parents=True, exist_ok=True)
    _what_ran(report, results)
    arms = list(results.plan.arms)
    plain = [run for run in results.runs if run.scores and not run.probe]
    if plain:
        _scores(report, plain, arms)
        _pairs(report, plain, results.plan)
        _counts(report, plain, arms)
        _convergence(report, plain, results.plan)
        if (learnt := learnt_table(results.runs)) is not None:
            report.text("## What the losses learnt")
            report.table(learnt)
        _pictures(report, study, plain, results.plan)
    if results.runs:
        report.text("## Cost")
        report.table(cost_table(results.runs, arms[0]))
    _probes(report, results.runs, arms)
    _published(report, results)
    _again(report, results)
    return report.finish()


def _what_ran(report: Page, results: StudyResults) -> None:
    plan, runs = results.plan, results.runs
    report.text(f"# {results.name}")
    if results.about:
        report.text(results.about)
    updates = _distinct(run.updates for run in runs) or str(plan.updates)
    splits = ["the data set's own" if fold == OWN_SPLIT else f"fold {fold}" for fold in plan.folds]
    facts = {
        "finished runs": f"{len(runs)} of {len(results.planned)} planned",
        "data set": _data_set(plan, runs),
        "updates of a run": f"{plan.updates} planned, in whole epochs: {updates}",
        "batch size": _distinct(run.settings.get("batch_size") for run in runs),
        "crop (voxels)": _distinct(_crop(run.settings.get("roi_size")) for run in runs),
        "labelled cases": ", ".join(map(count_name, plan.labelled)),
        "held out": ", ".join(splits),
        "seeds": ", ".join(map(str, plan.seeds)),
        "threads": _distinct(thread_name(run.threads) for run in runs),
        "versions": _distinct(f"{k} {v}" for run in runs for k, v in run.versions.items()),
    }
    report.text("## What ran")
    report.text(*(f"- {name}: {value or 'not known yet'}" for name, value in facts.items()))
    report.text("Arms; the first one is the baseline:")
    report.text(*(f"- {_arm(plan, name)}" for name in plan.arms))
    if results.changed:
        report.text(
            "**These runs were made by other settings than the plan's, and are in the tables all "
            f"the same:** {', '.join(results.changed)}."
        )
    if unlike := [f"{arm} ({', '.join(names)})" for arm, names in unlike_settings(runs)]:
        report.text(
            f"**Runs of one arm that had unlike settings:** {'; '.join(unlike)}. A default of the "
            "package changed between them, or one version of it noted less than another. Where it "
            "matters, run the older ones again."
        )
    report.table(progress_table(results))


def _arm(plan: Plan, name: str) -> str:
    arm = plan.arms[name]
    settings = f"`{json.dumps(dict(arm.settings), sort_keys=True)}`" if arm.settings else ""
    source = f"starts from the final weights of {arm.start_from}" if arm.start_from else ""
    facts = (
        settings,
        "with unlabelled scans" if arm.unlabelled else "",
        "" if arm.labelled is None else f"labelled cases: {count_name(arm.labelled)}",
        f"{arm.probe} probe of {arm.start_from}" if arm.probe else source,
        "" if arm.weights == LAST_STATE else f"weights: `{arm.weights}`",
        "" if arm.evaluate else "not evaluated",
    )
    return f"{name}: {'; '.join(filter(None, facts)) or 'as the bundle is'}"


def _scores(report: Page, runs: Sequence[Finished], arms: Sequence[str]) -> None:
    report.text("## Accuracy on the held-out cases")
    report.text("Of the network after the last update; no validation chose it.")
    report.table(score_table(runs, "scores", "Dice and HD95 by region (as Tables I and II)"))
    for count, own in _by_count(runs).items():
        caption = (
            f"Dice by region and arm (as Fig. 6), labelled cases: {count_name(count)}. Mean and "
            "standard deviation over runs."
        )
        report.figure(figures.regions(own, arms), f"regions_{_file_part(count)}.png", caption)


def _pairs(report: Page, runs: Sequence[Finished], plan: Plan) -> None:
    arms = list(plan.arms)
    found = differences(runs, arms[0])
    if not found:
        return
    report.text("## Differences from the baseline")
    for line in unmatched(runs, plan):
        report.text(f"**Not at equal work:** {line}.")
    report.table(difference_table(found, arms[0]))
    caption = (
        "Paired differences: mean, 95 % interval over runs and cases (thin) and over runs alone "
        "(thick, cut at the edge where it is wider than the picture)."
    )
    report.figure(figures.paired(found, arms), "paired.png", caption)


def _counts(report: Page, runs: Sequence[Finished], arms: Sequence[str]) -> None:
    if len({run.run.labelled for run in runs}) < 2:
        return
    report.text("## Fewer labelled cases")
    report.table(count_table(runs))
    caption = "Dice by number of labelled cases (as Fig. 7): mean and standard deviation over runs."
    report.figure(figures.labelled_cases(runs, arms), "labelled_cases.png", caption)


def _convergence(report: Page, runs: Sequence[Finished], plan: Plan) -> None:
    arms = list(plan.arms)
    report.text("## Convergence")
    if later := [name for name, arm in plan.arms.items() if arm.start_from and not arm.probe]:
        report.text(
            f"{', '.join(later)}: updates and hours of the arm that they start from do not count "
            "here; add them where the whole training is meant."
        )
    if averaged := [name for name, arm in plan.arms.items() if arm.weights != LAST_STATE]:
        report.text(
            f"{', '.join(averaged)}: curves are of the network in training, scores of its moving "
            "average."
        )
    for count, own in _by_count(runs).items():
        name = f"convergence_{_file_part(count)}.png"
        caption = (
            f"Dice on the held-out cases during the training (as Fig. 4), labelled cases: "
            f"{count_name(count)}. Mean over runs, and the band from the least to the most."
        )
        report.figure(figures.convergence(own, arms), name, caption)
    report.table(level_table(runs))
    report.table(catch_up_table(runs, arms[0]))


def _pictures(
    report: Page, study: str | os.PathLike[str], runs: Sequence[Finished], plan: Plan
) -> None:
    found = {
        bundle: panels.load_shown(study, own, images)
        for bundle, own in by_bundle(runs).items()
        if own[0].run.arm == next(iter(plan.arms))
        and panels.have_predictions(study, own)
        and (images := _images(plan, own))
    }
    report.text("## Held-out cases")
    if not any(found.values()):
        report.text("No pictures: the data set or the runs' label maps are not at hand.")
        return
    report.text(
        "With the fewest labelled cases, of the first fold and seed. The cases stand at the "
        "quartiles of the baseline's Dice: no other arm has a part in the choice."
    )
    for bundle, shown in found.items():
        if shown:
            name = network_name(bundle)
            caption = f"{name}: the axial plane with most of the true tumour (as Fig. 3)."
            report.figure(panels.planes(shown), f"planes_{name}.png", caption)
            middle = shown[len(shown) // 2]
            caption = f"{name}: {middle.case} in three dimensions (as Fig. 5)."
            report.figure(panels.surfaces(middle), f"surfaces_{name}.png", caption)


def _images(plan: Plan, runs: Sequence[Finished]) -> str | Path:
    """Folder of the data set; empty where it is not known, as of a study that is shared."""
    named = {run.settings.get("dataset_dir") for run in runs} - {None, ""}
    if plan.dataset_dir or not named <= {SAMPLE}:
        return plan.dataset_dir
    try:
        return make_sample()
    except UserError:  # a report does without pictures
        return ""


def _probes(report: Page, runs: Sequence[Finished], arms: Sequence[str]) -> None:
    report.text("## Probes of the frozen encoder")
    kinds = dict.fromkeys(run.probe for run in runs if run.probe and run.scores)
    if not kinds:
        report.text(
            "No finished run of this study is a probe, so there is no counterpart of Table III."
        )
    for kind in kinds:
        own = [run for run in runs if run.probe == kind]
        title = f"Dice and HD95 of {kind} probes (as Table III)"
        report.table(score_table(own, f"probes_{kind}", title))
        first = min((run.run.arm for run in own), key=arms.index)
        if found := differences(own, first):
            report.table(difference_table(found, first, f"paired_probes_{kind}"))


def _published(report: Page, results: StudyResults) -> None:
    tables = published_tables(
        [network_name(bundle) for bundle in results.plan.bundles],
        counts=len(results.plan.labelled) > 1,
        probes=any(run.probe for run in results.runs),
    )
    report.text("## What the paper reports")
    if not tables:
        report.text("Nothing of the networks of this study.")
        return
    report.text("Not to be compared figure by figure with the tables above:")
    report.text(*(f"- {text}" for text in caveats()))
    for table in tables:
        report.table(table)


def _again(report: Page, results: StudyResults) -> None:
    # a study that is shared tells which data set it was, and not where that lay
    others = {run.settings.get("dataset_dir") for run in results.runs} - {None, "", SAMPLE}
    given = results.plan.dataset_dir or others
    data = " --dataset_dir FOLDER_OF_THE_DATA_SET" if given else ""
    report.text("## To do it again")
    report.text("In the study's folder, into another one:")
    report.text(
        "```",
        f"python -m mod_components study plan.json --folder again{data}",
        "python -m mod_components report again",
        "```",
    )


def _data_set(plan: Plan, runs: Sequence[Finished]) -> str:
    """Name of the data set, without where it lies."""
    used = _distinct(run.settings.get("dataset_dir") for run in runs)
    return used or Path(plan.dataset_dir).name or "the embedded sample"


def _crop(size: Any) -> str:
    return " × ".join(map(str, size)) if isinstance(size, list) else str(size or "")


def _by_count(runs: Sequence[Finished]) -> dict[int, list[Finished]]:
    """Runs by number of labelled cases, all of them last."""
    counts = sorted({run.run.labelled for run in runs}, key=lambda count: count or math.inf)
    return {count: [run for run in runs if run.run.labelled == count] for count in counts}


def _file_part(count: int) -> str:
    return f"n{count}" if count else "all"


def _distinct(values: Iterable[Any]) -> str:
    """Different values in the order of their first appearance."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value not in (None, "")))
