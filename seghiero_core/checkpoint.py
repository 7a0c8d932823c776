"""Checkpoint folders: written completely or not at all, verified on reading, read without running code from them.

A run folder contains `checkpoints/step-00000500/` and the links `last` and `best`. A checkpoint contains
`model.safetensors` (the weights to use: the EMA weights if the run keeps them), `config.yaml`, `training.safetensors`
and `training.json` (the training state, to resume from), `metrics.json` and `report.json` (what a report shows of it)
once it is validated, and `manifest.json` with the SHA-256 of the other files and a record of the plugins the model came
from. Reading a checkpoint loads no plugin and
never uses the network.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seghiero_core.atomic import file_sha256, follow_umask, remove_folder, replace_link, replacing, sync, temporary_name
from seghiero_core.config.loading import parse_config
from seghiero_core.config.schema import Config
from seghiero_core.errors import CheckpointError, SeghieroError
from seghiero_core.hierarchy.yaml_reader import read_yaml_file
from seghiero_core.plugins.records import changed_plugins, missing_plugins, plugin_records
from seghiero_core.run_files import checkpoint_folders, has_other_files, remove_checkpoint
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
        step: Optimizer steps before it was written.
        config: The run's config.
        metrics: The metrics of its validation; empty if there was none.
        changes: A sentence for each plugin whose source files have changed since the checkpoint was written.
    """

    folder: Path
    step: int
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
    metrics: Mapping[str, Any] | None,
    model: Mapping[str, torch.Tensor],
    training: Mapping[str, torch.Tensor],
    progress: Mapping[str, Any],
    best: bool,
) -> Path:
    """Write a checkpoint, point the link `last` at it, and delete older ones.

    The previous checkpoint is kept, in case this one is damaged later. A folder that is linked, or holds other files
    too, is never replaced: a second checkpoint of the same step gets the suffix -2.

    Args:
        run: The run folder.
        step: Optimizer steps so far.
        config: The run's config.
        metrics: The metrics of the validation at this step, plain values. None if it isn't validated (yet).
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
    while folder.resolve() in _linked(run) or has_other_files(folder):
        count += 1
        folder = folder.with_name(f"step-{step:08d}-{count}")
    temporary = temporary_name(folder)
    temporary.mkdir(parents=True)
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in model.items()}, temporary / "model.safetensors")
        save_file({k: v.detach().cpu().contiguous() for k, v in training.items()}, temporary / "training.safetensors")
        for file in temporary.iterdir():
            follow_umask(file)
        (temporary / "config.yaml").write_text(config.to_yaml())
        if metrics is not None:
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
    _remove_old_checkpoints(run)
    return folder


def add_metrics(run: Path, folder: Path, metrics: Mapping[str, Any], report: Mapping[str, Any], *, best: bool) -> None:
    """Add the metrics of a validation to a checkpoint that was written before it; its other files are not rewritten.

    The manifest is replaced last and in one step: until then, the checkpoint is intact and not validated.

    Args:
        run: The run folder.
        folder: The checkpoint folder.
        metrics: The metrics, plain values.
        report: What a report shows of the validation, plain values.
        best: Point the link `best` at it.

    Raises:
        OSError: When a file can't be written.
    """
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, text in (("report.json", json.dumps(report)), ("metrics.json", json.dumps(metrics, indent=1))):
        _replace_text(folder / name, text)
        manifest["sha256"][name] = file_sha256(folder / name)
    _replace_text(folder / "manifest.json", json.dumps(manifest, indent=1))
    if best:
        replace_link(run / "best", folder)
        _remove_old_checkpoints(run)


def repair_run(run: Path, newest: Path, damaged: Sequence[Path], *, best: bool) -> None:
    """Clean up a run folder after a killed process or damaged files, before training resumes.

    `last` is pointed at the newest intact checkpoint, and so is `best` if its own folder is damaged. Damaged folders
    are renamed to `damaged-...`; the next save deletes them.

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
        aside = folder.with_name(f"damaged-{folder.name}")
        while aside.exists():  # one that holds files of the user stays
            aside = aside.with_name(f"damaged-{aside.name}")
        folder.rename(aside)


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
    metrics = _json(folder / "metrics.json") if "metrics.json" in manifest["sha256"] else {}
    return Checkpoint(folder, manifest["step"], config, metrics, tuple(changes))


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
    for folder in reversed(checkpoint_folders(run)):
        try:
            return read_checkpoint(folder), damaged
        except DamagedCheckpoint as error:
            damaged[folder.resolve()] = str(error)
    return None, damaged


def _linked(run: Path) -> set[Path]:
    """The checkpoint folders that the run's links point at."""
    return {(run / name).resolve() for name in ("last", "best")}


def _remove_old_checkpoints(run: Path) -> None:
    """Delete all checkpoints but the linked ones and the newest two."""
    keep = _linked(run) | {folder.resolve() for folder in checkpoint_folders(run)[-2:]}
    for folder in (run / "checkpoints").iterdir():
        if folder.resolve() not in keep:
            remove_checkpoint(folder)


def _replace_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)
        sync(temporary)
    sync(path.parent)


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
