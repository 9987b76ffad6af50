"""The drawing page in a real Chromium, driven by Playwright.

Needs Chromium installed (`apt-get install chromium`), found on the path or named by
CHROMIUM. Without one the tests are skipped, and say so; with REQUIRE_CHROMIUM=1 they
fail.
"""

import base64
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
STILL = DESKTOP | {"reduced_motion": "reduce"}
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


def is_ink(page, point):
    """Whether the sheet, in light colours, is dark there."""
    return page.locator("#pad").evaluate(
        "(c, [x, y]) => c.getContext('2d')"
        ".getImageData(x * c.width, y * c.height, 1, 1).data[0] < 128",
        point,
    )


def touching(page):
    """Sends touches: their kind, and where all fingers are."""
    page.locator("#pad").scroll_into_view_if_needed()
    touch = page.context.new_cdp_session(page)

    def send(kind, *points):
        at = [dict(zip("xy", place(page, point), strict=True)) for point in points]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

    return send


def hold(page, path):
    """Gets the next request for `path`, which waits to be continued or aborted."""
    held = []
    page.route(f"**/api/{path}", lambda route: held.append(route), times=1)
    return held


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


def test_the_keys_pen_is_seen_while_they_have_it_and_stays_on_the_sheet(open_page):
    page = open_page(**STILL)
    page.keyboard.press("Tab")
    assert painted(page, "#pad") > 1
    page.keyboard.press("Tab")
    assert painted(page, "#pad") == 1
    page.keyboard.press("Shift+Tab")
    for _ in range(20):
        page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    assert is_ink(page, (0.5, 0.03))


def test_keys_that_draw_do_not_scroll_and_others_are_the_browsers(open_page):
    page = open_page(viewport={"width": 1180, "height": 300})
    page.focus("#pad")
    page.keyboard.press("Enter")
    before = page.evaluate("scrollY")
    for key in ("ArrowDown", "Space", "ArrowDown"):
        page.keyboard.press(key)
    page.wait_for_timeout(200)  # Scrolling is smooth.
    assert page.evaluate("scrollY") == before
    page.keyboard.press("Control+Delete")
    assert is_ink(page, (0.5, 0.5))
    page.keyboard.press("Control+z")
    assert not is_ink(page, (0.5, 0.5))
    page.keyboard.press("Tab")
    expect(page.locator("#undo")).to_be_focused()


def test_a_stroke_goes_along_the_edge_and_ends_outside(open_page):
    page = open_page(viewport={"width": 1180, "height": 500})
    page.evaluate("scrollTo(0, 80)")  # Which moves the sheet.
    page.mouse.move(*place(page, (0.5, 0.5)))
    page.mouse.down()
    page.mouse.move(*place(page, (1.5, 0.1)))
    page.mouse.up()
    page.mouse.move(*place(page, (0.2, 0.9)))
    assert is_ink(page, (0.98, 0.11))
    assert not is_ink(page, (0.2, 0.9))


def test_other_buttons_of_the_mouse_change_nothing(open_page):
    page = open_page(**STILL)
    page.click("#next")
    expect(page.locator("#sentence")).to_have_text(READ)
    page.locator("#pad").click(button="right")
    page.wait_for_timeout(200)
    expect(page.locator("#sentence")).to_contain_text("Test digit 1:")


def test_a_digit_drawn_where_moves_come_one_by_one(open_page):
    """Pages by http from another machine have no `getCoalescedEvents`."""
    page = open_page(**STILL)
    page.evaluate("delete PointerEvent.prototype.getCoalescedEvents")
    draw(page, zero()[::3])
    expect(page.locator("#digit")).to_have_text("0")


def test_a_second_finger_draws_nothing(open_page):
    page = open_page(**PHONE, reduced_motion="reduce")
    send = touching(page)
    send("touchStart", (0.2, 0.2))
    send("touchStart", (0.2, 0.2), (0.8, 0.4))
    send("touchMove", (0.2, 0.4), (0.8, 0.6))
    send("touchCancel")  # As the system may end it.
    expect(page.locator("#sentence")).to_have_text(READ)
    assert is_ink(page, (0.2, 0.3))
    assert not is_ink(page, (0.8, 0.4))
    assert not is_ink(page, (0.8, 0.6))


