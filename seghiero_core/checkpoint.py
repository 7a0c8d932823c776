"""Checkpoint folders: written beside, synced, hashed and renamed; read without running code or using the network.

A run folder holds `checkpoints/step-00000500/` and the links `last` and `best` into it. A checkpoint holds
`model.safetensors` (the weights to use: the averaged ones where the run keeps an average), `config.yaml`,
`metrics.json`, `training.safetensors` and `training.json` (what training needs to go on), and `manifest.json` with
the SHA-256 of the others and the plugins that its backbone and head came from. No plugin is loaded because a
checkpoint names it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seghiero_core.atomic import file_sha256, temporary_name
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
    """A checkpoint of which a part is missing, unreadable or not what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole, verified checkpoint folder; tensors are read when asked for.

    `changes` has a sentence for each plugin whose source is no longer what it was when the checkpoint was written.
    """

    folder: Path
    config: Config
    metrics: Mapping[str, Any]
    changes: tuple[str, ...] = ()

    def model_tensors(self) -> dict[str, torch.Tensor]:
        """The model's state dict, on the CPU."""
        return _tensors(self.folder / "model.safetensors")

    def training_state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The tensors and the plain values that training goes on from. Raises CheckpointError where there are none."""
        if not (self.folder / "training.json").exists():
            raise CheckpointError(f"{self.folder} holds weights only; training can't be resumed from it.")
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
    """Write the checkpoint of `step` and point `last`, and with `best` also `best`, at it.

    Of the older ones the one before stays, in case this one is damaged later; others without a link go. A folder that
    a link points at is never replaced: a second checkpoint of one step gets the name of the first with -2.
    """
    from safetensors.torch import save_file

    folder = run / "checkpoints" / f"step-{step:08d}"
    while folder.resolve() in _linked(run):
        folder = folder.with_name(f"step-{step:08d}-{int(folder.name[14:] or 1) + 1}")
    beside = temporary_name(folder)
    beside.mkdir(parents=True)
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in model.items()}, beside / "model.safetensors")
        save_file({k: v.detach().cpu().contiguous() for k, v in training.items()}, beside / "training.safetensors")
        (beside / "config.yaml").write_text(config.to_yaml())
        (beside / "metrics.json").write_text(json.dumps(metrics, indent=1))
        (beside / "training.json").write_text(json.dumps(progress, indent=1))
        hashes = {file.name: file_sha256(file) for file in sorted(beside.iterdir())}
        manifest = {
            "format": FORMAT,
            "seghiero_version": __version__,
            "step": step,
            "plugins": plugin_records(config.backbone.type, config.head.type),
            "sha256": hashes,
        }
        (beside / "manifest.json").write_text(json.dumps(manifest, indent=1))
        for file in beside.iterdir():
            _sync(file)
        _sync(beside)
        _remove(folder)
        beside.rename(folder)
        _sync(folder.parent)
    except BaseException as error:
        shutil.rmtree(beside, ignore_errors=True)
        if type(error).__name__ == "SafetensorError":  # its writer reports a full disk only in words
            raise CheckpointError(f"{folder} could not be written: {error}. Free some space, then --resume.") from None
        raise
    for name in ["last", "best"] if best else ["last"]:
        _link(run / name, folder)
    keep = _linked(run) | {other.resolve() for other in sorted(folder.parent.glob("step-*"))[-2:]}
    for other in folder.parent.iterdir():
        if other.resolve() not in keep:
            _remove(other)
    return folder


def repair_run(run: Path, whole: Path, damaged: Sequence[Path], *, best: bool) -> None:
    """Put a run folder in order whose newest whole checkpoint is `whole`, after a kill or damage.

    `last` points at `whole`, and `best` too with `best` or where its own folder is damaged. What killed saves left
    goes; the `damaged` folders get another name, and go with the next save.
    """
    if best or (run / "best").resolve() in damaged:
        _link(run / "best", whole)
    _link(run / "last", whole)
    for folder in damaged:
        folder.rename(folder.with_name(f"damaged-{folder.name}"))
    for left in [*run.glob(".*"), *whole.parent.glob(".*")]:
        if left.is_symlink():
            left.unlink()
        else:
            _remove(left)


def find_checkpoint(path: str | Path | None, runs: Path = Path("runs")) -> Path:
    """The checkpoint folder meant by `path`: a run folder stands for its `best`, a model.safetensors for its folder.

    Left out, it is that of the newest run below `runs`. Raises UsageError where there is none.
    """
    if path is None:
        found = [run for run in runs.glob("*/") if (run / "best").exists() or (run / "last").exists()]
        if not found:
            near = max(Path().glob("*/runs/*/last"), key=lambda last: last.lstat().st_mtime, default=None)
            hint = f" There is {near.parent}." if near else ""
            raise UsageError(
                f"no run under {runs.absolute()}; name a run folder or a checkpoint, or train one first.{hint}"
            )
        path = max(found, key=lambda run: (run / "last").stat().st_mtime)
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path}: there is no such run folder or checkpoint.")
    if path.is_file():
        if path.name != "model.safetensors":
            raise UsageError(
                f"{path} is no checkpoint; name a run folder, a checkpoint folder or a model.safetensors "
                "(`predict` takes a .onnx file too)."
            )
        return path.parent
    if (path / "model.safetensors").exists():
        return path
    for name in ("best", "last"):
        if (path / name).exists():
            return path / name
    raise UsageError(f"{path} holds no checkpoint (no best/, last/ or model.safetensors).")


def read_checkpoint(folder: Path) -> Checkpoint:
    """Verify the hashes of a checkpoint folder and read its config and metrics. Raises CheckpointError."""
    folder = folder.resolve()
    manifest = _json(folder / "manifest.json")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} was written by seghiero {manifest.get('seghiero_version', '?')} in format "
            f"{manifest.get('format', '?')}; this is {__version__}, which reads format {FORMAT}."
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
        raise CheckpointError(f"{folder}: its config can't be used here:\n{error}") from None
    changes = changed_plugins(manifest.get("plugins", ()))
    return Checkpoint(folder, config, _json(folder / "metrics.json"), tuple(changes))


def newest_whole_checkpoint(run: Path) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The newest checkpoint of a run that is whole, and a message for each folder passed over as damaged.

    Raises CheckpointError for a newer one that is whole and can't be used here (its plugins, its format).
    """
    damaged: dict[Path, str] = {}
    folders = sorted((run / "checkpoints").glob("step-*"), reverse=True)
    for folder in folders:
        try:
            return read_checkpoint(folder), damaged
        except DamagedCheckpoint as error:
            damaged[folder.resolve()] = str(error)
    return None, damaged


def _linked(run: Path) -> set[Path]:
    return {(run / name).resolve() for name in ("last", "best")}


def _remove(folder: Path) -> None:
    """Remove a folder so that a kill midway leaves no half of a checkpoint: it is hidden first."""
    if folder.exists() and not folder.name.startswith("."):
        hidden = temporary_name(folder, ".gone")
        folder = folder.rename(hidden)
    shutil.rmtree(folder, ignore_errors=True)


def _link(link: Path, folder: Path) -> None:
    """Point `link` at `folder` in one step: a link is made beside it and renamed over it."""
    beside = temporary_name(link)
    beside.unlink(missing_ok=True)
    beside.symlink_to(folder.relative_to(link.parent), target_is_directory=True)
    beside.replace(link)
    _sync(link.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"{path} can't be read ({error}); the checkpoint is damaged.") from None


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DamagedCheckpoint(f"{path} can't be read ({error}); the checkpoint is damaged.") from None
