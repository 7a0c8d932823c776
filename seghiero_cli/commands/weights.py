"""`seghiero weights`: download published weights, and locate them in the cache for offline machines."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from seghiero_cli import console

FETCH_EXAMPLE = "Example: seghiero weights fetch resnet:50 segformer:mit-b0"
WHERE_EXAMPLE = "Example: seghiero weights where segformer"

app = typer.Typer(
    no_args_is_help=True, help="Download published weights, or show where they are cached.", epilog=WHERE_EXAMPLE
)

_NOTHING = "Nothing to load: this config starts from random weights or from a file."

What = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME...",
        help="resnet (all variants), resnet:50 (one), a published tag, a hub repository, or a config's YAML file.",
    ),
]


@app.command("fetch", epilog=FETCH_EXAMPLE)
def fetch(
    what: What,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Download weights into the cache and verify them. Cached files are verified too, and replaced if damaged."""
    from seghiero_core.weights.published import fetch_weights, select_weights

    selected = select_weights(what)
    if not selected:
        console.note(_NOTHING)
    for weights in selected:
        fetch_weights(weights, notify=_print_download, replace_damaged=True)
        if not as_json:
            console.result(f"{weights.title}  {weights.path}")
    if as_json:
        console.result_json([_row(weights) for weights in selected])


@app.command("where", epilog=WHERE_EXAMPLE)
def where(
    what: Annotated[list[str] | None, What.__metadata__[0]] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List published weights, whether they are cached, and where the cache is."""
    from seghiero_core.weights.published import select_weights

    selected = select_weights(what or [])
    if as_json:
        console.result_json([_row(weights) for weights in selected])
        return
    if not selected:
        console.note(_NOTHING)
        return
    rows = [
        (weights.title.partition(":")[0], weights.repository, "yes" if weights.path else "no") for weights in selected
    ]
    console.table("", ("weights of", "repository", "cached"), rows)
    console.result(f"cache: {selected[0].folder.parent}")
    console.result(f"folder of the first: {selected[0].folder.name}")
    console.note(
        "For a machine without internet access:\n"
        "  1. With a connection, run seghiero weights fetch with the same names.\n"
        "  2. Copy the folders, with their links (rsync -a, tar), to the cache of the\n"
        "     other machine. HF_HOME moves the cache.\n"
        "  3. Set HF_HUB_OFFLINE=1 there: nothing then tries to connect.\n"
        "Or copy only model.safetensors, and set backbone.pretrained to its path."
    )


def _print_download(event: dict[str, Any]) -> None:
    size = f" ({event['mib']} MiB)" if event["mib"] else ""
    console.note(f"downloading {event['file']} from {event['repository']}{size}")


def _row(weights: Any) -> dict[str, Any]:
    return {
        "weights": weights.title,
        "repository": weights.repository,
        "files": ["/".join(names) for names in weights.files],
        "folder": str(weights.folder),
        "path": str(weights.path) if weights.path else None,
        "cached": weights.path is not None,
    }
