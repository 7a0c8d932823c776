"""The files of a report: one HTML page."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from seghiero_core.atomic import replacing
from seghiero_core.errors import DeviceError, UsageError
from seghiero_core.report.document import fit_pictures, without_pictures
from seghiero_core.report.page import read_page, render_page
from seghiero_core.report.run_facts import run_curves
from seghiero_core.run_files import is_listed, record_file
from seghiero_core.version import __version__

REPORT_NAME = "report.html"
"""The report in a run folder."""
LIMIT = 5_000_000
"""Bytes of a page; pictures that don't fit are left out."""
_MARK = '<meta name="generator" content="seghiero report">'


def write_report(path: Path, document: Mapping[str, Any], run: Path | None = None) -> None:
    """Write a report, in place of an older one.

    Args:
        path: The HTML file.
        document: What `report_document` returns.
        run: The run folder, if the file is in it: --force then removes it with the run.

    Raises:
        UsageError: When the file exists and is not a report.
        DeviceError: When its folder can't be created.
        OSError: When the folder isn't writable or the disk is full.
    """
    check_replaceable(path)
    free = LIMIT - len(render_page(without_pictures(document)).encode())
    page = render_page(fit_pictures(document, free))
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    if run is not None and not is_listed(run, path):
        with contextlib.suppress(OSError):  # a file that the list doesn't name stays when the run is overwritten
            record_file(run, path, changes=True)


def update_status(run: Path, status: str, *, only_from: str | None = None) -> None:
    """Change what the page of a run says about its training, and add the steps since. Without a page, do nothing.

    The page is for people to look at: one that can't be read or written stays as it is, and nothing is raised.

    Args:
        run: The run folder.
        status: "training" or "interrupted".
        only_from: Change only this status. Default: any.
    """
    path = run / REPORT_NAME
    with contextlib.suppress(UsageError, DeviceError, OSError, ValueError, KeyError):
        document = read_page(path.read_text(encoding="utf-8"))
        if document["seghiero"] != __version__:
            return
        (shown,) = document["runs"]
        if only_from in (None, shown["status"]):
            shown |= {"status": status, "curves": run_curves(run)}
            write_report(path, document | {"created": datetime.now(UTC).isoformat(timespec="seconds")})


def check_replaceable(path: Path) -> None:
    """Check that a report can be written to a path without losing something else.

    Args:
        path: The HTML file, which need not exist.

    Raises:
        UsageError: When it exists and is not a report.
    """
    if not path.exists():
        return
    if path.is_dir():
        raise UsageError(f"can't write {path}: it is a folder.")
    with path.open(encoding="utf-8", errors="replace") as file:
        if _MARK not in file.read(2000):
            raise UsageError(f"{path} is not a report, so it isn't replaced; move it away, or choose another --out.")
