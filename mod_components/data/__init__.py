"""From a folder with scans to what a network is trained on."""

from __future__ import annotations

from mod_components.data.cache import CachedCases
from mod_components.data.checks import (
    CheckResult,
    Problem,
    check_cases,
    check_folder,
    refuse_bad_cases,
    usable_cases,
)
from mod_components.data.datalist import load_datalist, make_datalist, save_datalist, select
from mod_components.data.held_out import case_name, prepare_evaluation
from mod_components.data.layouts import (
    CHANNELS,
    REGIONS,
    CaseRecord,
    DataError,
    Layout,
    find_cases,
    find_layout,
    read_folder,
    scan,
)
from mod_components.data.listed import FindModalitiesd
from mod_components.data.prepare import SAMPLE, PreparedData, prepare_training
from mod_components.data.sample import best_flair_threshold, make_sample
from mod_components.data.transforms import (
    EnsureFinited,
    LabelsToRegionsd,
    LoadCased,
    NestRegionsd,
    RandShiftForegroundd,
    RegionsToLabelsd,
    ReorderChannelsd,
    brain_or_all,
    labels_to_regions,
    nest_regions,
    regions_to_labels,
    shift_foreground,
)
from mod_components.data.unlabelled import WithUnlabelled, add_unlabelled
from mod_components.data.writer import WholeNibabelWriter

__all__ = [
    "CHANNELS",
    "REGIONS",
    "SAMPLE",
    "CachedCases",
    "CaseRecord",
    "CheckResult",
    "DataError",
    "EnsureFinited",
    "FindModalitiesd",
    "LabelsToRegionsd",
    "Layout",
    "LoadCased",
    "NestRegionsd",
    "PreparedData",
    "Problem",
    "RandShiftForegroundd",
    "RegionsToLabelsd",
    "ReorderChannelsd",
    "WholeNibabelWriter",
    "WithUnlabelled",
    "add_unlabelled",
    "best_flair_threshold",
    "brain_or_all",
    "case_name",
    "check_cases",
    "check_folder",
    "find_cases",
    "find_layout",
    "labels_to_regions",
    "load_datalist",
    "make_datalist",
    "make_sample",
    "nest_regions",
    "prepare_evaluation",
    "prepare_training",
    "read_folder",
    "refuse_bad_cases",
    "regions_to_labels",
    "save_datalist",
    "scan",
    "select",
    "shift_foreground",
    "usable_cases",
]
