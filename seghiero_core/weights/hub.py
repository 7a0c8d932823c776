"""Files of the Hugging Face hub: from its cache, or downloaded and verified. A cached file needs no network."""

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
from seghiero_core.events import Notify

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Where a repository keeps its weights; the first that it has is taken."""


def is_hub_name(text: str) -> bool:
    """Whether `text` has the form of a repository's name, `owner/name`."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text) is not None


def hub_repository(tag: str) -> str:
    """The repository of a published tag: itself where it has an owner, else timm's."""
    return tag if "/" in tag else f"timm/{tag}"


def cache_folder(repository: str) -> Path:
    """Where huggingface_hub keeps the files of `repository`, whether it is there or not."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def cached(repository: str, names: Sequence[str] = WEIGHT_FILES) -> Path | None:
    """Path of the first of `names` that is in the cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    for name in names:
        found = try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    return None


def is_absent(repository: str, name: str) -> bool:
    """Whether the cache knows that `repository` has no file `name`."""
    from huggingface_hub import try_to_load_from_cache

    return not isinstance(try_to_load_from_cache(repository, name), str | None)


def fetch(
    repository: str,
    names: Sequence[str] = WEIGHT_FILES,
    *,
    notify: Notify = lambda event: None,
    replace_damaged: bool = False,
) -> Path:
    """Path of the first of `names` that `repository` has, from the cache or else downloaded.

    A download is told as {"event": "download", "repository", "file", "mib"}. Its SHA-256 has to be the one that the
    hub announces, and a file in the cache still has to have the one it was stored under. Raises WeightsError.
    """
    path = cached(repository, names)
    if path and not _is_damaged(path, _stored_digest(path)):
        return path
    if path and not replace_damaged:
        raise WeightsError(
            f"{path}: its content has changed since it was downloaded, so it is not loaded. "
            f"`seghiero weights fetch {repository}` replaces it."
        )
    if path:
        _remove(path)
    with _quiet():
        return _download(repository, names, notify)


def _download(repository: str, names: Sequence[str], notify: Notify) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    for name in names:
        try:
            # Asked first because it tries once; the download itself would wait for a server that is down.
            metadata = get_hf_file_metadata(hf_hub_url(repository, name))
        except EntryNotFoundError:
            with suppress(EntryNotFoundError):
                hf_hub_download(repository, name)  # which notes in the cache that there is none
            continue
        except Exception as error:  # every class of error of the HTTP client, which differs between versions
            raise _cannot_be_had(repository, error) from error
        size = metadata.size and round(metadata.size / 2**20, 1)
        notify({"event": "download", "repository": repository, "file": name, "mib": size})
        try:
            path = Path(hf_hub_download(repository, name, tqdm_class=_no_bar()))
        except Exception as error:
            raise _cannot_be_had(repository, error) from error
        if _is_damaged(path, metadata.etag):
            _remove(path)
            raise WeightsError(
                f"{repository}: {name} was downloaded, but its hash is not the one that the hub announces, so it was "
                "removed. Try again; if it stays so, a proxy alters it: fetch it by another way."
            )
        return path
    raise WeightsError(f"the hub's repository {repository} has no {' or '.join(names)}; check the name.")


def _cannot_be_had(repository: str, error: Exception) -> WeightsError:
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    login = "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.OfflineModeIsEnabled):
        reason = "HF_HUB_OFFLINE is set, so nothing is downloaded"
    elif isinstance(error, errors.GatedRepoError):
        reason = f"its licence has to be accepted at {constants.ENDPOINT}/{repository}; then {login}"
    elif isinstance(error, errors.RepositoryNotFoundError):
        reason = f"{constants.ENDPOINT} has no such repository, or a private one ({status}): check the name, or {login}"
    elif status == 401:
        reason = f"{constants.ENDPOINT} refuses the token (401): {login}"
    elif status:
        reason = f"{constants.ENDPOINT} answered with status {status}"
    else:
        first_line = str(error).strip().partition("\n")[0].rstrip(".")
        reason = f"{constants.ENDPOINT}: {first_line or type(error).__name__}; try again"
    return WeightsError(
        f"{repository} is not in the cache and could not be downloaded: {reason}.\n"
        f"Without network: run `seghiero weights fetch {repository}` where there is one and copy the folder "
        f"{cache_folder(repository)} to the same place here, or give the path of a file instead. "
        "`seghiero weights where` lists these folders."
    )


def _stored_digest(path: Path) -> str | None:
    """The hash that a file of the cache is stored under, None where the cache was copied without its links."""
    return path.readlink().name if path.is_symlink() else None


def _is_damaged(path: Path, digest: str | None) -> bool:
    """Whether the file has another hash than `digest`: SHA-256 of large files, git's SHA-1 of small ones."""
    if digest is None or not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", digest):
        return False
    if not path.exists():  # a link whose file is gone
        return True
    if len(digest) == 64:
        return file_sha256(path) != digest
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != digest


def _remove(path: Path) -> None:
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _no_bar() -> type:
    from tqdm import tqdm

    class NoBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": True})

    return NoBar


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep huggingface_hub's log of its tries off the screen: our one message says what came of them."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
