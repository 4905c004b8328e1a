"""Opens reports in a real browser."""

import json
import os
from pathlib import Path

import pytest

from ellzero.report import to_html
from tests.report import samples

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]

pytestmark = pytest.mark.browser


def _require():
    try:
        import selenium  # noqa: F401
    except ImportError:
        missing = "selenium"
    else:
        missing = next((str(p) for p in (CHROMIUM, DRIVER) if not p.exists()), None)
    if missing is None:
        return
    message = f"{missing} is not installed; the report was not opened in a browser."
    if os.environ.get("ELLZERO_EXPECT_BROWSER") == "1":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    _require()
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield browser
    browser.quit()


def _open(driver, path, width, *, dark=False, script=True):
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
    driver.get_log("browser")
    driver.get_log("performance")
    driver.get(path.as_uri())


def _requests(driver):
    messages = (json.loads(e["message"])["message"] for e in driver.get_log("performance"))
    return [
        m["params"]["request"]["url"]
        for m in messages
        if m["method"] == "Network.requestWillBeSent"
    ]


@pytest.fixture(params=["iris", "hostile", "unknown", "wide", "network"])
def page(request, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(to_html(getattr(samples, request.param)()), encoding="utf-8")
    return path


def test_no_errors_no_requests_no_overflow(driver, page):
    for width in (390, 1280):
        _open(driver, page, width)
        assert driver.get_log("browser") == []
        assert [u for u in _requests(driver) if not u.startswith("data:")] == [page.as_uri()]
        # Open every table: folded ones could overflow too.
        driver.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
        wide = driver.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width
        outside = driver.execute_script(
            "return [...document.querySelectorAll('svg text, svg rect, svg path')].filter(e => {"
            "const b = e.getBoundingClientRect();"
            "return b.width && (b.left < 0 || b.right > document.documentElement.clientWidth)"
            "}).map(e => e.outerHTML)"
        )
        assert outside == []


def test_labels_of_charts_do_not_overlap(driver, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(to_html(samples.iris()), encoding="utf-8")
    for width in (390, 1280):
        _open(driver, path, width)
        overlaps = driver.execute_script(
            "const out = [];"
            "document.querySelectorAll('svg').forEach(s => {"
            "  const t = [...s.querySelectorAll('text:not([transform])')]"
            "    .map(e => [e, e.getBoundingClientRect()]).filter(p => p[1].width);"
            "  t.forEach(([a, p], i) => t.slice(i + 1).forEach(([b, q]) => {"
            # Boxes of text have room above and below the letters.
            "    if (p.left < q.right - 1 && q.left < p.right - 1 &&"
            "        p.top < q.bottom - 5 && q.top < p.bottom - 5)"
            "      out.push(a.textContent + ' / ' + b.textContent); }));"
            "}); return out"
        )
        assert overlaps == []


def test_pointing_at_a_mark_shows_its_numbers(driver, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    path = tmp_path / "report.html"
    path.write_text(to_html(samples.iris()), encoding="utf-8")
    _open(driver, path, 1280)
    tip = driver.find_element(By.CSS_SELECTOR, ".tip")
    assert not tip.is_displayed()
    mark = driver.find_elements(By.CSS_SELECTOR, ".wide .m .mark.c0")[4]
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
    # The page hides the tooltip when it scrolls: let the scroll arrive first.
    frames = "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"
    driver.execute_async_script(frames)
    ActionChains(driver).move_to_element(mark).perform()
    assert tip.is_displayed()
    assert tip.text == "best loss found: 0.3082 at nonzero parameters 5"


def test_page_is_complete_without_javascript(driver, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(to_html(samples.iris()), encoding="utf-8")
    _open(driver, path, 1280, script=False)
    try:
        tree = driver.execute_cdp_cmd("DOM.getDocument", {"depth": 0})
        html = driver.execute_cdp_cmd("DOM.getOuterHTML", {"nodeId": tree["root"]["nodeId"]})
        assert "proven globally optimal" in html["outerHTML"]
        # The script did not run: titles are still titles.
        assert (
            "<title>best loss found: 0.3082 at nonzero parameters 5</title>" in html["outerHTML"]
        )
        assert 'class="tip"' not in html["outerHTML"]
        shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
        assert len(shot["data"]) > 10_000
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_dark_and_print_change_colors(driver, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(to_html(samples.iris()), encoding="utf-8")
    color = "return getComputedStyle(document.body).backgroundColor"
    _open(driver, path, 1280)
    assert driver.execute_script(color) == "rgb(255, 255, 255)"
    _open(driver, path, 1280, dark=True)
    assert driver.execute_script(color) == "rgb(20, 23, 27)"
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert driver.execute_script(color) == "rgb(255, 255, 255)"
