"""The drawing page in a real Chromium, driven by Playwright.

Needs Chromium installed (`apt-get install chromium`), found on the path or named by
CHROMIUM. Without one the tests are skipped, and say so; with REQUIRE_CHROMIUM=1 they
fail. Without Playwright or Flask the files that import this one are skipped.
"""

import contextlib
import math
import os
import re
import shutil
import subprocess
from urllib.parse import urlsplit

import pytest
from commands import arguments

sync_api = pytest.importorskip("playwright.sync_api", reason="drives the browser")
pytest.importorskip("flask", reason="the page is served by Flask")
expect = sync_api.expect
expect.set_options(timeout=30_000)  # Milliseconds, for a busy machine.

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DESKTOP = {"viewport": {"width": 1180, "height": 1010}}
STILL = DESKTOP | {"reduced_motion": "reduce"}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "has_touch": True,
    "is_mobile": True,
}
READ = re.compile(r"^Read as \d, with [\d.]+ %\.")


@contextlib.contextmanager
def chromium():
    path = os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, NAMES)), ""
    )
    if not path:
        reason = (
            f"no Chromium: none of {', '.join(NAMES)} on the path, no CHROMIUM=PATH"
        )
        if os.environ.get("REQUIRE_CHROMIUM"):
            pytest.fail(reason)
        pytest.skip(reason)
    # Chromium's sandbox needs a user other than root.
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@contextlib.contextmanager
def served(workdir):
    """The address of the page on which the run's model reads."""
    flags = arguments("draw", f"--workdir={workdir}", "--port=0")
    with subprocess.Popen(flags, stdout=subprocess.PIPE, text=True) as server:
        try:
            server.stdout.readline()
            yield re.search(r"http://\S+", server.stdout.readline())[0]
        finally:
            server.kill()


@contextlib.contextmanager
def opening(browser, url):
    """Opens the page as a device has it; what went wrong in it fails the test."""
    contexts, problems, asked = [], [], []

    def open_(**device):
        context = browser.new_context(**device)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        expect(page.locator("#hardest li")).to_have_count(12)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert problems == []
    elsewhere = [
        u for u in asked if urlsplit(u).netloc not in ("", urlsplit(url).netloc)
    ]
    assert elsewhere == []


def zero():
    angles = [math.radians(360 * k / 24) for k in range(25)]
    return [(0.5 + 0.2 * math.sin(a), 0.5 - 0.34 * math.cos(a)) for a in angles]


def place(page, point):
    box = page.locator("#pad").bounding_box()
    return box["x"] + point[0] * box["width"], box["y"] + point[1] * box["height"]


def draw(page, points):
    page.mouse.move(*place(page, points[0]))
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*place(page, point))
    page.mouse.up()


def painted(page, canvas):
    """How many colours a canvas shows."""
    return page.locator(canvas).evaluate(
        "c => new Set(new Uint32Array(c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data.buffer)).size"
    )


def is_ink(page, point):
    """Whether the sheet, in light colours, is dark there."""
    return page.locator("#pad").evaluate(
        "(c, [x, y]) => c.getContext('2d')"
        ".getImageData(x * c.width, y * c.height, 1, 1).data[0] < 128",
        point,
    )


def assert_empty(page):
    expect(page.locator("#sentence")).to_have_text("Draw a digit from 0 to 9.")
    expect(page.locator("#digit")).to_have_text("–")
    assert painted(page, "#pad") == 1
    assert painted(page, "#image") == 1
