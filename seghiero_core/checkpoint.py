"""Checkpoint folders: written completely or not at all, verified on reading, read without running code from them.

A run folder contains `checkpoints/step-00000500/` and the links `last` and `best`. A checkpoint contains
`model.safetensors` (the weights to use: the EMA weights if the run keeps them), `config.yaml`, `metrics.json`,
`training.safetensors` and `training.json` (the training state, to resume from), and `manifest.json` with the SHA-256
of the other files and a record of the plugins the model came from. Reading a checkpoint loads no plugin and never uses
the network.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seghiero_core.atomic import file_sha256, remove_folder, replace_link, sync, temporary_name
from seghiero_core.config.loading import parse_config
from seghiero_core.config.schema import Config
from seghiero_core.config.yaml_reader import read_yaml_file
from seghiero_core.errors import CheckpointError, SeghieroError, UsageError
from seghiero_core.plugins.records import changed_plugins, missing_plugins, plugin_records
from seghiero_core.version import __version__

if TYPE_CHECKING:
    import torch

FORMAT = 1


class DamagedCheckpoint(CheckpointError):
    """A file of a checkpoint is missing, unreadable or changed."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder; its tensors are read on demand.

    Attributes:
        folder: The absolute path.
        config: The run's config.
        metrics: The metrics of its validation.
        changes: A sentence for each plugin whose source files have changed since the checkpoint was written.
    """

    folder: Path
    config: Config
    metrics: Mapping[str, Any]
    changes: tuple[str, ...] = ()

    def model_tensors(self) -> dict[str, torch.Tensor]:
        """Read the weights.

        Returns:
            The model's state dict, on the CPU.

        Raises:
            DamagedCheckpoint: When the file can't be read.
        """
        return _tensors(self.folder / "model.safetensors")

    def training_state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Read the state to resume training from.

        Returns:
            The tensors, on the CPU, and the plain values, both by name.

        Raises:
            CheckpointError: When the checkpoint contains weights only.
            DamagedCheckpoint: When a file can't be read.
        """
        if not (self.folder / "training.json").exists():
            raise CheckpointError(f"{self.folder} contains weights only; training can't resume from it.")
        return _tensors(self.folder / "training.safetensors"), _json(self.folder / "training.json")


