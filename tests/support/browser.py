"""Reading and using a page in a browser that selenium drives."""

from __future__ import annotations

import numpy as np

# Canvases are painted when their masks have been decoded.
PAINTED = (
    "const [done] = arguments;"
    "Promise.all([...document.images].map((image) => image.decode())).then(() => setTimeout(done, 50));"
)


def find(driver, selector):
    return driver.find_element("css selector", selector)


def texts(driver, selector):
    return driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText)", selector
    )


def table(driver, selector):
    """The text of each cell of some rows."""
    script = (
        "return [...document.querySelectorAll(arguments[0])].map((r) => [...r.cells].map((c) => c.innerText.trim()))"
    )
    return driver.execute_script(script, selector)


def value(driver, selector):
    return float(find(driver, selector).get_attribute("data-value"))


def click(driver, selector):
    driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", find(driver, selector))
    find(driver, selector).click()


def choose_level(driver, level):
    click(driver, f"input[name=level][value='{level}']")
    driver.execute_async_script(PAINTED)


def read_canvas(driver, selector: str) -> np.ndarray:
    script = (
        "const canvas = document.querySelector(arguments[0]), { width, height } = canvas;"
        "return [height, width, [...canvas.getContext('2d').getImageData(0, 0, width, height).data]];"
    )
    height, width, data = driver.execute_script(script, selector)
    return np.array(data).reshape(height, width, 4)


def hover_cell(driver, row: int, column: int, *, choose: bool = False):
    """Move the pointer to a cell of the confusion matrix, and click on it if it is to be chosen."""
    from selenium.webdriver import ActionChains

    cells = find(driver, "#matrix .cells")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", cells)
    many = len(texts(driver, "#matrix .row-head"))
    offset = [int((at + 0.5 - many / 2) * cells.size["width"] / many) for at in (column, row)]
    actions = ActionChains(driver).move_to_element_with_offset(cells, *offset)
    (actions.click() if choose else actions).perform()
