"""Predicting many files: while the network computes, the next images are decoded and the last ones written.

Reading and writing have one thread each. `predict_files` is the loop; `_Writing` is an image that has been predicted
but isn't written yet.
"""

from __future__ import annotations

import glob
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seghiero_core.data.pairing import PREDICTED_EXTENSIONS, files_below
from seghiero_core.errors import DataError, UsageError
from seghiero_core.events import Notify, ignore_events
from seghiero_core.model.tiling import Picture
from seghiero_core.predict.outputs import Outputs
from seghiero_core.predict.picture import MAX_PIXELS, open_picture
from seghiero_core.predict.predictor import Predictor
from seghiero_core.predict.strip import Strip

MAX_WAITING_WRITES = 4
"""Predicted images that may wait to be written, before the network waits for them."""


@dataclass(frozen=True)
class Job:
    """An image to predict.

    Attributes:
        image: The image file.
        stem: Where its prediction goes, without an ending (see `Outputs.paths`).
    """

    image: Path
    stem: Path


@dataclass
class FileResult:
    """The outcome for one image.

    Attributes:
        image: The image file.
        ms: Time spent predicting, ms.
        measures: What `OutputWriter.commit` returned.
        error: Why the image could not be read, or None.
        skipped: Whether its files existed already.
    """

    image: Path
    ms: float = 0.0
    measures: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    skipped: bool = False


def find_jobs(inputs: Sequence[str | Path], out: Path, notify: Notify = ignore_events) -> list[Job]:
    """Find the images to predict.

    Args:
        inputs: Image files, folders (searched with all their sub-folders) and globs (with `**` for sub-folders).
        out: The folder for the results. Sub-folders of inputs are kept below it, and images in it are not inputs.
        notify: Receives an event "skipped" for each folder that holds other files than images: "folder", and "files",
            the number of them by extension.

    Returns:
        One job per image.

    Raises:
        UsageError: An input doesn't exist or has no images, or two images would be written to the same files.
    """
    jobs: dict[Path, Path] = {}
    for given in inputs:
        for file, name in _images_of(given, out, notify).items():
            stem = out / name.with_suffix("")
            if jobs.setdefault(stem, file).resolve() != file.resolve():
                raise UsageError(
                    f"{jobs[stem]} and {file} would both be written to {stem}.*. Predict one kind of file at a time, "
                    f"for example '{file.parent}/*{file.suffix}', each with its own --out."
                )
    return [Job(image, stem) for stem, image in jobs.items()]


def _images_of(given: str | Path, out: Path, notify: Notify) -> dict[Path, Path]:
    """The images that an input stands for, with their names below `out`."""
    path = Path(given)
    if path.is_dir():
        files = [file for file in files_below(path) if out.resolve() not in file.resolve().parents]
        images = [file for file in files if file.suffix.lower() in PREDICTED_EXTENSIONS]
        if others := Counter(file.suffix.lower() for file in files if file.suffix.lower() not in PREDICTED_EXTENSIONS):
            notify({"event": "skipped", "folder": path, "files": dict(others.most_common())})
        if not images and out.resolve().is_relative_to(path.resolve()):
            raise UsageError(f"{given} contains no images outside of the folder for the results, {out}.")
        if not images:
            raise UsageError(f"{given} contains no images ({', '.join(sorted(PREDICTED_EXTENSIONS))}).")
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


