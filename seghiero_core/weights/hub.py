"""Files of the Hugging Face hub, from its cache or downloaded and verified. A cached file needs no internet."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from seghiero_core.atomic import file_sha256
from seghiero_core.errors import WeightsError
from seghiero_core.events import Notify, ignore_events

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""File names of a repository's weights, preferred one first."""


def is_hub_name(text: str) -> bool:
    """Return whether a text has the form of a repository name, `owner/name`.

    Args:
        text: Any text; nothing is looked up.

    Returns:
        True for "nvidia/mit-b0", False for "resnet18.a1_in1k" and for a path with more slashes.
    """
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text) is not None


def hub_repository(tag: str) -> str:
    """Return the hub repository of a weights tag.

    Args:
        tag: A tag of `BackboneEntry.weights`, for example "resnet18.a1_in1k" or "nvidia/mit-b0".

    Returns:
        The tag itself if it has an owner, else timm's repository: "timm/resnet18.a1_in1k".
    """
    return tag if "/" in tag else f"timm/{tag}"


def cache_folder(repository: str) -> Path:
    """Return the folder where huggingface_hub caches a repository.

    Args:
        repository: Its name, `owner/name`.

    Returns:
        The folder, which may not exist yet.
    """
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def find_cached(repository: str, names: Sequence[str] = WEIGHT_FILES) -> Path | None:
    """Find a file of a repository in the cache.

    Args:
        repository: Its name, `owner/name`.
        names: Alternative file names, preferred one first.

    Returns:
        The path of the first one that is cached, or None.
    """
    from huggingface_hub import try_to_load_from_cache

    for name in names:
        found = try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    return None


def is_known_missing(repository: str, name: str) -> bool:
    """Return whether the cache has recorded that a repository lacks a file.

    Args:
        repository: Its name, `owner/name`.
        name: The file name.

    Returns:
        True if an earlier request found that the file doesn't exist; False if it is cached or was never requested.
    """
    from huggingface_hub import try_to_load_from_cache

    return not isinstance(try_to_load_from_cache(repository, name), str | None)


def fetch_file(
    repository: str,
    names: Sequence[str] = WEIGHT_FILES,
    *,
    notify: Notify = ignore_events,
    replace_damaged: bool = False,
) -> Path:
    """Return a file of a repository from the cache, downloading it if necessary.

    A download must have the hash that the hub announces, and a cached file must still have the hash that it was stored
    under.

    Args:
        repository: Its name, `owner/name`.
        names: Alternative file names, preferred one first.
        notify: Receives {"event": "download", "repository", "file", "mib"} before a download.
        replace_damaged: Whether to download a cached file again if its content has changed.

    Returns:
        The path of the file in the cache.

    Raises:
        WeightsError: If the file can't be downloaded or is damaged.
    """
    path = find_cached(repository, names)
    if path and not _is_damaged(path, _stored_hash(path)):
        return path
    if path and not replace_damaged:
        raise WeightsError(
            f"{path}: the content has changed since the download, so the file was not loaded. "
            f"Run `seghiero weights fetch {repository}` to download it again."
        )
    if path:
        _remove(path)
    with _silence_hub_log():
        return _download(repository, names, notify)


def _download(repository: str, names: Sequence[str], notify: Notify) -> Path:
    """Download the first of `names` that the repository has."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    for name in names:
        try:
            # Requested first because it fails at once if the server is down; hf_hub_download would retry for minutes.
            metadata = get_hf_file_metadata(hf_hub_url(repository, name))
        except EntryNotFoundError:
            with suppress(EntryNotFoundError):
                hf_hub_download(repository, name)  # records in the cache that the file doesn't exist
            continue
        except Exception as error:  # the HTTP client's exception classes differ between versions
            raise _download_error(repository, error) from error
        size = round(metadata.size / 2**20, 1) if metadata.size else metadata.size
        notify({"event": "download", "repository": repository, "file": name, "mib": size})
        try:
            path = Path(hf_hub_download(repository, name, tqdm_class=_disabled_progress_bar()))
        except Exception as error:
            raise _download_error(repository, error) from error
        if _is_damaged(path, metadata.etag):
            _remove(path)
            raise WeightsError(
                f"{repository}: the downloaded {name} doesn't have the hash that the hub announces, so it was removed. "
                "Try again. If the error persists, a proxy is altering the file: download it in another way."
            )
        return path
    raise WeightsError(f"the hub repository {repository} has no {' or '.join(names)}; check the name.")


def _download_error(repository: str, error: Exception) -> WeightsError:
    """Explain why a download failed and how to fix it."""
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    login = "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.OfflineModeIsEnabled):
        reason = "HF_HUB_OFFLINE is set, so nothing is downloaded"
    elif isinstance(error, errors.GatedRepoError):
        reason = f"accept its license at {constants.ENDPOINT}/{repository}, then {login}"
    elif isinstance(error, errors.RepositoryNotFoundError):
        reason = f"{constants.ENDPOINT} has no such repository, or it is private ({status}): check the name, or {login}"
    elif status == 401:
        reason = f"{constants.ENDPOINT} rejected the token (401): {login}"
    elif status:
        reason = f"{constants.ENDPOINT} returned status {status}"
    else:
        first_line = str(error).strip().partition("\n")[0].rstrip(".")
        reason = f"{constants.ENDPOINT}: {first_line or type(error).__name__}; try again"
    return WeightsError(
        f"{repository} is not in the cache and could not be downloaded: {reason}.\n"
        f"Without internet, run `seghiero weights fetch {repository}` on a connected machine and copy the folder "
        f"{cache_folder(repository)} to the same place here, or give the path of a file instead. "
        "`seghiero weights where` lists these folders."
    )


def _stored_hash(path: Path) -> str | None:
    """Return the hash in the name of a cached file, or None if the cache was copied without its links."""
    return path.readlink().name if path.is_symlink() else None


def _is_damaged(path: Path, expected_hash: str | None) -> bool:
    """Return whether a file's hash differs from the expected one: SHA-256 of a large file, git's SHA-1 of a small one.

    A hash that is missing or of another kind can't be checked and counts as equal.
    """
    if expected_hash is None or not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", expected_hash):
        return False
    if not path.exists():  # a link to a file that was deleted
        return True
    if len(expected_hash) == 64:
        return file_sha256(path) != expected_hash
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != expected_hash


def _remove(path: Path) -> None:
    """Remove a cached file, both the link and the file that it points to."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _disabled_progress_bar() -> type:
    """Return a tqdm class that shows nothing; `notify` reports the download instead."""
    from tqdm import tqdm

    class DisabledProgressBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)  # passed by huggingface_hub, not accepted by tqdm
            super().__init__(*args, **{**options, "disable": True})

    return DisabledProgressBar


@contextmanager
def _silence_hub_log() -> Iterator[None]:
    """Hide huggingface_hub's log messages: our own error message says what went wrong."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
