"""Finding the images to predict, and where their results go."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seghiero_core.data.bands import ARRAY_EXTENSION
from seghiero_core.data.pairing import PREDICTED_EXTENSIONS, files_below
from seghiero_core.errors import UsageError
from seghiero_core.events import Notify, ignore_events


@dataclass(frozen=True)
class Job:
    """An image to predict.

    Attributes:
        image: The image file.
        stem: Where its prediction goes, without an ending (see `Outputs.paths`).
    """

    image: Path
    stem: Path


def find_jobs(
    inputs: Sequence[str | Path], out: Path, notify: Notify = ignore_events, *, arrays: bool = False
) -> list[Job]:
    """Find the images to predict.

    Args:
        inputs: Image files, folders (searched with all their sub-folders) and globs (with `**` for sub-folders).
        out: The folder for the results. Sub-folders of inputs are kept below it, and images in it are not inputs.
        notify: Receives an event "skipped" for each folder that holds other files than images: "folder", and "files",
            the number of them by extension.
        arrays: Whether .npy files are images, as they are for networks with `bands`.

    Returns:
        One job per image.

    Raises:
        UsageError: An input doesn't exist or has no images, or two images would be written to the same files.
    """
    extensions = PREDICTED_EXTENSIONS | {ARRAY_EXTENSION} if arrays else PREDICTED_EXTENSIONS
    jobs: dict[Path, Path] = {}
    for given in inputs:
        for file, name in _images_of(given, out, extensions, notify).items():
            stem = out / name.with_suffix("")
            if jobs.setdefault(stem, file).resolve() != file.resolve():
                raise UsageError(
                    f"{jobs[stem]} and {file} would both be written to {stem}.*. Predict one kind of file at a time, "
                    f"for example '{file.parent}/*{file.suffix}', each with its own --out."
                )
    return [Job(image, stem) for stem, image in jobs.items()]


def _images_of(given: str | Path, out: Path, extensions: frozenset[str], notify: Notify) -> dict[Path, Path]:
    """The images that an input stands for, with their names below `out`."""
    path = Path(given)
    if path.is_dir():
        files = [file for file in files_below(path) if out.resolve() not in file.resolve().parents]
        images = [file for file in files if file.suffix.lower() in extensions]
        if others := Counter(file.suffix.lower() for file in files if file.suffix.lower() not in extensions):
            notify({"event": "skipped", "folder": path, "files": dict(others.most_common())})
        if not images and out.resolve().is_relative_to(path.resolve()):
            raise UsageError(f"{given} contains no images outside of the folder for the results, {out}.")
        if not images:
            raise UsageError(f"{given} contains no images ({', '.join(sorted(extensions))}).")
        return {file: file.relative_to(path) for file in images}
    if path.exists():
        return {path: Path(path.name)}
    if glob.has_magic(str(given)):
        names = glob.glob(str(given), recursive=True)  # noqa: PTH207, Path.glob takes no absolute patterns
        images = sorted(Path(name) for name in names if Path(name).is_file())
        if not images:
            raise UsageError(f"{given}: no file matches.")
        return {file: file.relative_to(_folder_before_wildcards(path)) for file in images}
    raise UsageError(f"{given}: no such file or folder.")


def _folder_before_wildcards(pattern: Path) -> Path:
    parts: list[str] = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts)
