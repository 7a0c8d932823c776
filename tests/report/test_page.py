"""The page is one file that holds its document, and whatever a user wrote is text in it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.report.config_differences import config_differences
from seghiero_core.report.page import render_page
from support.report_documents import HOSTILE, document
from support.trees import CAMVID


class Page(HTMLParser):
    """The elements of a page, with the text in each table cell and each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.stack: list[str] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "wbr"):
            self.stack.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag, f"{tag} closes another element"

    def handle_data(self, data):
        place = {"script": self.scripts, "style": self.styles}.get(self.stack[-1] if self.stack else "", self.texts)
        place.append(data)
        if {"th", "td"} & {*self.stack}:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def camvid():
    return document(Hierarchy.from_config(CAMVID), images=2)


def test_the_page_holds_its_document(camvid):
    island = Page(render_page(camvid)).scripts[0]
    assert json.loads(island) == camvid


def test_the_headline_is_there_without_javascript(camvid):
    rows = Page(render_page(camvid)).rows
    for level in camvid["runs"][0]["evaluation"]["levels"]:
        numbers = [f"{100 * level[key]:.1f}" for key in ("miou", "boundary_miou", "pixel_accuracy", "ece")]
        assert [level["name"], str(len(level["classes"])), *numbers] in rows


def test_a_comparison_has_the_headline_of_every_run():
    compared = document(Hierarchy.from_config(CAMVID), images=1, runs=2)
    rows = Page(render_page(compared)).rows
    for run in compared["runs"]:
        assert [row[:2] for row in rows if row[0] == run["name"]] == [
            [run["name"], "leaf"],
            [run["name"], "level1"],
            [run["name"], "level2"],
        ]
    assert ["backbone.type", '"resnet"', '"convnext"'] in rows
    assert not [row for row in rows if row[0] == "backbone.depth"]


def test_measures_that_are_unknown_are_a_dash(camvid):
    level = {**camvid["runs"][0]["evaluation"]["levels"][0], "miou": None, "ece": None}
    run = {**camvid["runs"][0], "evaluation": {**camvid["runs"][0]["evaluation"], "levels": [level]}}
    rows = Page(render_page({**camvid, "runs": [run]})).rows
    assert [rows[1][2], rows[1][5]] == ["–", "–"]


def test_a_run_that_was_not_evaluated_says_so(camvid):
    run = {**camvid["runs"][0], "evaluation": None, "status": "training", "images": []}
    page = Page(render_page({**camvid, "runs": [run]}))
    assert any("Not evaluated yet" in text for text in page.texts)


def document_of(word: str) -> dict:
    """A comparison in which everything that a user can write contains a word."""
    names = [word + str(i) for i in range(11)]
    tree = {word + "static": names[:8], word + "moving": names[8:]}
    written = document(Hierarchy.from_config({"labels": names, "tree": tree}), images=2)
    run = written["runs"][0]
    for key in ("name", "folder", "checkpoint", "command"):
        run[key] = word
    run["evaluation"]["split"] = word
    run["environment"] = {word: word}
    run["data"] = [[word, word]]
    run["weights"][0]["source"] = word
    run["config"] = json.dumps({word: word})
    for image in run["images"]:
        image["name"] = image["source"] = word
    return {**written, "title": word, "runs": [run, {**run, "config": "a: 1", "name": word + "2"}]}


def test_what_a_user_wrote_is_text():
    hostile = document_of(HOSTILE)
    page, plain = Page(render_page(hostile)), Page(render_page(document_of("plain")))
    shown, expected = ([(tag, [*names]) for tag, names in each.tags if tag != "wbr"] for each in (page, plain))
    assert shown == expected  # <wbr> is ours, after each "/"
    assert not {*"<>&\u2028\u2029"} & {*page.scripts[0]}
    assert json.loads(page.scripts[0]) == hostile
    assert "".join(page.texts).count(HOSTILE) > 20


def test_only_our_script_and_style_may_run_and_nothing_is_fetched(camvid):
    text = render_page(camvid)
    page = Page(text)
    (policy,) = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    for kind, source in (("script", page.scripts[1]), ("style", page.styles[0])):
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert {*re.findall(r"https?://[^\"' ]+", text)} <= {"http://www.w3.org/2000/svg"}
    assert not [a for _, a in page.tags if not (a.get("src") or a.get("href") or "#").startswith(("#", "data:"))]


def test_numbers_that_json_lacks_are_refused(camvid):
    with pytest.raises(ValueError, match="JSON"):
        render_page({**camvid, "title": "a", "extra": float("nan")})


def test_a_file_name_that_is_not_text_can_be_written(camvid):
    render_page({**camvid, "title": "caf\udce9"}).encode("utf-8")


def test_configs_are_compared_key_by_key():
    texts = ["a: {b: 1, c: [1, 2]}\nd: x\n", "a: {b: 1, c: [1, 3]}\ne: {}\n", "a: {b: 1, c: [1, 2]}\nd: x\n"]
    assert config_differences(texts) == [
        ("a.c", ["[1, 2]", "[1, 3]", "[1, 2]"]),
        ("d", ['"x"', None, '"x"']),
        ("e", [None, "{}", None]),
    ]
    assert config_differences(texts[::2]) == []
