"""The page in headless Chromium: it shows what the masks say, its switches work, and everyone can read it."""

from __future__ import annotations

import base64
import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from support.browser import PAINTED, choose_level, click, find, hover_cell, read_canvas, table, texts, value
from support.report_cases import DOCUMENTS, written


def codes_of(uri: str) -> np.ndarray:
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), dtype=int)
    return pixels[..., 0] + 256 * pixels[..., 1]


def counted(run: dict, level: int) -> np.ndarray:
    """C,C+1 pixels of a level, counted from the pictures of the masks."""
    classes = np.array([code[level] for code in run["codes"]])
    many = len(run["evaluation"]["levels"][level]["classes"])
    matrix = np.zeros((many, many + 1), int)
    for image in run["images"]:
        truth, predicted = classes[codes_of(image["truth"])], classes[codes_of(image["prediction"])]
        np.add.at(matrix, (truth[truth >= 0], predicted[truth >= 0] + 1), 1)
    return matrix


def ious(matrix: np.ndarray) -> np.ndarray:
    hits = matrix[:, 1:].diagonal()
    union = matrix.sum(1) + matrix[:, 1:].sum(0) - hits
    return np.where(union, hits / np.maximum(union, 1), np.nan)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_page_opens_without_error_or_request(show, name):
    driver = show(name)
    for level in range(len(written(name)["tree"]["levels"])):
        choose_level(driver, level)
    assert [entry["message"] for entry in driver.get_log("browser")] == []
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in urls if not url.startswith("data:")] == [driver.current_url]
    assert driver.execute_script("return window.hacked") is None
    assert "NaN" not in find(driver, "body").text
    assert not {"undefined", "null", "false", "[object"} & {*find(driver, "main").text.split()}


@pytest.mark.parametrize("name", ["camvid", pytest.param("mapillary", marks=pytest.mark.slow)])
def test_every_number_is_what_the_masks_say(show, name):
    driver, (run,) = show(name), written(name)["runs"]
    nodes, classes = written(name)["tree"]["nodes"], written(name)["tree"]["classes"]
    for level in range(3):
        choose_level(driver, level)
        matrix = counted(run, level)
        expected = ious(matrix)
        assert find(driver, "#tiles [data-measure=miou] dd").text == f"{100 * np.nanmean(expected):.1f} %"
        accuracy = matrix[:, 1:].trace() / matrix.sum()
        assert find(driver, "#tiles [data-measure=pixel_accuracy] dd").text == f"{100 * accuracy:.1f} %"
        shown = table(driver, "#tree tr.current")
        assert len(shown) == len(classes[level])
        ids = driver.execute_script(
            "return [...document.querySelectorAll('#tree tr.current')].map((r) => r.dataset.node)"
        )
        for node, (label, iou, _, _, pixels, share) in zip(ids, shown, strict=True):
            number = classes[level].index(int(node))
            assert label == nodes[int(node)]["name"]
            assert iou == ("–" if np.isnan(expected[number]) else f"{100 * expected[number]:.1f}")
            assert pixels == f"{matrix[number].sum():,}"
            assert share == f"{100 * matrix[number].sum() / matrix.sum():.1f}"
        click(driver, "#cells summary")
        driver.execute_async_script(PAINTED)
        rows = table(driver, "#cells tbody tr")
        names = [nodes[node]["name"] for node in classes[level]]
        cells = {
            (names[a], names[b - 1] if b else "undecided"): (matrix[a, b], matrix[a].sum())
            for a, b in np.argwhere(matrix)
        }
        assert len(rows) == min(1000, len(cells))
        for truth, predicted, share, pixels in rows:
            hits, total = cells[truth, predicted]
            assert pixels == f"{hits:,}"
            assert abs(float(share) - 100 * hits / total) < 0.0051
        click(driver, "#cells summary")


