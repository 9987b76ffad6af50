"""The drawing page when answers are late, are errors or do not come."""

import pytest
from in_browser import DESKTOP, READ, STILL, assert_empty, draw, expect, place, zero
from PIL import Image

from experiments.data import digits

pytestmark = pytest.mark.slow


def hold(page, path):
    """Gets the next request for `path`, which waits to be continued or aborted."""
    held = []
    page.route(f"**/api/{path}", lambda route: held.append(route), times=1)
    return held


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


def answer_late(page, held, path):
    """Lets what was held be answered, and the page deal with the answer."""
    with page.expect_response(f"**/api/{path}"):
        held[0].continue_()
    page.wait_for_timeout(200)


def test_of_two_test_digits_the_one_asked_for_last_is_shown(open_page):
    page = open_page(**STILL)
    held = hold(page, "test/1")
    page.click("#next")
    page.click("#next")
    expect(page.locator("#sentence")).to_contain_text("Test digit 2:")
    answer_late(page, held, "test/1")
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
    answer_late(page, held, "read")
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
    answer_late(page, held, "read")
    expect(page.locator("#sentence")).to_contain_text("Test digit 1:")


def test_a_drawing_is_sent_though_the_browser_is_never_idle(open_page):
    page = open_page(**STILL)
    page.evaluate("HTMLCanvasElement.prototype.toBlob = () => {}")  # As if it waited.
    draw(page, zero())
    expect(page.locator("#digit")).to_have_text("0")
    expect(page.locator("#sentence")).to_have_text(READ)


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
