"""A headless Chromium that opens pages."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from seghiero_core.report.page import render_page
from support.browser import PAINTED
from support.report_cases import written

OPTIONS = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run"
QUIET = (
    "--disable-background-networking --disable-component-update --disable-sync --hide-scrollbars --window-size=1280,900"
)


@pytest.fixture(scope="session")
def chromium():
    """Debian's Chromium; its driver takes no browser from the net."""
    webdriver = pytest.importorskip("selenium.webdriver")
    browser, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (browser and chromedriver):
        pytest.skip("Debian's packages chromium and chromium-driver aren't installed")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for option in f"{OPTIONS} {QUIET}".split():
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def axe(tmp_path_factory):
    """The source of axe-core, fetched into a temporary folder."""
    folder = tmp_path_factory.mktemp("axe")
    command = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--fetch-retries=0", "axe-core@4"]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("npm can't fetch axe-core")
    return (folder / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")


@pytest.fixture
def show_file(chromium):
    """Opens a page, in a theme and a width."""

    def open_page(path: Path, theme: str = "light", width: int = 1280):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = {"prefers-color-scheme": theme, "prefers-reduced-motion": "reduce"}
        media = {"features": [{"name": key, "value": each} for key, each in features.items()]}
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        for kind in ("browser", "performance"):
            chromium.get_log(kind)
        chromium.get(path.as_uri())
        chromium.execute_async_script(PAINTED)
        return chromium

    return open_page


@pytest.fixture
def show(show_file, tmp_path):
    """Opens the page of a document, in a theme and a width."""

    def open_page(name: str, theme: str = "light", width: int = 1280):
        path = tmp_path / "report.html"
        path.write_text(render_page(written(name)), encoding="utf-8")
        return show_file(path, theme, width)

    return open_page
