"""The page in a real browser."""

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from studies import make_experiment, make_trial

from repr_ray.report import report

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
EVIL = "a|b_<script>window.broken=1</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM or not DRIVER:
        pytest.skip("no chromium with chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.execute_cdp_cmd("Network.enable", {})
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = [0.70, 0.71, 0.72]
    schemes = {"standard": base, "repr": [v + 0.012 for v in base], EVIL: [v - 0.03 for v in base]}
    results = make_experiment(tmp_path_factory.mktemp("html") / "study", schemes)
    make_trial(results, scheme="repr", seed=3, done=4)
    make_trial(results, scheme="repr", seed=4, done=2, error="CUDA out of memory <b>", status="out of memory")
    report([results])
    return results / "report.html"


def view(browser: Any, page: Path, width: int = 1280, dark: bool = False) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    browser.get_log("performance")
    browser.get(page.as_uri())


def column(browser: Any, name: str) -> list[str]:
    return browser.execute_script(
        "const t = document.getElementById('schemes');"
        "const k = [...t.tHead.rows[0].cells].findIndex((c) => c.textContent === arguments[0]);"
        "return [...t.tBodies[0].rows].map((r) => r.cells[k].textContent);",
        name,
    )


def test_it_opens_alone_and_quietly(browser: Any, page: Path) -> None:
    view(browser, page)
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert page.as_uri() in asked
    assert [url for url in asked if url != page.as_uri() and not url.startswith("data:")] == []
    assert browser.execute_script("return window.broken") is None
    loaded = browser.execute_script("return [...document.images].map((i) => { i.loading = 'eager'; return i.alt; })")
    assert len(loaded) == 5
    assert all(len(alt) > 40 for alt in loaded)
    assert page.stat().st_size < 5_000_000


def test_the_answer_is_on_top_and_failures_come_first(browser: Any, page: Path) -> None:
    view(browser, page)
    assert browser.execute_script("return document.querySelector('.answer').textContent").startswith(
        "Of 2 comparisons"
    )
    titles = browser.execute_script("return [...document.querySelectorAll('h2')].map((h) => h.textContent)")
    assert titles[:2] == ["Failed trials", "Schemes"]
    assert titles[-1] == "How to reproduce"
    text = browser.execute_script("return document.body.textContent")
    for said in ("CUDA out of memory <b>", "1 of 11 trials are unfinished", "python -m repr_ray.report", EVIL):
        assert said in text
    assert "0123456789abcdef" in text
    assert len(re.findall(r"epoch \d+ test accuracy", text)) >= 9 * 12  # the logs


def test_trials_have_config_and_log_failures_first(browser: Any, page: Path) -> None:
    view(browser, page)
    section = "document.querySelector('section[aria-labelledby=trials-title]')"
    trials = browser.execute_script(
        f"return [...{section}.querySelectorAll(':scope > details > details')]"
        ".map((d) => [d.querySelector('summary').textContent, d.querySelector('pre').textContent])"
    )
    names = [name for name, _ in trials]
    assert names[0] == "Config"
    assert "seed 4, out of memory" in names[1]
    assert len([name for name in names if "seed" in name]) == 11
    configs = [text for name, text in trials if name == "Config"]
    assert len(configs) == 3
    assert all("learning_rate: 0.01" in text for text in configs)
    assert "s1: 3" in configs[0]
    assert all("test accuracy" in text for name, text in trials if "seed" in name)


def test_it_sorts(browser: Any, page: Path) -> None:
    view(browser, page)
    assert column(browser, "Scheme") == ["standard", "repr", EVIL]
    click = "[...document.querySelectorAll('#schemes button')].find((b) => b.textContent === arguments[0]).click()"
    browser.execute_script(click, "Difference [95%]")
    assert column(browser, "Scheme") == [EVIL, "repr", "standard"]  # what has no number comes last
    browser.execute_script(click, "Difference [95%]")
    assert column(browser, "Scheme") == ["repr", EVIL, "standard"]
    state = "return [...document.querySelectorAll('#schemes th[aria-sort]')].map((h) => h.getAttribute('aria-sort'))"
    assert browser.execute_script(state) == ["descending"]
    browser.execute_script(click, "Scheme")
    assert column(browser, "Scheme") == sorted(["standard", "repr", EVIL])


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_is_accessible_and_fits(browser: Any, page: Path, width: int, dark: bool) -> None:
    axe = pytest.importorskip("axe_core_python")
    view(browser, page, width, dark)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    wider = "return [...document.querySelectorAll(arguments[0])].filter((e) => e.scrollWidth > e.clientWidth).length"
    assert browser.execute_script(wider, "figure .scroll") == 0  # no picture is cut or moves sideways
    assert width < 1280 or browser.execute_script(wider, ".scroll") == 0  # nor a column of a table
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true;")
    browser.execute_script((Path(axe.__file__).parent / "axe.min.js").read_text())
    found = browser.execute_async_script("const done = arguments[0]; axe.run().then(done)")
    assert [(v["id"], [n["html"][:100] for n in v["nodes"][:3]]) for v in found["violations"]] == []
    assert len(found["passes"]) > 20


def test_a_running_page_reads_itself_again(browser: Any, tmp_path: Path) -> None:
    results = make_experiment(tmp_path / "study", {"standard": [0.7, 0.71]})
    running = make_trial(results, scheme="repr", done=4)
    report([results], formats=["html"], pictures=0)
    sooner = "const wait = setInterval; window.setInterval = (act, time) => wait(act, time / 50);"
    script = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": sooner})
    try:
        view(browser, results / "report.html")
        assert "1 of 3 trials are unfinished" in browser.page_source
        shutil.rmtree(running)
        make_trial(results, scheme="repr")
        report([results], formats=["html"], pictures=0)
        deadline = time.monotonic() + 30
        while "unfinished" in browser.page_source and time.monotonic() < deadline:
            time.sleep(0.1)
        assert "unfinished" not in browser.page_source
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


def test_a_finished_page_does_not_refresh(browser: Any, tmp_path: Path) -> None:
    results = make_experiment(tmp_path / "done", {"standard": [0.7, 0.71], "repr": [0.7, 0.72]})
    report([results], formats=["html"], pictures=0)
    text = (results / "report.html").read_text()
    assert 'id="refresh"' not in text
    view(browser, results / "report.html")
    assert browser.get_log("browser") == []
