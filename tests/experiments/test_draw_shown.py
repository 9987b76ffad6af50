"""What the drawing page shows of what was read, and says of it."""

import base64
import re

import numpy as np
import pytest
from in_browser import DESKTOP, READ, STILL, assert_empty, draw, expect, painted, zero

from experiments.data import digits
from flax_lstm import load_classifier

pytestmark = pytest.mark.slow


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
    page.keyboard.press("End")
    expect(page.locator("#row-text")).to_have_text("row 8 of 8")
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
