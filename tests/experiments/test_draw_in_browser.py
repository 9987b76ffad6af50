"""The drawing page in a real Chromium, driven by Playwright.

Needs Chromium installed (`apt-get install chromium`), found on the path or named by
CHROMIUM. Without one the tests are skipped, and say so; with REQUIRE_CHROMIUM=1 they
fail.
"""

import math
import os
import re
import shutil
import subprocess
from urllib.parse import urlsplit

import numpy as np
import pytest
from commands import arguments
from PIL import Image

from experiments.data import digits
from flax_lstm import load_classifier

sync_api = pytest.importorskip("playwright.sync_api", reason="drives the browser")
pytest.importorskip("flask", reason="the page is served by Flask")
expect = sync_api.expect

pytestmark = pytest.mark.slow

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DESKTOP = {"viewport": {"width": 1180, "height": 1010}}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "has_touch": True,
    "is_mobile": True,
}
READ = re.compile(r"^Read as \d, with [\d.]+ %\.")


@pytest.fixture(scope="module")
def browser():
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


@pytest.fixture(scope="module")
def url(trained):
    flags = arguments("draw", f"--workdir={trained[0]}", "--port=0")
    with subprocess.Popen(flags, stdout=subprocess.PIPE, text=True) as server:
        try:
            server.stdout.readline()
            yield re.search(r"http://\S+", server.stdout.readline())[0]
        finally:
            server.kill()


@pytest.fixture
def open_page(browser, url):
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


def assert_empty(page):
    expect(page.locator("#sentence")).to_have_text("Draw a digit from 0 to 9.")
    expect(page.locator("#digit")).to_have_text("–")
    assert painted(page, "#pad") == 1
    assert painted(page, "#image") == 1


def test_a_digit_drawn_with_the_mouse_is_read_while_it_is_drawn(open_page):
    page = open_page(**DESKTOP)
    expect(page.locator("#embedded")).to_be_visible()
    points = zero()
    page.mouse.move(*place(page, points[0]))
    page.mouse.down()
    for point in points[1:12]:
        page.mouse.move(*place(page, point))
    expect(page.locator("#digit")).to_have_text(re.compile(r"\d"))  # Pen still down.
    assert page.locator("#sentence").text_content() == ""
    for point in points[12:]:
        page.mouse.move(*place(page, point))
    page.mouse.up()
    expect(page.locator("#sentence")).to_have_text(READ)
    expect(page.locator("#digit")).to_have_text("0")
    expect(page.locator("#row-text")).to_have_text("row 8 of 8")
    for canvas in ("#image", "#probabilities", "#i", "#f", "#o", "#c"):
        assert painted(page, canvas) > 5, canvas

    draw(page, [(0.1, 0.9), (0.9, 0.9)])
    expect(page.locator("#sentence")).to_have_text(READ)
    page.click("#undo")
    expect(page.locator("#digit")).to_have_text("0")
    expect(page.locator("#sentence")).to_have_text(READ)
    page.click("#clear")
    assert_empty(page)


def test_a_digit_drawn_with_the_keys(open_page):
    page = open_page(**DESKTOP)
    page.keyboard.press("Tab")
    expect(page.locator("#pad")).to_be_focused()
    for _ in range(9):
        page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    expect(page.locator("#pen")).to_have_text("Pen down")
    for _ in range(18):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    expect(page.locator("#pen")).to_have_text("Pen up")
    expect(page.locator("#sentence")).to_have_text(READ)
    expect(page.locator("#digit")).to_have_text("1")
    page.keyboard.press("ArrowRight")  # The pen is up: nothing is drawn.
    page.keyboard.press("Backspace")
    expect(page.locator("#sentence")).to_have_text("Draw a digit from 0 to 9.")
    page.keyboard.press("Enter")
    expect(page.locator("#digit")).to_have_text(re.compile(r"\d"))
    page.keyboard.press("Delete")
    expect(page.locator("#sentence")).to_have_text("Draw a digit from 0 to 9.")


def test_a_digit_drawn_with_a_finger_on_a_phone(open_page):
    page = open_page(**PHONE)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width == PHONE["viewport"]["width"]  # Nothing sticks out.
    page.locator("#pad").scroll_into_view_if_needed()
    touch = page.context.new_cdp_session(page)

    def send(kind, *points):
        at = [dict(zip("xy", place(page, point), strict=True)) for point in points]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

    before = page.evaluate("scrollY")
    send("touchStart", zero()[0])
    for point in zero()[1:]:
        send("touchMove", point)
    send("touchEnd")
    expect(page.locator("#sentence")).to_have_text(READ)
    expect(page.locator("#digit")).to_have_text("0")
    assert page.evaluate("scrollY") == before