def test_a_digit_drawn_with_a_finger_on_a_phone(open_page):
    page = open_page(**PHONE)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width == PHONE["viewport"]["width"]  # Nothing sticks out.
    assert page.locator("#pad").bounding_box()["width"] > 300  # For a finger.
    send = touching(page)
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
    named = r"Test digit (\d+): a (\d), read as (\d)"
    name = re.search(named, first.get_attribute("aria-label"))
    hardest, *said = map(int, name.groups())
    assert said == [test.labels[hardest], answers[hardest]]
    assert said[0] != said[1]
    first.click()
    assert_shown(page, hardest)
    expect(page.locator("#digit")).to_have_class("wrong")
    draw(page, zero())  # On a new sheet, not over the test digit.
    expect(page.locator("#sentence")).to_have_text(re.compile(r"^Read as 0, [^T]*$"))


def test_numbers_of_test_digits_are_brought_into_range(open_page):
    page = open_page(**STILL)
    expect(page.locator("#index")).to_have_attribute("max", "359")
    page.evaluate("Math.random = () => 0.5")
    page.click("#random")
    expect(page.locator("#sentence")).to_contain_text("Test digit 180:")
    for typed, number in {"-5": 0, "2.7": 2, "": 0}.items():
        page.fill("#index", typed)
        page.press("#index", "Tab")
        expect(page.locator("#index")).to_have_value(str(number))
        expect(page.locator("#sentence")).to_contain_text(f"Test digit {number}:")


def test_a_test_digit_takes_the_place_of_a_drawing_until_undone(open_page):
    page = open_page(**STILL)
    for y in (0.2, 0.9):
        draw(page, [(0.1, y), (0.9, y)])
    expect(page.locator("#sentence")).to_have_text(READ)
    for empty in ("#undo", "#clear"):
        page.click("#next")
        expect(page.locator("#sentence")).to_contain_text("Test digit")
        assert painted(page, "#pad") == painted(page, "#image")  # In the same pixels.
        page.click(empty)
        assert_empty(page)


def test_what_is_shown_of_a_row(open_page, url):
    page = open_page(**STILL)
    page.locator("#hardest button").first.click()
    expect(page.locator("#sentence")).to_have_text(READ)
    number = page.locator("#index").input_value()
    answer = page.request.get(f"{url}api/test/{number}").json()
    expect(page.locator("#digits")).to_have_text("0123456789")
    opacity = (
        "c => [...c.getContext('2d').getImageData(0, 0, 1, c.height).data]"
        ".filter((_, at) => at % 4 === 3).map((alpha) => alpha === 255)"
    )
    for row, probabilities in enumerate(answer["probabilities"], start=1):
        page.fill("#row", str(row))
        best = probabilities.index(max(probabilities))
        expect(page.locator("#digit")).to_have_text(str(best))
        expect(page.locator("#bars .best b")).to_have_text(str(best))
        bar = page.locator("#bars i").nth(best)
        length = re.search(r"scaleX\((.+)\)", bar.get_attribute("style"))[1]
        assert float(length) == pytest.approx(max(probabilities), abs=1e-4)
        last = row == 8
        assert page.locator("#digit").get_attribute("class") == "wrong" * last
        line = page.locator(".line").first
        assert line.is_hidden() == last
        assert f"top: {100 * row / 8:g}%" in line.get_attribute("style")
        shown = page.locator("#image").evaluate(opacity)
        assert shown == [at < row for at in range(8)]


