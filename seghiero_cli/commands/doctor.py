"""`seghiero doctor`: check whether this machine is ready to train, and say how to fix what is not."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from seghiero_cli import console

EXAMPLE = "Example: seghiero doctor cfg.yaml"


def doctor(
    cfg: Annotated[
        Path | None, typer.Argument(metavar="CFG", help="A config whose data, device and folders to check.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as one JSON document.")] = False,
) -> None:
    """Check versions, devices, memory, caches, write access and loader speed. Exit code 5 if something needs fixing."""
    from seghiero_core.doctor import examine
    from seghiero_core.errors import CheckFailed

    findings = []
    for finding in examine(cfg):
        findings.append(finding)
        if not as_json:
            console.result(f"{'ok  ' if finding.advice is None else 'FIX '} {finding.name}: {finding.found}")
            if finding.advice:
                console.result(f"     -> {finding.advice}")
    if as_json:
        console.result_json([asdict(finding) for finding in findings])
    wrong = [finding.name for finding in findings if finding.advice]
    if wrong:
        raise CheckFailed(f"{len(wrong)} of {len(findings)} checks failed: {', '.join(wrong)}.")