def test_test_digits_are_picked_and_read(open_page, trained):
    model, variables = load_classifier(trained[0])
    test = digits.load().test
    logits = model.apply(variables, test.images.astype(np.float32) / digits.WHITE)
    answers = np.asarray(logits).argmax(-1)

    def assert_shown(page, index):
        label, answer = test.labels[index], answers[index]
        verdict = "right" if label == answer else f"wrong, its label is {label}"
        expect(page.locator("#sentence")).to_have_text(
            re.compile(rf"^Read as {answer}, .*Test digit {index}: {verdict}\.$")
        )
        expect(page.locator("#index")).to_have_value(str(index))
        expect(page.locator("#digit")).to_have_text(str(answer))

    page = open_page(**DESKTOP)
    page.fill("#index", "41")
    page.press("#index", "Enter")
    assert_shown(page, 41)
    page.click("#next")
    assert_shown(page, 42)
    page.click("#previous")
    assert_shown(page, 41)
    page.fill("#index", "99999")
    page.press("#index", "Enter")
    assert_shown(page, len(test) - 1)
    first = page.locator("#hardest button").first
    hardest = int(re.search(r"Test digit (\d+)", first.get_attribute("aria-label"))[1])
    assert answers[hardest] != test.labels[hardest]
    first.click()
    assert_shown(page, hardest)
    expect(page.locator("#digit")).to_have_class("wrong")
    draw(page, zero())  # On a new sheet, not over the test digit.
    expect(page.locator("#sentence")).to_have_text(re.compile(r"^Read as 0, [^T]*$"))


def test_rows_and_layers_are_looked_at_one_by_one(open_page):
    page = open_page(**DESKTOP)
    page.click("#next")
    expect(page.locator("#sentence")).to_have_text(READ)
    upper = page.locator("#c").evaluate("c => c.toDataURL()")
    page.click("text=Layer 1")
    assert page.locator("#c").evaluate("c => c.toDataURL()") != upper
    whole = page.locator("#bars").inner_text()
    page.focus("#row")
    page.keyboard.press("Home")
    expect(page.locator("#row-text")).to_have_text("row 1 of 8")
    assert page.locator("#bars").inner_text() != whole
    page.click("#play")
    expect(page.locator("#row-text")).to_have_text("row 8 of 8")
    assert page.locator("#bars").inner_text() == whole


def test_light_and_dark(open_page):
    page = open_page(**DESKTOP, color_scheme="light")
    draw(page, zero())
    expect(page.locator("#sentence")).to_have_text(READ)
    answer = page.locator("#bars").inner_text()
    brightness = (
        "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data"
        ".reduce((sum, value) => sum + value) / (4 * c.width * c.height)"
    )
    light = page.locator("#pad").evaluate(brightness)
    page.emulate_media(color_scheme="dark")
    dark = page.locator("#pad").evaluate(brightness)
    assert light > 200 > 120 > dark  # A quarter of the bytes are the opacity, 255.
    page.click("#clear")
    draw(page, zero())
    expect(page.locator("#sentence")).to_have_text(READ)
    # What the server is sent has no theme.
    assert page.locator("#bars").inner_text() == answer


def test_pictures_are_taken_or_refused_in_words(open_page, tmp_path):
    page = open_page(**DESKTOP)
    (tmp_path / "bad.png").write_text("no picture")
    page.set_input_files("#picture", tmp_path / "bad.png")
    expect(page.get_by_role("alert")).to_have_text(
        "expected a PNG or JPEG, got the picture"
    )
    good = Image.fromarray(digits.load().test.images[0] * 15).resize((160, 160), 0)
    good.save(tmp_path / "good.png")
    page.set_input_files("#picture", tmp_path / "good.png")
    expect(page.locator("#sentence")).to_have_text(READ)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_what_empties_the_sheet_ends_the_stroke_under_way(open_page):
    page = open_page(**DESKTOP)
    page.focus("#pad")
    page.mouse.move(*place(page, (0.3, 0.3)))
    page.mouse.down()
    page.mouse.move(*place(page, (0.4, 0.4)))
    page.keyboard.press("Delete")
    page.mouse.move(*place(page, (0.6, 0.6)))  # An error would fail the test.
    page.mouse.up()
    expect(page.locator("#sentence")).to_have_text("Draw a digit from 0 to 9.")
    expect(page.locator("#digit")).to_have_text("–")


def test_a_test_digit_that_comes_late_does_not_replace_a_drawing(open_page):
    page = open_page(**DESKTOP)

    page.evaluate(
        """() => {
            const fetchAtOnce = window.fetch;
            window.fetch = async (path, options) => {
                const late = path.startsWith("api/test") ? 400 : 1500;
                await new Promise((resolve) => setTimeout(resolve, late));
                return fetchAtOnce(path, options);
            };
        }"""
    )
    draw(page, [(0.1, 0.9), (0.9, 0.9)])  # While its reading is under way,
    page.click("#next")  # a digit is asked for, and
    first, *others = zero()
    page.mouse.move(*place(page, first))
    page.mouse.down()  # a stroke begins before it comes.
    page.wait_for_timeout(800)
    for point in others:
        page.mouse.move(*place(page, point))
    page.mouse.up()
    expect(page.locator("#sentence")).to_have_text(READ)
    assert "Test digit" not in page.locator("#sentence").text_content()


def test_a_server_that_is_gone_is_said(open_page):
    page = open_page(**DESKTOP)
    page.route("**/api/read", lambda route: route.abort())
    draw(page, zero())
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
