"""Predicting many files: while the network computes, the next images are decoded and the last ones written.

Reading and writing have one thread each. `predict_files` is the loop; `_Writing` is an image that has been predicted
but isn't written yet. `jobs` finds the files.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seghiero_core.errors import DataError
from seghiero_core.events import Notify, ignore_events
from seghiero_core.model.tiling import Picture
from seghiero_core.predict.jobs import Job
from seghiero_core.predict.origin import decisive_values
from seghiero_core.predict.outputs import Outputs, OutputWriter
from seghiero_core.predict.picture import open_picture
from seghiero_core.predict.piece import Piece
from seghiero_core.predict.predictor import Predictor
from seghiero_core.predict.raster import is_raster

MAX_WAITING_WRITES = 4
"""Predicted images that may wait to be written, before the network waits for them."""


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


def predict_files(
    predictor: Predictor,
    jobs: Sequence[Job],
    outputs: Outputs,
    *,
    skip_existing: bool = False,
    max_pixels: int | None = None,
    notify: Notify = ignore_events,
) -> Iterator[FileResult]:
    """Predict images and write the results. Images of one size are batched, `predictor.batch_size` at a time.

    An image that can't be read doesn't stop the others. Any other failure (disk full, out of memory) is raised, and
    leaves no unfinished files, except of a raster: the next call goes on where it was.

    Args:
        predictor: The network.
        jobs: The images.
        outputs: What to write.
        skip_existing: Skip images whose files all exist.
        max_pixels: Refuse larger images. Default: `picture.MAX_PIXELS`, but for rasters no limit.
        notify: Receives the events of `Unfinished` and, after each row of tiles of a raster, "rows": "image", "done"
            and "height", in px.

    Yields:
        One result per job, in the order of the jobs.
    """

    def open_job(job: Job) -> _Opened | FileResult:
        paths = outputs.paths(job.stem, raster=is_raster(job.image))
        if skip_existing and all(path.exists() for path in paths):
            return FileResult(job.image, skipped=True)
        try:
            return _Opened(job, open_picture(job.image, bands=predictor.bands, max_pixels=max_pixels))
        except DataError as error:
            return FileResult(job.image, error=str(error))

    waiting = deque(jobs)
    opened: deque[Future[_Opened | FileResult]] = deque()
    reader, writer = ThreadPoolExecutor(1, "read"), ThreadPoolExecutor(1, "write")
    queue = _Queue(predictor, outputs, writer, notify)
    try:
        while waiting or opened:
            while waiting and len(opened) <= predictor.batch_size:
                opened.append(reader.submit(open_job, waiting.popleft()))
            first = opened[0].result()
            if isinstance(first, FileResult):  # skipped or unreadable
                opened.popleft()
                yield from queue.finish(0)
                yield first
            else:
                yield from queue.predict(_next_batch(opened, predictor))
        yield from queue.finish(0)
    finally:
        reader.shutdown(cancel_futures=True)
        writer.shutdown(cancel_futures=True)
        for unfinished in queue.writing:
            unfinished.suspend()


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


class _Queue:
    """Predicts batches, and keeps the images that are being written."""

    def __init__(self, predictor: Predictor, outputs: Outputs, writer: ThreadPoolExecutor, notify: Notify) -> None:
        self.predictor, self.outputs, self.writer, self.notify = predictor, outputs, writer, notify
        self.writing: deque[_Writing] = deque()

    def predict(self, batch: list[_Opened]) -> Iterator[FileResult]:
        """Predict a batch and write it; yield the results of images that have to be complete by now."""
        started = time.perf_counter()
        begun: list[_Writing] = []
        pictures = [picture for _, picture in batch]
        try:
            if pictures[0].raster is not None and self.predictor.is_tiled(pictures[0]):
                self._begin(batch, begun)
            start = begun[0].output.start if begun else 0
            for pieces in self.predictor.pieces(pictures, scores=self.outputs.scores, start=start):
                if not begun:  # only now is it known that the first rows can be read
                    self._begin(batch, begun)
                for image, picture, piece in zip(begun, pictures, pieces, strict=True):
                    height, width = piece.size
                    shown = picture.shown(piece.top, piece.top + height, piece.left, piece.left + width)
                    image.write(piece, shown)
                    if picture.raster is not None and piece.left + width == picture.width:
                        rows = {"done": piece.top + height, "height": picture.height}
                        self.notify({"event": "rows", "image": image.image, **rows})
        except DataError as error:  # a large image, whose rows are decoded as they are needed
            for image in begun:
                image.discard()
                self.writing.remove(image)
            if len(batch) > 1:  # find out which one it was
                for one in batch:
                    yield from self.predict([one])
                return
            yield from self.finish(0)
            yield FileResult(batch[0].job.image, error=str(error))
            return
        ms = (time.perf_counter() - started) * 1000 / len(batch)
        for image in begun:
            image.commit(ms)
        yield from self.finish(MAX_WAITING_WRITES)

    def finish(self, leave: int) -> Iterator[FileResult]:
        """Wait for all but the last `leave` images, in order. One that fails stays in the queue, to be suspended."""
        while len(self.writing) > leave:
            result = self.writing[0].result()
            self.writing.popleft()
            yield result

    def _begin(self, batch: list[_Opened], begun: list[_Writing]) -> None:
        for job, picture in batch:
            made_by = {} if picture.raster is None else decisive_values(self.predictor, job.image)
            output = self.outputs.open(job.stem, picture, made_by, self.notify)
            begun.append(_Writing(job.image, output, self.writer))
            self.writing.append(begun[-1])


class _Writing:
    """The files of one image, written by the writer's thread: a `write` per piece, then `commit`."""

    def __init__(self, image: Path, output: OutputWriter, writer: ThreadPoolExecutor):
        self.image, self.output, self.writer = image, output, writer
        self.writes: deque[Future[None]] = deque()
        self.committed: Future[FileResult] | None = None

    def write(self, piece: Piece, image: np.ndarray) -> None:
        """Queue a piece; waits until at most this one is left, so that few are held in memory."""
        self.writes.append(self.writer.submit(self.output.write, piece, image))
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

    def suspend(self) -> None:
        """Close the files of an image that isn't committed."""
        self._settle()
        self.output.suspend()

    def discard(self) -> None:
        """Remove the unfinished files of an image that isn't committed."""
        self._settle()
        self.output.discard()

    def _settle(self) -> None:
        """Wait for what is being written; whether it succeeds doesn't matter any more."""
        for write in self.writes:
            with contextlib.suppress(Exception, CancelledError):
                write.result()

    def _wait_for_writes(self, leave: int) -> None:
        while len(self.writes) > leave:
            self.writes.popleft().result()