def save_checkpoint(
    run: Path,
    step: int,
    *,
    config: Config,
    metrics: Mapping[str, Any],
    model: Mapping[str, torch.Tensor],
    training: Mapping[str, torch.Tensor],
    progress: Mapping[str, Any],
    best: bool,
) -> Path:
    """Write a checkpoint, point the link `last` at it, and delete older ones.

    The previous checkpoint is kept, in case this one is damaged later. A linked folder is never replaced: a second
    checkpoint of the same step gets the suffix -2.

    Args:
        run: The run folder.
        step: Optimizer steps so far.
        config: The run's config.
        metrics: The metrics of the validation at this step, plain values.
        model: The state dict of the weights to use.
        training: The tensors of the training state, by name.
        progress: The plain values of the training state, by name.
        best: Point the link `best` at it too.

    Returns:
        The checkpoint folder.

    Raises:
        CheckpointError: When safetensors can't write a file, usually because the disk is full.
        OSError: When another file can't be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder, count = run / "checkpoints" / f"step-{step:08d}", 1
    while folder.resolve() in _linked(run):
        count += 1
        folder = folder.with_name(f"step-{step:08d}-{count}")
    temporary = temporary_name(folder)
    temporary.mkdir(parents=True)
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in model.items()}, temporary / "model.safetensors")
        save_file({k: v.detach().cpu().contiguous() for k, v in training.items()}, temporary / "training.safetensors")
        (temporary / "config.yaml").write_text(config.to_yaml())
        (temporary / "metrics.json").write_text(json.dumps(metrics, indent=1))
        (temporary / "training.json").write_text(json.dumps(progress, indent=1))
        hashes = {file.name: file_sha256(file) for file in sorted(temporary.iterdir())}
        manifest = {
            "format": FORMAT,
            "seghiero_version": __version__,
            "step": step,
            "plugins": plugin_records(config.backbone.type, config.head.type),
            "sha256": hashes,
        }
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        remove_folder(folder)
        temporary.rename(folder)
        sync(folder.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, SafetensorError):  # safetensors reports a full disk as its own error
            raise CheckpointError(f"can't write {folder}: {error}. Free some space, then --resume.") from None
        raise
    for name in ["last", "best"] if best else ["last"]:
        replace_link(run / name, folder)
    keep = _linked(run) | {other.resolve() for other in sorted(folder.parent.glob("step-*"))[-2:]}
    for other in folder.parent.iterdir():
        if other.resolve() not in keep:
            remove_folder(other)
    return folder


def repair_run(run: Path, newest: Path, damaged: Sequence[Path], *, best: bool) -> None:
    """Clean up a run folder after a killed process or damaged files, before training resumes.

    `last` is pointed at the newest intact checkpoint, and so is `best` if its own folder is damaged. Damaged folders
    are renamed to `damaged-...`; the next save deletes them. Temporary files of interrupted saves are deleted.

    Args:
        run: The run folder.
        newest: Its newest intact checkpoint.
        damaged: Its damaged checkpoints, resolved paths.
        best: Point `best` at `newest` in any case.
    """
    if best or (run / "best").resolve() in damaged:
        replace_link(run / "best", newest)
    replace_link(run / "last", newest)
    for folder in damaged:
        folder.rename(folder.with_name(f"damaged-{folder.name}"))
    for leftover in [*run.glob(".*"), *newest.parent.glob(".*")]:
        if leftover.is_symlink():
            leftover.unlink()
        else:
            remove_folder(leftover)


def find_checkpoint(path: str | Path | None, runs: Path = Path("runs")) -> Path:
    """Find the checkpoint folder that a path refers to.

    Args:
        path: A run folder (its `best`, or else `last`), a checkpoint folder, or the model.safetensors in one.
            Default: the newest run in `runs`.
        runs: Where to look for the newest run.

    Returns:
        The checkpoint folder, which may be a link.

    Raises:
        UsageError: When no checkpoint is found.
    """
    path = _newest_run(runs) if path is None else Path(path)
    if not path.exists():
        raise UsageError(f"{path}: no such run folder or checkpoint.")
    if path.is_file():
        if path.name != "model.safetensors":
            raise UsageError(
                f"{path} is not a checkpoint; give a run folder, a checkpoint folder or a model.safetensors "
                "(`predict` also accepts a .onnx file)."
            )
        return path.parent
    if (path / "model.safetensors").exists():
        return path
    for name in ("best", "last"):
        if (path / name).exists():
            return path / name
    raise UsageError(f"{path} contains no checkpoint (no best/, last/ or model.safetensors).")


def read_checkpoint(folder: Path) -> Checkpoint:
    """Verify the files of a checkpoint and read its config and metrics.

    Args:
        folder: The checkpoint folder, or a link to it.

    Returns:
        The checkpoint.

    Raises:
        DamagedCheckpoint: When a file is missing or its hash differs from the manifest's.
        CheckpointError: When a plugin is missing, or the format or config is of an incompatible version.
    """
    folder = folder.resolve()
    manifest = _json(folder / "manifest.json")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} was written by seghiero {manifest.get('seghiero_version', '?')} in format "
            f"{manifest.get('format', '?')}, but this version ({__version__}) reads format {FORMAT}."
        )
    for name, digest in manifest["sha256"].items():
        if not (folder / name).is_file():
            raise DamagedCheckpoint(f"{folder}: {name} is missing; the checkpoint is damaged.")
        if file_sha256(folder / name) != digest:
            raise DamagedCheckpoint(f"{folder}: {name} has changed since it was written; the checkpoint is damaged.")
    if missing := missing_plugins(manifest.get("plugins", ())):
        raise CheckpointError(f"{folder}: {missing}")
    try:
        data, _ = read_yaml_file(folder / "config.yaml")
        config = parse_config(data, folder / "config.yaml")
    except SeghieroError as error:
        raise CheckpointError(f"{folder}: this version can't use its config:\n{error}") from None
    changes = changed_plugins(manifest.get("plugins", ()))
    return Checkpoint(folder, config, _json(folder / "metrics.json"), tuple(changes))


def newest_intact_checkpoint(run: Path) -> tuple[Checkpoint | None, dict[Path, str]]:
    """Read the newest checkpoint of a run that isn't damaged.

    Args:
        run: The run folder.

    Returns:
        The checkpoint, or None; and for each newer, damaged folder (a resolved path) what is wrong with it.

    Raises:
        CheckpointError: When that checkpoint can't be used because of its plugins, format or config.
    """
    damaged: dict[Path, str] = {}
    for folder in sorted((run / "checkpoints").glob("step-*"), reverse=True):
        try:
            return read_checkpoint(folder), damaged
        except DamagedCheckpoint as error:
            damaged[folder.resolve()] = str(error)
    return None, damaged


def _newest_run(runs: Path) -> Path:
    found = [run for run in runs.glob("*/") if (run / "best").exists() or (run / "last").exists()]
    if not found:
        near = max(Path().glob("*/runs/*/last"), key=lambda last: last.lstat().st_mtime, default=None)
        hint = f" There is one in {near.parent}." if near else ""
        raise UsageError(f"no run in {runs.absolute()}; name a run folder or a checkpoint, or train first.{hint}")
    return max(found, key=lambda run: (run / "last" if (run / "last").exists() else run / "best").stat().st_mtime)


def _linked(run: Path) -> set[Path]:
    """The checkpoint folders that the run's links point at."""
    return {(run / name).resolve() for name in ("last", "best")}


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"can't read {path} ({error}); the checkpoint is damaged.") from None


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DamagedCheckpoint(f"can't read {path} ({error}); the checkpoint is damaged.") from None