def test_pictures_are_painted_in_the_colors_of_the_level(show):
    driver, (run,) = show("camvid"), written("camvid")["runs"]
    tree = written("camvid")["tree"]
    for level in (0, 2, 1):
        choose_level(driver, level)
        colors = np.array(
            [[int(tree["nodes"][n]["color"][i : i + 2], 16) for i in (1, 3, 5)] for n in tree["classes"][level]]
        )
        classes = np.array([code[level] for code in run["codes"]])
        worst = int(np.argmin([image["miou"][level] for image in run["images"]]))
        card = f"#gallery article[data-image='{worst}']"
        for kind in ("truth", "prediction"):
            painted = read_canvas(driver, f"{card} canvas[data-kind={kind}]")
            mask = classes[codes_of(run["images"][worst][kind])]
            assert (painted[..., 3] == np.where(mask < 0, 0, 255)).all()
            assert (painted[mask >= 0, :3] == colors[mask[mask >= 0]]).all()
        error = read_canvas(driver, f"{card} canvas[data-kind=error]")
        truth, predicted = (classes[codes_of(run["images"][worst][kind])] for kind in ("truth", "prediction"))
        assert ((error[..., 3] > 0) == ((truth >= 0) & (truth != predicted))).all()
        top = np.array([code[-1] for code in run["codes"]])  # another class at the coarsest level: a bad mistake
        tops = [top[codes_of(run["images"][worst][kind])] for kind in ("truth", "prediction")]
        red = (error[..., :3] == [200, 24, 52]).all(axis=-1)
        assert (red == ((truth >= 0) & (tops[0] != tops[1]))).all()


def test_the_tree_folds_by_mouse_and_keyboard(show):
    driver = show("camvid")
    nodes = [node["name"] for node in written("camvid")["tree"]["nodes"]]
    structure = f"#tree button[data-node='{nodes.index('structure')}']"
    assert len(texts(driver, "#tree tbody tr")) == 11 + 3 + 2
    click(driver, structure)
    assert len(texts(driver, "#tree tbody tr")) == 11 + 3 + 2 - 4
    assert find(driver, structure).get_attribute("aria-expanded") == "false"
    driver.switch_to.active_element.send_keys("\n")  # the focus is still on the group
    assert find(driver, structure).get_attribute("aria-expanded") == "true"
    assert "pole" in "".join(texts(driver, "#tree tbody tr"))
    choose_level(driver, 2)
    assert [text.split("\n")[0].split("\t")[0].strip() for text in texts(driver, "#tree tbody th")] == [
        "static",
        "moving",
    ]


def test_weakest_first_sorts_the_classes_of_the_level(show):
    driver, (run,) = show("mapillary"), written("mapillary")["runs"]
    click(driver, "#weakest")
    shown = [float(cell) for cell in texts(driver, "#tree tbody td:nth-child(2)") if cell.strip() != "–"]
    assert shown == sorted(shown)
    assert len(texts(driver, "#tree tbody tr")) == len(run["evaluation"]["levels"][0]["classes"])
    assert "›" in texts(driver, "#tree tbody th")[0]  # where the class stands in the tree


def test_groups_of_the_matrix_fold_to_their_parent(show):
    driver, (run,) = show("camvid"), written("camvid")["runs"]
    names = [node["name"] for node in written("camvid")["tree"]["nodes"]]
    assert len(texts(driver, "#matrix .row-head")) == 11
    click(driver, f"#matrix .band[data-node='{names.index('structure')}']")
    assert texts(driver, "#matrix .row-head")[2].strip() == "structure"
    assert len(texts(driver, "#matrix .column-heads > span")) == len(texts(driver, "#matrix .row-head")) == 8
    matrix = counted(run, 0)[:, 1:]
    group = [names.index(name) for name in ("building", "pole", "sign", "fence")]
    hover_cell(driver, 2, 2)
    inside = matrix[np.ix_(group, group)].sum()
    assert (
        find(driver, "#cell").text
        == f"structure is right for {100 * inside / matrix[group].sum():.1f} % of its pixels ({inside:,})."
    )
    driver.switch_to.active_element.send_keys("\n")  # unfold it again
    assert len(texts(driver, "#matrix .row-head")) == 11


