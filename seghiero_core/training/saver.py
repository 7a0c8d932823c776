"""When a run's state is written: at intervals, on request, and when the run fails between two steps."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

from seghiero_core.checkpoint import add_metrics
from seghiero_core.data.loaders import WORKER_DIED, is_dead_worker
from seghiero_core.devices import is_lost_peer, is_out_of_memory
from seghiero_core.errors import CheckpointError, DataError, DeviceError, SeghieroError, UsageError
from seghiero_core.training.batch_size import out_of_memory_error
from seghiero_core.training.progress import TrainingProgress
from seghiero_core.training.run import Run
from seghiero_core.training.run_folder import begin_run
from seghiero_core.training.state import save_run

_SECONDS = {"s": 1, "m": 60, "h": 3600}


class Saver:
    """Writes the checkpoints of a run.

    Args:
        run: The run.
        folder: The run folder.
        progress: The loop's own, which it updates after every step.
        checkpoint: The folder of the checkpoint that the run was resumed from.

    Attributes:
        checkpoint: The folder of the last checkpoint, in the main process.
    """

    def __init__(self, run: Run, folder: Path, progress: TrainingProgress, checkpoint: Path | None = None) -> None:
        self.run, self.folder, self.progress = run, folder, progress
        self.checkpoint = checkpoint
        self._saved_step, self._saved_at = progress.step, time.monotonic()

    def due(self) -> bool:
        """Check whether `training.save_every` asks for a checkpoint now.

        Returns:
            True where it does; False where a validation follows, before which one is written anyway.
        """
        every, step = self.run.config.training.save_every, self.progress.step
        if every is None or self.run.validates_after(step):
            return False
        if isinstance(every, int):
            return step % every == 0
        return time.monotonic() - self._saved_at >= int(every[:-1]) * _SECONDS[every[-1]]

    def save(self) -> None:
        """Write a checkpoint, unless there is one of this step, and wait for all processes; each must call it."""
        if self.progress.step != self._saved_step:
            self.checkpoint = save_run(self.run, self.folder, self.progress)
            self._saved_step, self._saved_at = self.progress.step, time.monotonic()
        self.run.accelerator.wait_for_everyone()

    def add_metrics(self, metrics: Mapping[str, Any], report: Mapping[str, Any] | None) -> None:
        """Add the metrics of a validation to the last checkpoint, and wait for all processes; each must call it.

        Args:
            metrics: Plain values for `metrics.json`. The link `best` follows `progress.best_step`.
            report: Plain values for `report.json`, in the main process.
        """
        if self.run.accelerator.is_main_process:
            best = self.progress.best_step == self.progress.step
            add_metrics(self.folder, self.checkpoint, metrics, report or {}, best=best)
        self.run.accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def rescue(self, passes: Sized) -> Iterator[None]:
        """Save the steps since the last checkpoint when the block fails, and name the cause in the error.

        Args:
            passes: The forward passes of the current step. The state is saved only while this is empty, between two
                steps; in the middle of a step, the last checkpoint is kept.

        Yields:
            Nothing.

        Raises:
            DataError: When a file of the data is missing or damaged.
            DeviceError: When memory ran out, a worker or another process died, or the run folder is gone.
        """
        try:
            yield
        except (DataError, DeviceError, OSError, RuntimeError, MemoryError, ValueError) as error:
            folder_is_gone = isinstance(error, OSError) and not self.folder.exists()
            explained = self._explain(error, folder_is_gone=folder_is_gone)
            if explained is None:
                raise
            saved = ""
            has_news = folder_is_gone or self.progress.step > self._saved_step
            if not passes and has_news and self._can_save_alone(error):
                with contextlib.suppress(OSError, CheckpointError):
                    begin_run(self.folder, resume=True)
                    (self.folder / "config.yaml").write_text(self.run.config.to_yaml())
                    save_run(self.run, self.folder, self.progress)
                    saved = f" Step {self.progress.step} was saved in {self.folder}; continue with --resume."
            raise type(explained)(f"{explained}{saved}") from error

    def _explain(self, error: Exception, *, folder_is_gone: bool) -> SeghieroError | None:
        """Return the error that the user is to see, or None for one that is to be raised unchanged."""
        if folder_is_gone:
            return DeviceError(f"{self.folder} was deleted or moved during the run.")
        if isinstance(error, DataError | DeviceError):
            return error
        if is_out_of_memory(error):
            run = self.run
            return out_of_memory_error(run.config, run.accelerator.unwrap_model(run.model), run.accelerator.device)
        if str(error).startswith("Expected more than 1 value per channel"):  # BatchNorm's, of PyTorch
            return UsageError(
                "BatchNorm got a single value per channel: a step has one image per process, and a map one cell. "
                "Set training.batch_size: 2 or more, a larger transform.size, or training.freeze_norm: true."
            )
        if is_dead_worker(error):
            return DeviceError(WORKER_DIED.format(str(error).splitlines()[0]))
        if is_lost_peer(error):
            return DeviceError("another process of the run has ended; see its own message. Continue with --resume.")
        return None

    def _can_save_alone(self, error: Exception) -> bool:
        """Check whether this process can save without the others, on a disk that isn't full."""
        disk_is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        return self.run.accelerator.is_main_process and not self.run.is_sharded and not disk_is_full
