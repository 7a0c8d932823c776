"""Reading files from anywhere through fsspec, with retries, and a local cache of bounded size."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from filelock import FileLock, Timeout

from seghiero_core.atomic import file_sha256, make_folder
from seghiero_core.errors import DataError, DeviceError, UsageError

ATTEMPTS = 5
FIRST_DELAY = 0.5  # seconds; doubled after every attempt
STALLED = 60  # seconds without a byte from an HTTP server, after which it is asked again
_Result = TypeVar("_Result")


def is_url(place: str) -> bool:
    """Check whether a place is a URL rather than a path.

    Args:
        place: Such as "s3://bucket/train-000.tar" or "/data/train-000.tar".

    Returns:
        True for a URL.
    """
    return "://" in place


def open_filesystem(url: str) -> tuple[Any, str]:
    """Get the fsspec file system of a URL. Credentials and options come from fsspec's own configuration.

    Args:
        url: The URL.

    Returns:
        The file system, and the path in it.

    Raises:
        UsageError: When its protocol is unknown, or needs a package that isn't installed.
    """
    import fsspec

    protocol, options = url.partition("://")[0], {}
    try:
        if protocol in ("http", "https"):
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALLED, sock_read=STALLED)
            options["client_kwargs"] = {"timeout": timeout}  # the default gives up after five minutes, stalled or not
        return fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        package = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}.get(protocol, "'seghiero[shards]'")
        raise UsageError(f"{url} can't be read ({error}). Install the package: `pip install {package}`.") from None


def read_bytes(place: str) -> bytes:
    """Read a small file.

    Args:
        place: A URL or a path.

    Returns:
        Its content.

    Raises:
        DataError: When it can't be read, also after several attempts.
    """
    if not is_url(place):
        try:
            return Path(place).read_bytes()
        except OSError as error:
            raise DataError(f"{place}: {error.strerror}. Correct the path, or restore the file.") from error
    filesystem, path = open_filesystem(place)
    return _with_retries(place, lambda: filesystem.cat_file(path))


class ShardCache:
    """Copies of remote files in a folder, which processes share. The least recently used ones are removed.

    Args:
        folder: The folder; it is created.
        limit: The most bytes in it. A file in use by this machine is never counted out: what is open stays readable.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit

    @contextmanager
    def open(self, url: str, size: int, sha256: str) -> Iterator[BinaryIO]:
        """Open a file, which is downloaded first unless it is there.

        Args:
            url: Its URL.
            size: Its number of bytes.
            sha256: The SHA-256 of its content, which is also its name in the cache.

        Yields:
            The open file.

        Raises:
            DataError: When it can't be downloaded, or its content isn't the expected one.
            DeviceError: When it doesn't fit on the disk.
        """
        path = self.folder / f"{sha256}.tar"
        file = self._opened(path) or self._download(url, path, size, sha256)
        with file:
            yield file

    def _opened(self, path: Path) -> BinaryIO | None:
        """The open file, None if it isn't there; another process may remove it at any time."""
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        with suppress(OSError):
            os.utime(path)  # when it was last used
        return file

    def _download(self, url: str, path: Path, size: int, sha256: str) -> BinaryIO:
        make_folder(self.folder)
        with FileLock(path.with_suffix(".lock"), fallback_to_soft=False):
            if file := self._opened(path):
                return file  # another process has downloaded it meanwhile
            partial = path.with_suffix(".part")
            self._reserve(partial, size, url)
            try:
                return _with_retries(url, lambda: self._fetch(url, partial, path, size, sha256))
            finally:
                partial.unlink(missing_ok=True)

    def _reserve(self, partial: Path, size: int, url: str) -> None:
        """Make room, and an empty file of the full size, so that other processes count it."""
        if size > self.limit:
            raise DataError(
                f"{url} has {_mib(size)} MiB, more than the cache may hold; set dataset.cache_mib higher than that."
            )
        while True:
            with FileLock(self.folder / "cache.lock", fallback_to_soft=False):
                if self._make_room(size):
                    try:
                        with partial.open("wb") as file:
                            file.truncate(size)
                        return
                    except OSError as error:
                        raise self._disk_error(error) from error
            time.sleep(0.05)  # until another process has finished its download

    def _make_room(self, size: int) -> bool:
        """Remove the least recently used files until there is room; False if what others download is too large."""
        files = []
        for path in self.folder.glob("*.*"):
            if path.suffix == ".part" and not _is_locked(path.with_suffix(".lock")):
                path.unlink(missing_ok=True)  # of a process that was killed
            elif path.suffix in (".part", ".tar"):
                with suppress(FileNotFoundError):
                    found = path.stat()
                    files.append((path.suffix == ".part", found.st_mtime_ns, found.st_size, path))
        total = sum(bytes_ for _, _, bytes_, _ in files)
        for is_partial, _, bytes_, path in sorted(files):
            if total + size <= self.limit or is_partial:
                break
            path.unlink(missing_ok=True)
            total -= bytes_
        return total + size <= self.limit

    def _fetch(self, url: str, partial: Path, path: Path, size: int, sha256: str) -> BinaryIO:
        filesystem, remote = open_filesystem(url)
        try:
            filesystem.get_file(remote, str(partial))
            found = partial.stat().st_size
            if found != size:
                raise _Damaged(f"{url} is cut: it has {found} bytes, its index says {size}.")
            if file_sha256(partial) != sha256:
                raise _Damaged(f"{url} is altered: its content is not what its index says.")
            os.utime(partial)
            file = partial.open("rb")
            partial.rename(path)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
                raise self._disk_error(error) from error
            raise
        return file

    def _disk_error(self, error: OSError) -> DeviceError:
        return DeviceError(
            f"{self.folder}: {error.strerror}, while a shard was downloaded. Free some space, or set dataset.cache_dir "
            "to another folder or dataset.cache_mib lower."
        )


class _Damaged(Exception):
    """A download that isn't what the index says."""


def _with_retries(url: str, action: Callable[[], _Result]) -> _Result:
    """Call `action` until it succeeds, waiting longer each time, or say why it didn't."""
    for attempt in range(ATTEMPTS):
        try:
            return action()
        except (UsageError, DeviceError):
            raise
        except FileNotFoundError as error:
            raise DataError(f"{url} does not exist. Correct the URL, or upload the file again.") from error
        except PermissionError as error:
            raise DataError(f"{url} can't be read ({error}). Give fsspec the credentials.") from error
        except Exception as error:  # each file system has its own
            if attempt == ATTEMPTS - 1:
                if isinstance(error, _Damaged):
                    raise DataError(f"{error} Upload the file again, or pack the data set again.") from error
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                raise DataError(f"{url} can't be read after {ATTEMPTS} attempts ({reason}).") from error
        time.sleep(FIRST_DELAY * 2**attempt)
    raise AssertionError


def _is_locked(path: Path) -> bool:
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f}"
