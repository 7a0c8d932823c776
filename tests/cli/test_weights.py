"""`seghiero weights where`: what is listed, and that it fits on a terminal."""

from __future__ import annotations

import json


def test_the_list_fits_and_names_the_cache(run, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")  # no escape sequences
    code, out, err = run("weights", "where")
    table = [line for line in out.splitlines() if line.startswith(("┃", "│"))]
    assert code == 0 and max(map(len, [*table, *err.splitlines()])) <= 80
    assert sum(line.count("mit-b0") for line in out.splitlines()) == 2, "one row, not wrapped"
    _, out_json, _ = run("weights", "where", "--json")
    first = json.loads(out_json)[0]
    cache, _, name = first["folder"].rpartition("/")
    assert f"cache: {cache}\n" in out and f"folder of the first: {name}\n" in out


def test_nothing_to_load_needs_no_instructions(run, small):
    code, out, err = run("weights", "where", small)
    assert (code, out) == (0, "")
    assert err == "Nothing to load: this config starts from random weights or from a file.\n"