def test_cell_states_are_cold_below_zero_and_warm_above(open_page, url):
    page = open_page(**STILL)
    page.click("#next")
    expect(page.locator("#sentence")).to_have_text(READ)
    top = page.request.get(f"{url}api/test/1").json()["layers"][-1]
    expect(page.locator("#low")).to_have_text(f"−{top['limit']}")
    expect(page.locator("#high")).to_have_text(f"{top['limit']}")
    states = np.frombuffer(base64.b64decode(top["c"]), np.uint8)
    pixels = page.locator("#c").evaluate(
        "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    )
    red, _, blue, _ = np.array(pixels).reshape(-1, 4).T
    assert (red > blue)[states > 150].all()
    assert (red < blue)[states < 100].all()


def test_playing_begins_anew_and_ends_with_what_else_is_shown(open_page):
    page = open_page(**DESKTOP)
    page.click("#next")
    expect(page.locator("#sentence")).to_have_text(READ)
    # At once, however slow the machine is; an error would fail the test.
    for then, shown in {
        "play.click()": "row 8 of 8",
        "row.value = 3; row.oninput()": "row 3 of 8",
        "clear.click()": "row 0 of 8",
    }.items():
        page.evaluate(
            "const [play, row, clear] = ['play', 'row', 'clear']"
            f".map((id) => document.getElementById(id)); play.click(); {then};"
        )
        expect(page.locator("#row-text")).to_have_text(shown)
        page.wait_for_timeout(150)  # A timer left behind would tick.
        expect(page.locator("#row-text")).to_have_text(shown)


def watch_rows(page):
    """Has the page note what it shows of the row, and what of that is spoken."""
    page.evaluate(
        """() => {
            const text = document.getElementById("row-text");
            [window.shown, window.spoken] = [[], []];
            new MutationObserver(() => {
                window.shown.push(text.textContent);
                if (text.ariaLive !== "off") window.spoken.push(text.textContent);
            }).observe(text, { childList: true });
        }"""
    )


def test_with_reduced_motion_nothing_is_played(open_page):
    page = open_page(**STILL)
    watch_rows(page)
    page.click("#next")
    expect(page.locator("#sentence")).to_have_text(READ)
    assert page.evaluate("shown") == ["row 8 of 8"]


def test_rows_are_spoken_at_rest_and_not_while_they_pass_by(open_page):
    page = open_page(**DESKTOP)
    watch_rows(page)
    page.click("#next")
    expect(page.locator("#sentence")).to_have_text(READ)
    page.focus("#row")
    page.keyboard.press("Home")
    assert page.evaluate("shown") == [f"row {n} of 8" for n in (*range(1, 9), 1)]
    assert page.evaluate("spoken") == ["row 8 of 8", "row 1 of 8"]
    page.click("#play")
    page.click("#clear")
    expect(page.locator("#row-text")).to_have_attribute("aria-live", "polite")


def test_a_digit_that_is_still_being_drawn_is_not_answered_for(open_page):
    page = open_page(**STILL)
    page.click("#next")
    expect(page.locator("#sentence")).to_have_text(READ)
    page.focus("#pad")
    page.keyboard.press("Space")
    expect(page.locator("#sentence")).to_have_text("")
    page.keyboard.press("Delete")
    page.mouse.move(*place(page, (0.5, 0.1)))
    page.mouse.down()
    page.mouse.move(*place(page, (0.5, 0.9)))
    expect(page.locator("#digit")).to_have_text("1")
    expect(page.locator("#sentence")).to_have_text("")


def test_rows_and_layers_are_looked_at_one_by_one(open_page):
    page = open_page(**DESKTOP)
    page.click("#next")
    expect(page.locator("#sentence")).to_have_text(READ)
    upper = page.locator("#c").evaluate("c => c.toDataURL()")
    page.click("text=Layer 1")
    expect(page.locator("#layers [aria-pressed=true]")).to_have_text("Layer 1")
    assert page.locator("#c").evaluate("c => c.toDataURL()") != upper
    whole = page.locator("#bars").inner_text()
    page.focus("#row")
    page.keyboard.press("Home")
    expect(page.locator("#row-text")).to_have_text("row 1 of 8")
    assert page.locator("#bars").inner_text() != whole
    page.keyboard.press("End")
    expect(page.locator("#row-text")).to_have_text("row 8 of 8")
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
    maps = "#image, #hardest canvas"
    light_maps = [m.evaluate(brightness) for m in page.locator(maps).all()]
    page.emulate_media(color_scheme="dark")
    dark = page.locator("#pad").evaluate(brightness)
    assert light > 200 > 120 > dark  # A quarter of the bytes are the opacity, 255.
    dark_maps = [m.evaluate(brightness) for m in page.locator(maps).all()]
    assert all(np.not_equal(light_maps, dark_maps))
    page.click("#clear")
    draw(page, zero())
    expect(page.locator("#sentence")).to_have_text(READ)
    # What the server is sent has no theme.
    assert page.locator("#bars").inner_text() == answer


def test_high_contrast_leaves_what_only_colours_tell(open_page):
    page = open_page(**STILL, forced_colors="active")
    page.click("#next")
    expect(page.locator("#sentence")).to_have_text(READ)
    page.fill("#row", "5")

    def background(of):
        of = page.locator(of).first
        return of.evaluate("element => getComputedStyle(element).backgroundColor")

    for of in ("#bars i", ".line", "#layers [aria-pressed=true]"):
        assert background(of) != background(".card"), of
    for of in (".scale.gate", ".scale.cell"):
        expect(page.locator(of)).to_have_css("background-image", re.compile("gradient"))


def test_maps_of_rows_are_as_wide_as_there_is_room(open_page):
    page = open_page()
    for width in (641, 820, 1000):
        page.set_viewport_size({"width": width, "height": 1100})
        strips, room = (
            page.locator(f".rows .{part}").bounding_box()["width"]
            for part in ("strips", "scrub")
        )
        assert strips == min(room, 640), width


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
    expect(page.locator("#picture")).to_have_value("")  # May be chosen again.
    page.locator("#picture").dispatch_event("change")  # Without a file.
    page.wait_for_timeout(200)
    expect(page.get_by_role("alert")).to_be_hidden()


@pytest.mark.parametrize("key", ["Delete", "Backspace"])
def test_what_empties_the_sheet_ends_the_stroke_under_way(open_page, key):
    page = open_page(**DESKTOP)
    page.focus("#pad")
    page.mouse.move(*place(page, (0.3, 0.3)))
    page.mouse.down()
    page.mouse.move(*place(page, (0.4, 0.4)))
    page.keyboard.press(key)
    page.mouse.move(*place(page, (0.6, 0.6)))  # An error would fail the test.
    page.mouse.up()
    expect(page.locator("#sentence")).to_have_text("Draw a digit from 0 to 9.")
    expect(page.locator("#digit")).to_have_text("–")


def test_the_keys_pen_stays_up_during_a_stroke_of_the_mouse(open_page):
    page = open_page(**STILL)
    page.focus("#pad")
    page.mouse.move(*place(page, (0.2, 0.2)))
    page.mouse.down()
    page.mouse.move(*place(page, (0.4, 0.2)))
    page.keyboard.press("Space")
    page.mouse.move(*place(page, (0.8, 0.2)))
    page.mouse.up()
    expect(page.locator("#sentence")).to_have_text(READ)
    expect(page.locator("#pen")).to_have_text("")
    assert is_ink(page, (0.6, 0.2))
    assert not is_ink(page, (0.5, 0.5))  # Where the keys' pen is.


def test_who_leaves_the_sheet_has_finished_a_stroke_of_the_keys(open_page):
    page = open_page(**STILL)
    page.focus("#pad")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    expect(page.locator("#pen")).to_have_text("Pen up")
    expect(page.locator("#sentence")).to_have_text(READ)


@pytest.mark.parametrize("other", ["#next", "#pad"])
def test_a_test_digit_or_the_mouse_lifts_the_keys_pen(open_page, other):
    page = open_page(**STILL)
    page.focus("#pad")
    page.keyboard.press("Space")
    expect(page.locator("#digit")).to_have_text(re.compile(r"\d"))
    page.click(other)
    expect(page.locator("#sentence")).to_have_text(READ)
    expect(page.locator("#pen")).to_have_text("Pen up")
    page.focus("#pad")
    page.keyboard.press("ArrowDown")  # An error would fail the test.


def test_of_two_test_digits_the_one_asked_for_last_is_shown(open_page):
    page = open_page(**STILL)
    held = hold(page, "test/1")
    page.click("#next")
    page.click("#next")
    expect(page.locator("#sentence")).to_contain_text("Test digit 2:")
    with page.expect_response("**/api/test/1"):
        held[0].continue_()
    page.wait_for_timeout(200)
    expect(page.locator("#sentence")).to_contain_text("Test digit 2:")
    expect(page.locator("#row-text")).to_have_text("row 8 of 8")


def test_what_went_wrong_before_the_sheet_was_emptied_is_not_said(open_page):
    page = open_page(**STILL)
    held = hold(page, "test/1")
    with page.expect_request("**/api/test/1"):
        page.click("#next")
    page.click("#clear")
    with page.expect_event("requestfailed"):
        held[0].abort()
    page.wait_for_timeout(200)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_one_drawing_at_a_time_is_sent_and_then_the_newest(open_page):
    page = open_page(**STILL)
    held = hold(page, "read")
    with page.expect_request("**/api/read"):
        draw(page, zero())
    page.wait_for_timeout(200)
    expect(page.locator("#digit")).to_have_text("–")
    held[0].continue_()
    expect(page.locator("#sentence")).to_have_text(READ)
    expect(page.locator("#digit")).to_have_text("0")


def test_the_sheet_is_emptied_though_a_drawing_is_still_being_read(open_page):
    page = open_page(**STILL)
    page.click("#next")
    expect(page.locator("#sentence")).to_have_text(READ)
    held = hold(page, "read")
    with page.expect_request("**/api/read"):
        draw(page, zero())
    page.click("#clear")
    assert_empty(page)
    with page.expect_response("**/api/read"):
        held[0].continue_()
    page.wait_for_timeout(200)
    assert_empty(page)
    draw(page, zero())
    expect(page.locator("#digit")).to_have_text("0")


def test_a_drawing_that_waits_is_forgotten_for_a_test_digit(open_page):
    page = open_page(**STILL)
    held = hold(page, "read")
    with page.expect_request("**/api/read"):
        draw(page, zero())
    page.click("#next")
    expect(page.locator("#sentence")).to_contain_text("Test digit 1:")
    with page.expect_response("**/api/read"):
        held[0].continue_()
    page.wait_for_timeout(200)
    expect(page.locator("#sentence")).to_contain_text("Test digit 1:")


def test_a_test_digit_is_shown_though_a_drawing_is_not_sent_yet(open_page):
    page = open_page(**STILL)
    page.evaluate(
        """() => {
            const { toBlob } = HTMLCanvasElement.prototype;
            HTMLCanvasElement.prototype.toBlob = function (...rest) {
                setTimeout(() => toBlob.apply(this, rest), 300);
            };
        }"""
    )
    draw(page, zero())
    page.click("#next")
    page.wait_for_timeout(500)
    expect(page.locator("#sentence")).to_contain_text("Test digit 1:")


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
    page.click("#clear")
    expect(page.get_by_role("alert")).to_be_hidden()


@pytest.mark.parametrize("path", ["model", "hardest"])
def test_what_the_server_can_not_say_is_said(open_page, path):
    page = open_page(**STILL)
    answer = {"status": 500, "json": {"error": "out of order"}}
    page.route(f"**/api/{path}", lambda route: route.fulfill(**answer))
    page.reload()
    expect(page.get_by_role("alert")).to_have_text("out of order")


@pytest.mark.parametrize("status", [502, 200])
def test_an_answer_that_is_not_the_servers_own_is_said(open_page, status):
    page = open_page(**STILL)
    proxy = {"status": status, "body": "<html>Bad gateway</html>"}
    page.route("**/api/test/1", lambda route: route.fulfill(**proxy))
    page.click("#next")
    expect(page.get_by_role("alert")).to_have_text(
        "The server’s answer was not understood: expected JSON, got something else "
        f"with status {status}."
    )


def test_without_a_model_there_is_nothing_to_press(open_page):
    page = open_page(**STILL)
    page.route("**/api/model", lambda route: route.abort())
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    for control in page.locator("button, input").all():
        expect(control).to_be_disabled()
    expect(page.locator("#pad")).to_have_attribute("aria-disabled", "true")


def test_a_bidirectional_model_without_test_digits(open_page, url):
    page = open_page(**STILL)
    about = page.request.get(f"{url}api/model").json()
    about |= {"embedded": False, "layers": 1, "directions": 2, "epoch": 1}
    about |= {"tests": 0, "testsMissing": "no network"}
    page.route("**/api/model", lambda route: route.fulfill(json=about))
    page.reload()
    expect(page.locator("#model")).to_have_text(
        "1 bidirectional layer of 128 units, trained on MNIST for 1 epoch"
    )
    expect(page.locator("#layers button")).to_have_text(
        ["Layer 1, down", "Layer 1, up"]
    )
    expect(page.locator("#missing")).to_have_text("No test digits here: no network.")
    for control in page.locator("#pick > *:not(label)").all():
        expect(control).to_be_disabled()


def test_what_is_seen_is_also_said(open_page):
    page = open_page(**STILL)
    for control in ("#play", "#row"):  # There is nothing to play.
        expect(page.locator(control)).to_be_disabled()
    for role, name in {
        "application": "Drawing area",
        "slider": "Rows read",
        "spinbutton": "Number of the test digit",
        "list": "Probability of each digit",
        "figure": "probabilities after each row",
    }.items():
        expect(page.get_by_role(role, name=name)).to_have_count(1)
    for button in page.locator("#hardest button").all():
        assert button.text_content() in button.get_attribute("aria-label")
    expect(page.locator("#sentence")).to_have_attribute("aria-live", "polite")
    expect(page.locator("#pen")).to_have_role("status")
    page.keyboard.press("Tab")
    expect(page.locator("#pad")).not_to_have_css("outline-style", "none")
