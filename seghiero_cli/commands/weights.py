"""`seghiero weights`: download published weights, and locate them in the cache for offline machines."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from seghiero_cli import console

FETCH_EXAMPLE = "Example: seghiero weights fetch resnet:50 segformer:mit-b0 convnext_tiny.dinov3_lvd1689m"
WHERE_EXAMPLE = "Example: seghiero weights where segformer"

app = typer.Typer(
    no_args_is_help=True, help="Download published weights, or show where they are cached.", epilog=WHERE_EXAMPLE
)

What = Annotated[
    list[str],
    typer.Argument(
        metavar="TYPE...|CFG",
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
        console.note("Nothing to fetch: this config starts from random weights or from a file.")
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
    """List published weights, their folders in the cache, and whether they are cached."""
    from seghiero_core.weights.published import select_weights

    selected = select_weights(what or [])
    if as_json:
        console.result_json([_row(weights) for weights in selected])
        return
    rows = [
        (weights.title, weights.repository, "yes" if weights.path else "no", str(weights.folder))
        for weights in selected
    ]
    console.table("", ("weights", "repository", "cached", "folder in the cache"), rows)
    console.note(
        "For a machine without internet access:\n"
        "  1. Run `seghiero weights fetch` on a machine with network.\n"
        "  2. Copy the folders, with their links (rsync -a, tar), to where `seghiero weights where` lists\n"
        "     them on the other machine. HF_HOME moves the cache.\n"
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
