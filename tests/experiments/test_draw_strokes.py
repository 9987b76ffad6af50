"""Drawing on the page's sheet: by mouse, keys and fingers."""

import re

import pytest
from in_browser import (
    DESKTOP,
    PHONE,
    READ,
    STILL,
    assert_empty,
    draw,
    expect,
    is_ink,
    painted,
    place,
    zero,
)

pytestmark = pytest.mark.slow


def touching(page):
    """Sends touches: their kind, and where all fingers are."""
    page.locator("#pad").scroll_into_view_if_needed()
    touch = page.context.new_cdp_session(page)

    def send(kind, *points):
        at = [dict(zip("xy", place(page, point), strict=True)) for point in points]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

    return send


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

    image = "document.getElementById('image').toDataURL()"
    zeros = page.evaluate(image)
    draw(page, [(0.1, 0.9), (0.9, 0.9)])
    page.wait_for_function(f"zeros => {image} !== zeros", arg=zeros)
    page.click("#undo")
    page.wait_for_function(f"zeros => {image} === zeros", arg=zeros)
    expect(page.locator("#sentence")).to_have_text(READ)
    expect(page.locator("#digit")).to_have_text("0")
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
