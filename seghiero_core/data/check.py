"""Checking all splits of a data set at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from seghiero_core.config.schema import Config
from seghiero_core.data.audit import Audit, try_audit
from seghiero_core.data.facts import CACHE_VARIABLE, FactsCache
from seghiero_core.data.faults import DataFinding, findings_of
from seghiero_core.data.plausibility import data_warnings
from seghiero_core.data.samples import Sample, try_split
from seghiero_core.errors import DataError


@dataclass(frozen=True)
class Check:
    """What the check of a data set found.

    Attributes:
        audits: The audit of each split that has samples.
        findings: What is wrong in each split, or probably not meant: errors first.
    """

    audits: dict[str, Audit]
    findings: dict[str, list[DataFinding]]

    def raise_errors(self) -> None:
        """Stop where the data can't be trained on.

        Raises:
            DataError: When there are errors; it has a line for each.
        """
        errors = [
            f"{split}: {finding}"
            for split, findings in self.findings.items()
            for finding in findings
            if finding.level == "error"
        ]
        if errors:
            raise DataError("\n".join(errors))


def check_data(
    config: Config,
    samples: Mapping[str, Sequence[Sample]] | None = None,
    *,
    check: Literal["full", "fast"] = "full",
    on_progress: Callable[[str, int, int], None] | None = None,
    cached: bool = True,
) -> Check:
    """Check the splits of a data set, and compare them.

    Args:
        config: A loaded config.
        samples: The samples of the splits to check. Default: those of all splits.
        check: See `audit.audit`.
        on_progress: Called with (split, pairs done, pairs in the split).
        cached: Whether to use the cache of earlier checks.

    Returns:
        The audits and all findings.
    """
    if samples is None:
        found = {split: try_split(config.dataset, split) for split in config.dataset.splits}
    else:
        found = {split: (of_split, {}) for split, of_split in samples.items()}
    names = {position: source.name for position, source in enumerate(config.dataset.sources or ())}
    audits: dict[str, Audit] = {}
    findings: dict[str, list[DataFinding]] = {}
    with FactsCache() if cached else nullcontext() as cache:
        for split, (of_split, missing) in found.items():
            faults: dict[int | None, Sequence[DataFinding]] = {i: findings_of([error]) for i, error in missing.items()}
            if of_split:
                progress = partial(on_progress, split) if on_progress else None
                audit = try_audit(of_split, config.hierarchy, check=check, on_progress=progress, cache=cache)
                for i, part in (audit.sources or {None: audit}).items():
                    faults[i] = [*faults.get(i, []), *part.faults]
                audits[split] = audit
            order = sorted(faults, key=lambda i: -1 if i is None else i)
            findings[split] = [_of_source(each, names.get(i)) for i in order for each in faults[i]]
    for split, warnings in data_warnings(config, audits).items():
        findings[split] += warnings
    if cache and cache.problem:
        text = f"the cache of earlier checks can't be used: {cache.problem}."
        fix = f"Repair or delete it, or set {CACHE_VARIABLE} to another folder, or to `off`."
        findings[next(iter(findings))].append(DataFinding("warning", "cache", text, fix))
    return Check(audits, findings)


def _of_source(finding: DataFinding, name: str | None) -> DataFinding:
    return finding if name is None else replace(finding, text=f"{name}: {finding.text}")
