"""Render a report document into one HTML file that needs nothing else.

Everything in the document is text: it is escaped in the HTML and in the JSON island, which the script reads. The
content security policy allows our own script and style by their hashes, and no request.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from typing import Any

from seghiero_core.report.config_differences import config_differences
from seghiero_core.scaffold.templates import read_template

_SCRIPTS = ("shared", "charts", "tree", "matrix", "cells", "mistakes", "pictures", "curves", "page")
_STYLE = "page.css"
_ISLAND = '<script type="application/json" id="document">'
# A script in HTML ends at "</script", and its JSON must not hold what old JavaScript takes for line ends.
_ISLAND_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def render_page(document: Mapping[str, Any]) -> str:
    """Render a report document.

    Args:
        document: The document, plain JSON values without NaN. Its first run is what the others are compared with.

    Returns:
        The text of the HTML file.

    Raises:
        ValueError: If the document holds NaN or infinity.
    """
    island = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    folder = files("seghiero_core") / "report"
    script = '"use strict";\n' + "\n".join((folder / f"{name}.js").read_text(encoding="utf-8") for name in _SCRIPTS)
    style = (folder / _STYLE).read_text(encoding="utf-8")
    page = read_template("report/page.html").substitute(
        title=escape(document["title"]),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        about=_about(document),
        summary=_summary(document["runs"]),
        reproduce=_reproduce(document["runs"]),
        document=island.translate(_ISLAND_ESCAPES),
    )
    return page.encode("utf-8", "replace").decode("utf-8")  # names of files may hold bytes that are no text


def read_page(page: str) -> dict[str, Any]:
    """Read the document in a page.

    Args:
        page: What `render_page` returned.

    Returns:
        The document.

    Raises:
        ValueError: If the text holds none.
    """
    start = page.index(_ISLAND) + len(_ISLAND)
    return json.loads(page[start : page.index("</script>", start)])


def _hash(text: str) -> str:
    """Return the source expression by which a content security policy allows an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _about(document: Mapping[str, Any]) -> str:
    """Return what the head of the page says about each run."""
    parts = []
    for run in document["runs"]:
        evaluation = run["evaluation"] or {}
        facts = [
            ("Checkpoint", run["checkpoint"]),
            ("Step", run["step"]),
            ("Split", evaluation.get("split")),
            ("Images", evaluation.get("images")),
            ("Decoding", evaluation.get("decode")),
            ("Confidence", evaluation.get("confidence")),
        ]
        status = f'<span class="status" data-status="{escape(run["status"])}">{escape(run["status"])}</span>'
        parts.append(f'<div class="run"><p class="run-name">{_name(run["name"])} {status}</p>{_list(facts)}</div>')
    created = datetime.fromisoformat(document["created"]).strftime("%Y-%m-%d %H:%M %Z").strip()
    made = f"Written {created} by seghiero {escape(document['seghiero'])}."
    return f'<div class="runs">{"".join(parts)}</div><p class="quiet">{made}</p>'


def _summary(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of every level's measures, for readers without JavaScript too."""
    rows = []
    for number, run in enumerate(runs):
        name = f'<th scope="row">{_name(run["name"])}</th>' if len(runs) > 1 else ""
        if run["evaluation"] is None:
            text = "Not evaluated yet: the measures appear after the first validation."
            rows.append(f'<tr>{name}<td colspan="6">{text}</td></tr>')
            continue
        for position, level in enumerate(run["evaluation"]["levels"]):
            measures = (level["miou"], level["boundary_miou"], level["pixel_accuracy"], level["ece"])
            cells = [f'<td class="number">{_percent(value)}</td>' for value in measures]
            rows.append(
                f'<tr data-run="{number}" data-level="{position}">{name}<th scope="row">{_name(level["name"])}</th>'
                f'<td class="number">{len(level["classes"])}</td>{"".join(cells)}</tr>'
            )
    heads = [*(["Run"] if len(runs) > 1 else []), "Level"]
    numbers = ["Classes", "mIoU", "Boundary mIoU", "Pixel accuracy", "Calibration error"]
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    head += "".join(f'<th scope="col" class="number">{text}</th>' for text in numbers)
    body = "".join(rows)
    caption = "<caption>All levels, in percent</caption>"
    return f'<table id="levels">{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _reproduce(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return what is needed to repeat each run: its command, data, weights, environment and config."""
    parts = [_differences(runs)] if len(runs) > 1 else []
    for run in runs:
        heading = f"<h3>{_name(run['name'])}</h3>" if len(runs) > 1 else ""
        command = _code(run["command"]) if run["command"] else '<p class="quiet">Not recorded.</p>'
        blocks = [
            ("Command", command),
            ("Weights", _weights(run["weights"])),
            ("Data", _list([("Run folder", run["folder"]), *run["data"]])),
            ("Environment", _list(run["environment"].items())),
        ]
        tag = "h4" if heading else "h3"
        body = "".join(f"<div><{tag}>{title}</{tag}>{text}</div>" for title, text in blocks)
        config = f"<details><summary>Config</summary>{_code(run['config'])}</details>"
        parts.append(f'{heading}<div class="facts">{body}</div>{config}')
    return "".join(parts)


def _differences(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of the config keys whose values differ between runs."""
    rows = config_differences([run["config"] for run in runs])
    if not rows:
        return '<h3>Differences of the configs</h3><p id="config-differences">The configs are equal.</p>'
    head = "".join(f'<th scope="col">{_name(run["name"])}</th>' for run in runs)
    body = "".join(
        f'<tr><th scope="row"><code>{escape(key)}</code></th>'
        + "".join("<td>–</td>" if value is None else f"<td><code>{escape(value)}</code></td>" for value in values)
        + "</tr>"
        for key, values in rows
    )
    return (
        "<h3>Differences of the configs</h3>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Config differences"><table id="config-differences">'
        f'<thead><tr><th scope="col">Key</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _weights(loaded: Sequence[Mapping[str, Any]] | None) -> str:
    """Return what was loaded to start from, one list for each source; long lists of names are counted."""
    if not loaded:
        return '<p class="quiet">Trained from scratch, or not recorded.</p>'
    parts = []
    for source in loaded:
        facts, names = [], []
        for key, value in source.items():
            if key == "event" or value == []:
                continue
            if isinstance(value, list):
                facts.append((key, f"{len(value):,}"))
                names.append(f"# {key}\n" + "\n".join(map(str, value)))
            else:
                facts.append((key, value))
        listed = f"<details><summary>Names</summary>{_code(chr(10).join(names))}</details>" if names else ""
        parts.append(_list((key.replace("_", " ").capitalize(), value) for key, value in facts) + listed)
    return "".join(parts)


def _list(facts: Iterable[tuple[str, Any]]) -> str:
    """Return a description list; facts without a value are left out."""
    return (
        "<dl>"
        + "".join(f"<div><dt>{escape(str(k))}</dt><dd>{_breakable(v)}</dd></div>" for k, v in facts if v is not None)
        + "</dl>"
    )


def _name(value: Any) -> str:
    """Return any value as text that can't disturb the direction or the markup of what is around it."""
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return f"<bdi>{escape(text)}</bdi>"


def _breakable(value: Any) -> str:
    """Return any value as text whose paths are broken between their parts."""
    return _name(value).replace("/", "/<wbr>").replace("</<wbr>bdi>", "</bdi>")


def _code(text: str) -> str:
    return f'<pre tabindex="0"><code>{escape(text)}</code></pre>'


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
