"""What is finished of a raster, kept on the disk so that a later run can go on from it."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from seghiero_core.atomic import make_folder, replacing, sync
from seghiero_core.errors import UsageError
from seghiero_core.events import Notify, ignore_events

_STATE = "state.npz"
_DAMAGED = "what was kept is damaged"


class Unfinished:
    """A hidden folder beside the results of a raster, and a record in it of what made them.

    Only one process at a time has it. It is removed when the results are complete.

    Args:
        stem: The path of the results without an ending.
        image: The raster, for messages.
        made_by: Plain values that decide on the results. What was kept by other values is removed.
        notify: Receives an event "resumed" ("image") where something was kept, and "begun_again" ("image", "changed":
            the names of what differs) where it can't be used.

    Attributes:
        folder: The folder.
        values: The plain values that were kept, or None if there are none.
        arrays: The arrays that were kept, by name.

    Raises:
        UsageError: When another process predicts the same raster.
    """

    def __init__(self, stem: Path, image: Path, made_by: Mapping[str, Any], notify: Notify = ignore_events) -> None:
        self.folder = stem.with_name(f".{stem.name}.unfinished")
        self.made_by = json.loads(json.dumps(made_by))
        make_folder(self.folder)
        self.lock = FileLock(self.folder / "lock", thread_local=False, fallback_to_soft=False)
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(
                f"{image} is being predicted to {stem.parent} by another process; wait for it to end, or choose "
                "another folder."
            ) from None
        self.values: dict[str, Any] | None = None
        self.arrays: dict[str, np.ndarray] = {}
        try:
            changed = self._load()
        except BaseException:
            self.lock.release()
            raise
        if self.values is not None:
            notify({"event": "resumed", "image": image})
        elif changed:
            notify({"event": "begun_again", "image": image, "changed": changed})

    def keep(self, values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Record what is finished, in one step. The files in the folder have to be flushed before.

        Args:
            values: Plain values.
            arrays: Arrays by name.
        """
        sizes = {}
        for path in self.folder.iterdir():
            if path.name not in (_STATE, "lock") and not path.name.startswith("."):
                sync(path)
                sizes[path.name] = path.stat().st_size
        record = json.dumps({"made_by": self.made_by, "values": values, "sizes": sizes})
        with replacing(self.folder / _STATE) as path:
            with path.open("wb") as file:
                np.savez_compressed(file, record=np.array(record), **arrays)
            sync(path)

    def release_or_remove(self) -> None:
        """Let other processes have the folder; delete it if nothing has been recorded."""
        if (self.folder / _STATE).exists():
            self.lock.release()
        else:
            self.remove()

    def remove(self) -> None:
        """Delete the folder."""
        self.lock.release()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _load(self) -> list[str]:
        """Read the record; otherwise empty the folder, and name what differs from what was kept."""
        changed = []
        try:
            with np.load(self.folder / _STATE) as state:
                record = json.loads(str(state["record"]))
                changed = [key for key, value in self.made_by.items() if record["made_by"].get(key) != value]
                sizes = {path.name: path.stat().st_size for path in self.folder.iterdir()}
                if any(sizes.get(name, -1) < size for name, size in record["sizes"].items()):
                    changed = [_DAMAGED]
                if not changed:
                    self.arrays = {name: state[name] for name in state.files if name != "record"}
                    self.values = record["values"]
                    return []
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            changed = [_DAMAGED]
        for path in self.folder.iterdir():
            if path.name != "lock":
                path.unlink()
        return changed
