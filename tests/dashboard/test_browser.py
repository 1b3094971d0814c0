"""The page in a browser: a sound store is quiet, a leak lights up, and Ctrl-C ends it all. Skipped where there is no Chromium."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE = 60_000  # milliseconds, of a machine that is busy with other tests; nothing here waits for time to pass
MANY = re.compile(r"^([4-9]\d\d|\d+,\d{3}) accesses$")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: on Debian, apt-get install chromium")


@pytest.fixture
def server() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "oram", "watch", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[BrowserContext]:
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=CHROMIUM, args=list(FLAGS), viewport={"width": 1180, "height": 1000}
        )
        yield context
        context.close()


def shot(page: Page, name: str, tmp_path: Path) -> int:
    """Bytes of a picture of the page; kept where ORAM_SCREENSHOTS says."""
    path = Path(os.environ.get("ORAM_SCREENSHOTS", tmp_path)) / name
    page.screenshot(path=path, animations="disabled")
    return path.stat().st_size


def test_a_leak_lights_up(server: subprocess.Popen[str], browser: BrowserContext, tmp_path: Path) -> None:
    assert server.stdout is not None
    first = server.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+/", first)
    assert found is not None, first
    asked, said = list[str](), list[str]()
    page = browser.pages[0]
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    expect.set_options(timeout=PATIENCE)
    page.goto(found[0])

    plain, oblivious = page.locator("#plain"), page.locator("#oblivious")
    expect(page.locator("#count")).to_have_text(MANY)
    expect(oblivious).to_have_attribute("data-state", "quiet")
    expect(oblivious.locator("tbody tr[data-state=quiet]")).to_have_count(7)
    expect(plain).to_have_attribute("data-state", "alarm")
    expect(page.get_by_role("switch")).to_have_attribute("aria-checked", "false")
    assert shot(page, "watch-sound.png", tmp_path) > 30_000

    page.get_by_role("switch").focus()
    page.keyboard.press("Space")
    expect(page.locator("#page")).to_have_attribute("data-run", "2")
    expect(oblivious).to_have_attribute("data-state", "alarm")
    expect(oblivious.get_by_text(re.compile(r"^alarm at \d+"))).not_to_have_count(0)
    expect(page.get_by_role("status")).to_contain_text("has raised an alarm")
    expect(page.locator("#count")).to_have_text(MANY)
    page.emulate_media(color_scheme="dark")
    assert shot(page, "watch-leaking.png", tmp_path) > 30_000

    other = browser.new_page()  # a second viewer, of the same run
    other.goto(found[0])
    expect(other.locator("#oblivious")).to_have_attribute("data-state", "alarm")
    other.get_by_label("Scheme").select_option("cuckoo")
    expect(page.locator("#oblivious h2")).to_have_text("Oblivious: Cuckoo")
    expect(other.get_by_role("switch")).to_have_attribute("aria-checked", "false")
    expect(oblivious).to_have_attribute("data-state", "quiet")
    other.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Go on")).to_be_visible()

    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert {url for url in asked if not url.startswith((found[0], "data:"))} == set()
    assert said == []

    server.send_signal(signal.SIGINT)  # with two viewers there
    out, err = server.communicate(timeout=30)
    assert (server.returncode, out, err) == (0, "stopped\n", "")