def test_a_cell_leads_to_its_images(show):
    driver, (run,) = show("camvid"), written("camvid")["runs"]
    names = [node["name"] for node in written("camvid")["tree"]["nodes"]]
    rows = [text.strip() for text in texts(driver, "#matrix .row-head")]
    truth, predicted = "bicyclist", "pedestrian"
    hover_cell(driver, rows.index(truth), rows.index(predicted), choose=True)
    expected = [image for image, _ in run["cells"][0][f"{names.index(truth)},{names.index(predicted)}"]]
    shown = driver.execute_script(
        "return [...document.querySelectorAll('#cell-images article')].map((e) => Number(e.dataset.image))"
    )
    assert shown == expected
    assert find(driver, "#cell-images h3").text == "Images where bicyclist is predicted as pedestrian"
    assert driver.switch_to.active_element.tag_name == "h3"

    choose_level(driver, 1)  # by keyboard, at another level
    assert not texts(driver, "#cell-images article")
    cells = find(driver, "#matrix .cells")
    driver.execute_script("arguments[0].focus()", cells)
    cells.send_keys("\ue011\ue00f" + "\ue014\ue015" + "\n")  # Home, page down and up; right, down; Enter
    assert find(driver, "#cell-images h3").text.startswith("Images where ")


def test_the_threshold_shows_a_row_of_the_curve(show):
    driver, (run,) = show("camvid"), written("camvid")["runs"]
    slider = find(driver, "#threshold")
    slider.send_keys("\ue014" * 40)  # right
    row = run["evaluation"]["back_off_curve"][40]
    assert find(driver, "output[for=threshold]").text == "0.40"
    for key in ("coverage", "specificity", "accuracy"):
        assert find(driver, f"#back-off [data-measure={key}] dd").text == f"{100 * row[key]:.1f} %"


def test_the_opacity_of_masks_follows_its_slider(show):
    driver = show("camvid")
    find(driver, "#opacity").send_keys("\ue011")  # Home
    opacity = "return getComputedStyle(document.querySelector('#gallery canvas')).opacity"
    assert driver.execute_script(opacity) == "0"


def test_the_level_survives_a_reload(show):
    driver = show("camvid")
    choose_level(driver, 2)
    driver.refresh()
    assert find(driver, "input[name=level]:checked").get_attribute("value") == "2"
    assert find(driver, "#overview h3").text == "Level level2: 2 classes"


def test_a_comparison_shows_differences_and_the_same_images(show):
    driver, runs = show("comparison"), written("comparison")["runs"]
    choose_level(driver, 1)
    first, *others = [run["evaluation"]["levels"][1]["miou"] for run in runs]
    cells = driver.execute_script(
        "return [...document.querySelector('#comparison tbody tr').cells].map((c) => c.textContent)"
    )
    expected = [
        f"{100 * miou:.1f} %{100 * (miou - first):+.1f} {'better' if miou > first else 'worse'}".replace("-", "−")
        for miou in others
    ]
    assert cells == ["mIoU", f"{100 * first:.1f} %", *expected]
    assert len(texts(driver, "#gallery article:first-of-type canvas")) == 1 + 2 * 3  # the truth; prediction and error
    click(driver, "input[name=run][value='2']")
    assert value(driver, "#tiles [data-measure=miou] dd") == others[1]
    assert texts(driver, "#tree thead th")[2] == "Difference"


@pytest.mark.parametrize("name", ["mapillary", "hostile"])
def test_nothing_runs_over_a_narrow_screen(show, name):
    driver = show(name, width=390)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 390


def test_paper_is_light_whatever_the_theme(show):
    driver = show("one image", "dark")
    color = "return getComputedStyle(document.body).color"
    on_screen = driver.execute_script(color)
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    assert (on_screen, driver.execute_script(color)) == ("rgb(231, 235, 242)", "rgb(27, 35, 48)")


QUICK = [("interrupted", "light"), ("interrupted", "dark")]
SLOW = [*itertools.product(DOCUMENTS, ["light", "dark"])]


@pytest.mark.parametrize(
    ("name", "theme"), [*QUICK, *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW if each not in QUICK)]
)
def test_everyone_can_read_it(show, axe, name, theme):
    driver = show(name, theme)
    driver.execute_script("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    driver.execute_script(axe)
    found = driver.execute_async_script("axe.run(document, {resultTypes: ['violations']}).then(arguments[0])")
    faults = [each for each in found["violations"] if each["impact"] in ("serious", "critical")]
    assert [(each["id"], each["nodes"][0]["html"], each["nodes"][0]["failureSummary"]) for each in faults] == []
