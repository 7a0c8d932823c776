"""Predicting many files: the next images are decoded and the last ones written while the network computes."""

from __future__ import annotations

import glob
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seghiero_core.data.samples import IMAGE_EXTENSIONS, files_below
from seghiero_core.errors import DataError, UsageError
from seghiero_core.predict.picture import MAX_PIXELS, Picture, open_picture
from seghiero_core.predict.predictor import Predictor
from seghiero_core.predict.writer import PredictionWriter, output_paths

MAX_WAITING_WRITES = 4


@dataclass(frozen=True)
class Job:
    """An image file, and the stem of the files that its prediction is written to."""

    image: Path
    stem: Path


@dataclass
class FileResult:
    """What became of a file: `measures` of `PredictionWriter.commit`, or the error's message; ms of computing."""

    image: Path
    ms: float = 0.0
    measures: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    skipped: bool = False


def find_jobs(inputs: Sequence[str | Path], out: Path) -> list[Job]:
    """The images that files, folders (with all below them) and globs (`**` too) stand for.

    Sub-folders are kept below `out`. Raises UsageError for an input that isn't there or holds no image, and where two
    images would be written to the same files.
    """
    jobs: dict[Path, Path] = {}
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            found = [file for file in _images_below(path) if out.resolve() not in file.resolve().parents]
            if not found:
                raise UsageError(f"{given} holds no image ({', '.join(sorted(IMAGE_EXTENSIONS))}).")
            relative = {file: file.relative_to(path) for file in found}
        elif path.exists():
            relative = {path: Path(path.name)}
        elif glob.has_magic(str(given)):
            names = glob.glob(str(given), recursive=True)  # noqa: PTH207, Path.glob takes no absolute patterns
            files = sorted(Path(name) for name in names if Path(name).is_file())
            if not files:
                raise UsageError(f"{given}: no file is named so.")
            fixed = Path(*_before_magic(path))
            relative = {file: file.relative_to(fixed) for file in files}
        else:
            raise UsageError(f"{given}: there is no such file or folder.")
        for file, name in relative.items():
            stem = out / name.with_suffix("")
            if jobs.setdefault(stem, file).resolve() != file.resolve():
                raise UsageError(
                    f"{jobs[stem]} and {file} would both be written to {stem}.*; predict them with different --out."
                )
    return [Job(image, stem) for stem, image in jobs.items()]


def predict_files(
    predictor: Predictor,
    jobs: Sequence[Job],
    *,
    probabilities: bool = False,
    skip_existing: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[FileResult]:
    """Predict and write every job, in order. A file that can't be read gives a result with its error.

    Images of one size go through the network `predictor.batch_size` at a time. Whatever else goes wrong (a full disk,
    no memory) is raised, and leaves no unfinished file.
    """
    todo = deque(jobs)
    opened: deque[tuple[Job, Future[Picture] | None]] = deque()
    writing: deque[_Writing] = deque()
    reader, writer = ThreadPoolExecutor(1, "read"), ThreadPoolExecutor(1, "write")
    try:
        while todo or opened:
            while todo and len(opened) <= predictor.batch_size:
                job = todo.popleft()
                paths = output_paths(job.stem, predictor.hierarchy, probabilities=probabilities)
                skip = skip_existing and all(path.exists() for path in paths)
                opened.append((job, None if skip else reader.submit(open_picture, job.image, max_pixels=max_pixels)))
            batch = _next_batch(opened, predictor)
            if isinstance(batch, FileResult):
                # it comes after those before it that are still being written
                yield from _finished(writing, 0)
                yield batch
                continue
            yield from _predict(predictor, batch, probabilities, writer, writing)
        yield from _finished(writing, 0)
    finally:
        reader.shutdown(cancel_futures=True)
        writer.shutdown(cancel_futures=True)
        for unfinished in writing:
            unfinished.output.discard()


def _next_batch(
    opened: deque[tuple[Job, Future[Picture] | None]], predictor: Predictor
) -> list[tuple[Job, Picture]] | FileResult:
    """The next images of one size, or the result of one that is skipped or can't be read."""
    batch: list[tuple[Job, Picture]] = []
    while opened and len(batch) < predictor.batch_size:
        job, future = opened[0]
        try:
            picture = None if future is None else future.result()
        except DataError as error:
            if batch:
                break
            opened.popleft()
            return FileResult(job.image, error=str(error))
        if batch and (picture is None or (picture.height, picture.width) != (batch[0][1].height, batch[0][1].width)):
            break
        opened.popleft()
        if picture is None:
            return FileResult(job.image, skipped=True)
        batch.append((job, picture))
        if predictor.is_tiled(picture):
            break
    return batch


def _predict(
    predictor: Predictor,
    batch: list[tuple[Job, Picture]],
    probabilities: bool,
    writer: ThreadPoolExecutor,
    writing: deque[_Writing],
) -> Iterator[FileResult]:
    pictures = [picture for _, picture in batch]
    started = time.perf_counter()
    begun: list[_Writing] = []
    try:
        for strips in predictor.strips(pictures, scores=probabilities):
            if not begun:  # only now is it known that the first rows can be read
                begun = [_Writing(predictor, job, picture, probabilities) for job, picture in batch]
                writing.extend(begun)
            for one, picture, strip in zip(begun, pictures, strips, strict=True):
                rows = picture.crop(strip.top, strip.top + len(strip.ids[0]), 0, picture.width)
                one.steps.append(writer.submit(one.output.write, strip, rows))
                one.wait_for_all_but(1)
    except DataError as error:  # a large image, whose rows are read as they are needed
        for one in begun:
            writing.remove(one)
            one.wait_for_all_but(0)
            one.output.discard()
        yield from _finished(writing, 0)
        yield FileResult(batch[0][0].image, error=str(error))
        return
    for one in begun:
        one.ms = (time.perf_counter() - started) * 1000 / len(batch)
        one.steps.append(writer.submit(one.commit, list(one.steps)))
    yield from _finished(writing, MAX_WAITING_WRITES)


def _finished(writing: deque[_Writing], leave: int) -> Iterator[FileResult]:
    """The results of all but the last `leave`, in order. One that fails stays, to be discarded."""
    while len(writing) > leave:
        result = writing[0].result()
        writing.popleft()
        yield result


class _Writing:
    """The files of one image that are being written: its steps in the writer's queue, in order."""

    def __init__(self, predictor: Predictor, job: Job, picture: Picture, probabilities: bool):
        self.image, self.ms = job.image, 0.0
        self.steps: deque[Future[Any]] = deque()
        self.output = PredictionWriter(
            job.stem,
            predictor.hierarchy,
            picture.height,
            picture.width,
            probabilities=probabilities,
            undecided=predictor.undecided,
        )

    def commit(self, written: list[Future[Any]]) -> dict[str, Any]:
        for step in written:  # done by now; one that failed is raised here, so that its file gets no name
            step.result()
        return self.output.commit()

    def wait_for_all_but(self, count: int) -> None:
        while len(self.steps) > count:
            self.steps.popleft().result()

    def result(self) -> FileResult:
        self.wait_for_all_but(1)
        return FileResult(self.image, self.ms, self.steps.popleft().result())


def _images_below(folder: Path) -> list[Path]:
    return [file for file in files_below(folder) if file.suffix.lower() in IMAGE_EXTENSIONS]


def _before_magic(pattern: Path) -> list[str]:
    parts: list[str] = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return parts
