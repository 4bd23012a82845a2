"""By keyboard alone, on a phone, in the dark, and for eyes that need contrast."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from browsing import PROMPTS, TIMEOUT_MS, ask, canvas, png, upload
from playwright.sync_api import Browser, Page, expect

FOCUS = """() => {
    const one = document.activeElement;
    const seen = one.matches(".unseen") ? one.labels[0] : one.matches("#prompt") ? one.closest(".field") : one;
    const { outlineStyle, outlineWidth } = getComputedStyle(one.name === "view" ? one.nextElementSibling : seen);
    const box = seen.getBoundingClientRect();
    return {
        name: one.ariaLabel ?? one.labels?.[0]?.textContent ?? (one.textContent || one.querySelector("img")?.alt),
        isMarked: outlineStyle === "solid" && parseFloat(outlineWidth) >= 2,
        isInSight: box.bottom > 0 && box.top < innerHeight,
    };
}"""


def tab_to(page: Page, name: str, key: str = "Tab") -> None:
    """Press a key until the control of that name has the focus, which must be seen on every one on the way."""
    for _ in range(60):
        page.keyboard.press(key)
        focus = page.evaluate(FOCUS)
        assert focus["isMarked"] and focus["isInSight"], focus
        if focus["name"].strip().startswith(name):
            return
    pytest.fail(f"{name} was not reached")


def test_everything_can_be_done_by_keyboard(page: Page) -> None:
    press = page.keyboard.press
    tab_to(page, "Sample picture rings")
    press("Enter")
    expect(page.locator(".chip")).to_have_count(4)
    tab_to(page, "Remove purple heart")
    press("Enter")
    expect(page.locator(".chip")).to_have_count(3)
    tab_to(page, "What should be found?")
    page.keyboard.type("red star")
    press("Enter")
    press("Enter")
    expect(page.locator(".verdict")).to_have_text(["2 found", "1 found", "1 found", "1 found"])
    answered = canvas(page)

    tab_to(page, "ring, object 1: score")
    expect(page.locator("#readout")).to_contain_text("ring #1")
    tab_to(page, "Threshold")
    press("ArrowRight")
    press("ArrowRight")
    assert (canvas(page) != answered).any()
    tab_to(page, "Back to automatic")
    press("Enter")
    np.testing.assert_array_equal(canvas(page), answered)
    tab_to(page, "Why")
    press("Enter")
    expect(page.locator(".card table").first).to_be_visible()
    tab_to(page, "Masks that SAM 2 offered for ring #1")

    tab_to(page, "Masks", "Shift+Tab")
    press("ArrowRight")
    assert (canvas(page) != answered).any()
    tab_to(page, "Heatmap of")
    press("ArrowDown")
    tab_to(page, "Overlay")
    with page.expect_download():
        press("Enter")

    tab_to(page, "Segment", "Shift+Tab")
    tab_to(page, "Segment", "Shift+Tab")
    press("ArrowRight")
    expect(page.get_by_role("tab", name="Classify")).to_be_focused()
    tab_to(page, "Classify")
    press("Enter")
    expect(page.locator("#bars li")).to_have_count(4)


@pytest.mark.parametrize("width", [320, 360])
def test_a_phone_never_scrolls_sideways(browser: Browser, url: str, width: int) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 740}, has_touch=True, is_mobile=True, reduced_motion="reduce"
    )
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    page.goto(url)

    def widths() -> list[int]:
        return page.evaluate("[document.documentElement.scrollWidth, innerWidth]")

    page.get_by_role("button", name="Sample picture rings").wait_for()
    assert widths() == [width, width]
    upload(page, png())
    ask(page, *PROMPTS, "x" * 200)
    for summary in page.get_by_text("Why", exact=True).all():
        summary.tap()
    page.get_by_label("Threshold").first.fill("0.3")
    assert widths() == [width, width]
    # The picture stays in sight while its slider is moved.
    page.get_by_label("Threshold").nth(1).scroll_into_view_if_needed()
    expect(page.locator("#canvas")).to_be_in_viewport()
    page.get_by_role("radio", name="Heatmap").check()
    assert widths() == [width, width]
    page.get_by_role("tab", name="Classify").tap()
    page.get_by_role("button", name="Classify", exact=True).tap()
    page.locator("#bars li").first.wait_for()
    assert widths() == [width, width]
    context.close()


CONTRASTS = (Path(__file__).parent / "contrasts.js").read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast_in_light_and_dark(page: Page, scheme: Literal["light", "dark"]) -> None:
    page.emulate_media(color_scheme=scheme)
    upload(page, png())
    ask(page, *PROMPTS)
    page.get_by_label("Threshold").first.fill("0.3")
    for summary in page.get_by_text("Why", exact=True).all():
        summary.click()
    page.get_by_role("button", name="Use link").click()  # an error, too
    page.get_by_role("alert").wait_for()
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 100
    assert not [one for one in contrasts if one[0] < 4.5]
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 3 * 128) == (scheme == "dark")


def test_nothing_moves_for_those_who_do_not_want_it(page: Page) -> None:
    moving = "getComputedStyle(document.getElementById('working')).animationName"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(moving) == "none"
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(moving) == "sew"
