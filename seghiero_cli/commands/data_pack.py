"""`seghiero data pack`: a data set as shards, for reading from servers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from seghiero_cli import console
from seghiero_cli.progress import Progress

if TYPE_CHECKING:
    from seghiero_core.data.shards import Packed

EXAMPLE = "Example: seghiero data pack cfg.yaml shards --shard-mib 256"


def pack(
    cfg: Annotated[Path, typer.Argument(metavar="CFG", help="A config's YAML file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder for the shards.")],
    shard_mib: Annotated[int, typer.Option(min=1, help="Size of a shard, MiB.")] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write every split as tar files in WebDataset's layout, each with an index, for `dataset.type: shards`.

    A command that was stopped goes on when it is repeated. Nothing is overwritten.
    """
    from seghiero_core.config.loading import load_config
    from seghiero_core.config.readers import REQUIRED_SPLITS
    from seghiero_core.data.shards import pack as write_shards

    config = load_config(cfg, required=REQUIRED_SPLITS)
    with Progress() as progress:
        written = write_shards(
            config, out, shard_mib * 2**20, lambda split, done, of: progress.show(f"{split}: {done}/{of} images packed")
        )
    if as_json:
        console.result_json(
            [
                {
                    "split": part.split,
                    **({} if part.source is None else {"source": part.source}),
                    "shards": len(part.shards),
                    "samples": part.samples,
                    "bytes": part.bytes,
                    "urls": str(part.shards[0].parent / part.pattern),
                }
                for part in written
            ]
        )
        return
    for part in written:
        source = "" if part.source is None else f" of {part.source}"
        size = f"{part.bytes / 2**20:.1f} MiB in {console.plural(len(part.shards), 'shard')}"
        console.result(f"{part.split}{source}: {console.plural(part.samples, 'image')}, {size}: {part.pattern}")
    root = os.path.relpath(out.absolute(), cfg.absolute().parent)
    console.note(f"\nTo read them with a config in the folder of {cfg.name}:\n\n{_as_yaml(written, root)}")


def _as_yaml(written: Sequence[Packed], root: str) -> str:
    """The `dataset` section that reads the shards below `root`."""
    urls: dict[str | None, dict[str, str]] = {}
    for part in written:
        urls.setdefault(part.source, {})[part.split] = part.pattern
    section: dict[str, Any] = {"type": "shards", "root": root, **urls.get(None, {})}
    if None not in urls:
        section["sources"] = [{"name": name, "root": name, **splits} for name, splits in urls.items()]
    return yaml.safe_dump({"dataset": section}, sort_keys=False, allow_unicode=True)
