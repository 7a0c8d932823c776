"""When a run's state is written: at intervals, where it is asked for, and when the run fails between two steps."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any

from seghiero_core.data.loaders import WORKER_DIED, is_dead_worker
from seghiero_core.devices import is_lost_peer, is_out_of_memory
from seghiero_core.errors import CheckpointError, DataError, DeviceError, SeghieroError
from seghiero_core.training.batch_size import out_of_memory
from seghiero_core.training.run import Run
from seghiero_core.training.state import save_run

SECONDS = {"s": 1, "m": 60, "h": 3600}


class Saver:
    """Writes the checkpoints of a run; `progress` is the loop's own, kept up to date by it after every step."""

    def __init__(self, run: Run, folder: Path, progress: dict[str, Any]) -> None:
        self.run, self.folder, self.progress = run, folder, progress
        self.saved_step, self.saved_at = progress["step"], time.monotonic()

    def due(self, step: int) -> bool:
        """Whether `training.save_every` asks for a checkpoint after `step`, if the epoch's end doesn't write one."""
        every = self.run.config.training.save_every
        if every is None or self.run.validates_after(step):
            return False
        if isinstance(every, int):
            return step % every == 0
        return time.monotonic() - self.saved_at >= int(every[:-1]) * SECONDS[every[-1]]

    def save(self, metrics: dict[str, Any] | None = None, *, best: bool = False) -> None:
        """Write a checkpoint; every process must call it."""
        place = {"step": self.progress["step"], "epoch": self.progress["epoch"]}
        save_run(self.run, self.folder, self.progress, {**place, **(metrics or {})}, best=best)
        self.saved_step, self.saved_at = self.progress["step"], time.monotonic()
        self.run.accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def rescue(self, passes: Sized) -> Iterator[None]:
        """As a context: an error leaves it as its message, and what was learnt since the last checkpoint is saved.

        The state is that of a whole step only while `passes`, the forward passes of the step at work, is empty; in
        the middle of a step the last checkpoint is what remains.
        """
        try:
            yield
        except (DataError, DeviceError, OSError, RuntimeError) as error:
            vanished = isinstance(error, OSError) and not self.folder.exists()
            told = self._told(error, vanished)
            if told is None:
                raise
            saved = ""
            if not passes and self._may_save(error) and (vanished or self.progress["step"] > self.saved_step):
                with contextlib.suppress(OSError, CheckpointError):
                    self.folder.mkdir(parents=True, exist_ok=True)
                    (self.folder / "config.yaml").write_text(self.run.config.to_yaml())
                    save_run(self.run, self.folder, self.progress, dict(self.progress), best=False)
                    saved = f" Step {self.progress['step']} was saved in {self.folder}; go on with --resume."
            raise type(told)(f"{told}{saved}") from error

    def _told(self, error: Exception, vanished: bool) -> SeghieroError | None:
        """The error as the user should read it; None for one that is told well, or that is a fault of the program."""
        if vanished:
            return DeviceError(f"{self.folder} was deleted or moved while the run wrote to it.")
        if isinstance(error, DataError | DeviceError):
            return error
        if is_out_of_memory(error):
            run = self.run
            return out_of_memory(run.config, run.accelerator.unwrap_model(run.model), run.accelerator.device)
        if is_dead_worker(error):
            return DeviceError(WORKER_DIED.format(str(error).splitlines()[0]))
        if is_lost_peer(error):
            return DeviceError("another process of the run has ended; its own message says why. Go on with --resume.")
        return None

    def _may_save(self, error: Exception) -> bool:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        return self.run.accelerator.is_main_process and not self.run.is_sharded and not full
