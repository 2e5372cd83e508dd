"""What a bundle must be before it is published or used; nothing here runs any of its code."""

from __future__ import annotations

from mod_components.release.checks.bundle import Bundle, Problem
from mod_components.release.checks.code import check_code
from mod_components.release.checks.configs import check_configs
from mod_components.release.checks.files import check_files
from mod_components.release.checks.metadata import check_metadata
from mod_components.release.checks.network import check_network
from mod_components.release.checks.pickles import check_pickles
from mod_components.release.checks.record import check_record
from mod_components.release.checks.rendered import check_rendered
from mod_components.release.checks.texts import check_texts
from mod_components.release.checks.weights import check_weights

__all__ = [
    "Bundle",
    "Problem",
    "check_code",
    "check_configs",
    "check_files",
    "check_metadata",
    "check_network",
    "check_pickles",
    "check_record",
    "check_rendered",
    "check_texts",
    "check_weights",
]
