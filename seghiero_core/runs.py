"""Find the checkpoint that a path refers to: a run, a folder of runs, a config, or a checkpoint itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from seghiero_core.config.loading import load_config
from seghiero_core.errors import UsageError, nearest, nearest_path, shorten


class SeveralRuns(UsageError):
    """A folder holds several runs, and one of them has to be named.

    Attributes:
        runs: The run folders, newest first.
    """

    def __init__(self, folder: Path, runs: Sequence[Path]) -> None:
        self.runs = tuple(runs)
        super().__init__(f"{folder} holds {len(runs)} runs; name one of them: {shorten(runs, 10)}.")


def find_checkpoint(path: str | Path | None, runs: Path = Path("runs")) -> Path:
    """Find the checkpoint folder that a path refers to.

    Args:
        path: A run folder (its `best`, or else `last`), a checkpoint folder, or the model.safetensors in one; a folder
            of runs, or a project with the folder `runs`, if it holds a single run; or the YAML file of a config, for
            the run that it describes. Default: the newest run in `runs`.
        runs: Where to look for the newest run.

    Returns:
        The checkpoint folder, which may be a link.

    Raises:
        SeveralRuns: When a folder holds more than one run.
        UsageError: When no checkpoint is found.
        ConfigError: When the config has faults.
    """
    path = _newest_run(runs) if path is None else Path(path)
    if not path.exists():
        raise UsageError(f"{path}: no such run folder or checkpoint.{_what_is_there(path, runs)}")
    if path.is_file():
        return _checkpoint_of_file(path)
    if checkpoint := checkpoint_in(path):
        return checkpoint
    found = _runs_in(path) or _runs_in(path / "runs")
    if len(found) > 1:
        raise SeveralRuns(path, found)
    if found:
        return checkpoint_in(found[0])
    raise UsageError(f"{path} contains no checkpoint (no best/, last/ or model.safetensors) and no run.")


def _what_is_there(path: Path, runs: Path) -> str:
    """A hint for a misspelled path: the most similar run or path, else the newest runs."""
    found = _runs_in(path.parent if path.parent != Path() else runs)
    if near := nearest(path.name, [run.name for run in found]):
        return near.replace("'", f"'{found[0].parent}/", 1)
    return f" Runs: {shorten(found)}." if found else nearest_path(path)


def run_of(checkpoint: Path) -> Path | None:
    """Return the run that a checkpoint belongs to.

    Args:
        checkpoint: A checkpoint folder, or a link to it.

    Returns:
        The absolute path of the run folder, or None for a checkpoint that was copied out of its run.
    """
    folder = checkpoint.resolve()
    return folder.parents[1] if folder.parent.name == "checkpoints" else None


def checkpoint_in(folder: Path) -> Path | None:
    """Return the checkpoint that a folder stands for.

    Args:
        folder: A checkpoint folder or a run folder.

    Returns:
        The folder itself if it is a checkpoint, or the run's link `best`, or else `last`; None where there is neither.
    """
    if (folder / "model.safetensors").exists():
        return folder
    return next((folder / name for name in ("best", "last") if (folder / name).exists()), None)


def _checkpoint_of_file(path: Path) -> Path:
    if path.name == "model.safetensors":
        return path.parent
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(
            f"{path} is not a checkpoint; give a run folder, a checkpoint folder, a model.safetensors or a config's "
            "YAML file (`predict` also accepts a .onnx file)."
        )
    if path.name == "config.yaml" and (checkpoint := checkpoint_in(path.parent)):  # a run's own record
        return checkpoint
    run = load_config(path).run_dir
    if checkpoint := checkpoint_in(run):
        return checkpoint
    raise UsageError(
        f"{path}: its run {run} has no checkpoint. Train it (seghiero train {path}), or name another run folder."
    )


def _runs_in(folder: Path) -> list[Path]:
    """The runs in a folder, newest first."""
    found = [run for run in folder.glob("*/") if (run / "best").exists() or (run / "last").exists()]
    return sorted(found, key=_time_of_writing, reverse=True)


def _time_of_writing(run: Path) -> float:
    return (run / "last" if (run / "last").exists() else run / "best").stat().st_mtime


def _newest_run(runs: Path) -> Path:
    if found := _runs_in(runs):
        return found[0]
    near = max(Path().glob("*/runs/*/last"), key=lambda last: last.lstat().st_mtime, default=None)
    hint = f" There is one in {near.parent}." if near else ""
    raise UsageError(f"no run in {runs.absolute()}; name a run folder or a checkpoint, or train first.{hint}")