def predict_files(
    predictor: Predictor,
    jobs: Sequence[Job],
    outputs: Outputs,
    *,
    skip_existing: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[FileResult]:
    """Predict images and write the results. Images of one size are batched, `predictor.batch_size` at a time.

    An image that can't be read doesn't stop the others. Any other failure (disk full, out of memory) is raised, and
    leaves no unfinished files.

    Args:
        predictor: The network.
        jobs: The images.
        outputs: What to write.
        skip_existing: Skip images whose files all exist.
        max_pixels: Refuse larger images.

    Yields:
        One result per job, in the order of the jobs.
    """

    def open_job(job: Job) -> _Opened | FileResult:
        if skip_existing and all(path.exists() for path in outputs.paths(job.stem)):
            return FileResult(job.image, skipped=True)
        try:
            return _Opened(job, open_picture(job.image, max_pixels=max_pixels))
        except DataError as error:
            return FileResult(job.image, error=str(error))

    waiting = deque(jobs)
    opened: deque[Future[_Opened | FileResult]] = deque()
    writing: deque[_Writing] = deque()
    reader, writer = ThreadPoolExecutor(1, "read"), ThreadPoolExecutor(1, "write")
    try:
        while waiting or opened:
            while waiting and len(opened) <= predictor.batch_size:
                opened.append(reader.submit(open_job, waiting.popleft()))
            first = opened[0].result()
            if isinstance(first, FileResult):  # skipped or unreadable
                opened.popleft()
                yield from _finish(writing, 0)
                yield first
            else:
                yield from _predict(predictor, _next_batch(opened, predictor), outputs, writer, writing)
        yield from _finish(writing, 0)
    finally:
        reader.shutdown(cancel_futures=True)
        writer.shutdown(cancel_futures=True)
        for unfinished in writing:
            unfinished.output.discard()


class _Opened(NamedTuple):
    job: Job
    picture: Picture


def _next_batch(opened: deque[Future[_Opened | FileResult]], predictor: Predictor) -> list[_Opened]:
    """Take the first image from the queue, and those after it that have the same size; alone if it is tiled."""
    first = opened.popleft().result()
    batch = [first]
    if predictor.is_tiled(first.picture):
        return batch
    while opened and len(batch) < predictor.batch_size:
        following = opened[0].result()
        if isinstance(following, FileResult):
            break
        if (following.picture.height, following.picture.width) != (first.picture.height, first.picture.width):
            break
        batch.append(following)
        opened.popleft()
    return batch


def _predict(
    predictor: Predictor,
    batch: list[_Opened],
    outputs: Outputs,
    writer: ThreadPoolExecutor,
    writing: deque[_Writing],
) -> Iterator[FileResult]:
    """Predict a batch and add it to `writing`; yield the results of images that have to be complete by now."""
    started = time.perf_counter()
    begun: list[_Writing] = []
    try:
        for strips in predictor.strips([picture for _, picture in batch], scores=outputs.scores):
            if not begun:  # only now is it known that the first rows can be read
                begun = [_Writing(job, picture, outputs, writer) for job, picture in batch]
                writing.extend(begun)
            for image, (_, picture), strip in zip(begun, batch, strips, strict=True):
                image.write(strip, picture.crop(strip.top, strip.top + len(strip.ids[0]), 0, picture.width))
    except DataError as error:  # a large image, whose rows are decoded as they are needed
        for image in begun:
            image.discard()
            writing.remove(image)
        if len(batch) > 1:  # find out which one it was
            for one in batch:
                yield from _predict(predictor, [one], outputs, writer, writing)
            return
        yield from _finish(writing, 0)
        yield FileResult(batch[0].job.image, error=str(error))
        return
    ms = (time.perf_counter() - started) * 1000 / len(batch)
    for image in begun:
        image.commit(ms)
    yield from _finish(writing, MAX_WAITING_WRITES)


def _finish(writing: deque[_Writing], leave: int) -> Iterator[FileResult]:
    """Wait for all but the last `leave` images, in order. One that fails stays in the queue, to be discarded."""
    while len(writing) > leave:
        result = writing[0].result()
        writing.popleft()
        yield result


class _Writing:
    """The files of one image, written by the writer's thread: a `write` per strip, then `commit`."""

    def __init__(self, job: Job, picture: Picture, outputs: Outputs, writer: ThreadPoolExecutor):
        self.image, self.writer = job.image, writer
        self.writes: deque[Future[None]] = deque()
        self.committed: Future[FileResult] | None = None
        self.output = outputs.open(job.stem, picture.height, picture.width)

    def write(self, strip: Strip, rows: np.ndarray) -> None:
        """Queue a strip; waits until at most this one is left, so that few are held in memory."""
        self.writes.append(self.writer.submit(self.output.write, strip, rows))
        self._wait_for_writes(1)

    def commit(self, ms: float) -> None:
        """Queue the renaming of the files."""
        self.committed = self.writer.submit(self._commit, ms)

    def _commit(self, ms: float) -> FileResult:
        self._wait_for_writes(0)  # they are done by now; a failed one is raised here, before its file gets a name
        return FileResult(self.image, ms, self.output.commit())

    def result(self) -> FileResult:
        """Wait until the files are complete; raises what went wrong."""
        return self.committed.result()

    def discard(self) -> None:
        """Remove the unfinished files of an image that isn't committed."""
        self._wait_for_writes(0)
        self.output.discard()

    def _wait_for_writes(self, leave: int) -> None:
        while len(self.writes) > leave:
            self.writes.popleft().result()
