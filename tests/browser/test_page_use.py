"""How the page is used: pointing, reasons, heatmaps, other ways in, errors, keys, and the classifier."""

import io

import httpx
import numpy as np
import pytest
from browsing import (
    API_KEY,
    MAX_PIXELS,
    PIXELS,
    PROMPTS,
    answer,
    ask,
    canvas,
    masks,
    png,
    saved_json,
    upload,
)
from PIL import Image
from playwright.sync_api import BrowserContext, Page, Route, expect
from tiny_checkpoint import CLASS_NAMES


def alert(page: Page, text: str) -> None:
    expect(page.get_by_role("alert")).to_contain_text(text)


def test_pointing_at_an_object_and_focusing_it_show_its_label(page: Page, url: str) -> None:
    upload(page, png())
    ask(page, *PROMPTS)
    truth = answer(url)
    star, score = masks(truth)[2], truth["results"][1]["instances"][0]
    label = f"black star #3score {score['score']:.2f}, presence {score['presence']:.2f}"
    readout = page.locator("#readout")
    expect(readout).to_be_hidden()

    rows, columns = np.nonzero(star)
    shown = page.locator("#canvas").bounding_box()
    assert shown is not None
    scale = shown["width"] / star.shape[1]
    page.locator("#canvas").hover(position={"x": columns.mean() * scale, "y": rows.mean() * scale})
    expect(readout).to_have_text(label)
    page.locator("#canvas").hover(position={"x": 30, "y": 30})
    expect(readout).to_be_hidden()

    plain = canvas(page)
    page.get_by_role("button", name="black star, object 3: score").focus()
    expect(readout).to_have_text(label)
    assert (canvas(page) != plain).any()


def test_why_gives_the_threshold_the_source_and_the_candidates(page: Page, url: str) -> None:
    upload(page, png())
    ask(page, *PROMPTS)
    truth = answer(url)["results"][1]
    card = page.locator(".card").nth(1)
    card.get_by_text("Why", exact=True).click()
    expect(card.locator("dl")).to_contain_text(f"{truth['threshold']:.2f} chosen automatically")
    [instance] = truth["instances"]
    expect(card.locator("details")).to_contain_text(instance["why"][1:])
    rows = card.locator("tbody tr")
    assert rows.count() == len(instance["candidates"]) > 1
    for row, candidate in zip(rows.all(), instance["candidates"], strict=True):
        numbers = [candidate[name] for name in ("agreement", "predicted_iou", "stability", "leakage", "score")]
        assert row.locator("td").all_inner_texts() == [f"{number:.2f}" for number in numbers]


def test_outlining_again_asks_with_the_sliders_threshold(page: Page) -> None:
    upload(page, png())
    ask(page, *PROMPTS)
    card = page.locator(".card").first
    card.get_by_label("Threshold").fill("0.7")
    card.get_by_role("button", name="Outline again with it").click()
    expect(page.get_by_text("for ring at a threshold of 0.70")).to_be_visible()
    assert saved_json(page)["results"][0]["threshold"] == pytest.approx(0.7)
    card.get_by_text("Why", exact=True).click()
    expect(card.locator("dl")).to_contain_text("0.70 set by hand")


def test_the_heatmap_of_each_prompt_can_be_seen(page: Page) -> None:
    upload(page, png())
    bare = canvas(page)
    ask(page, *PROMPTS)
    masked = canvas(page)
    page.get_by_role("radio", name="Heatmap").check()
    rings = canvas(page)
    page.locator("#heat-of").select_option("black star")
    star = canvas(page)
    assert (rings != star).any(-1).mean() > 0.02
    page.locator("#canvas").hover(position={"x": 30, "y": 30})
    expect(page.locator("#readout")).to_have_text("heat 0.00")
    page.get_by_role("radio", name="Picture").check()
    np.testing.assert_array_equal(canvas(page), bare)
    page.get_by_role("radio", name="Masks").check()
    np.testing.assert_array_equal(canvas(page), masked)


def test_a_sample_brings_its_picture_and_prompts(page: Page, url: str) -> None:
    samples = httpx.get(f"{url}/samples").json()
    assert page.locator("#sample-list button").count() == len(samples) >= 3
    for sample in samples[:2]:
        page.get_by_role("button", name=f"Sample picture {sample['name']}").click()
        expect(page.locator(".chip-text")).to_have_text(sample["prompts"])
        expect(page.locator(".card")).to_have_count(0)  # answers to the picture before are gone
        page.get_by_role("button", name="Segment", exact=True).click()
        verdicts = page.locator(".verdict")
        expect(verdicts).to_have_count(len(sample["prompts"]))
        assert verdicts.all_inner_texts()[-1] == "not found"
        assert verdicts.first.inner_text() != "not found"


def test_a_picture_can_be_dropped_and_pasted(page: Page) -> None:
    canvas_shown = page.locator("#canvas")
    for kind, name in (("drop", "dropped.png"), ("paste", "pasted.png")):
        page.evaluate(
            """([kind, name, bytes]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
                const event = kind === "drop"
                    ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
                    : new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
                document.body.dispatchEvent(event);
            }""",
            [kind, name, list(png(PIXELS[:60, :90]))],
        )
        expect(canvas_shown).to_have_attribute("aria-label", f"The picture {name}")


def test_a_turned_photograph_is_shown_and_answered_upright(page: Page, url: str) -> None:
    lying = Image.fromarray(np.rot90(PIXELS).copy())  # EXIF's 6 turns it clockwise again
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    lying.save(file, "JPEG", quality=95, exif=exif)
    upload(page, file.getvalue(), "turned.jpg")
    shown = canvas(page)
    assert shown.shape[1] > shown.shape[0]
    ask(page, "black star")
    content = saved_json(page)
    assert (content["image"]["width"], content["image"]["height"]) == (640, 480)
    [mask] = masks(content)
    [expected] = masks(answer(url, ("black star",)))
    assert (mask & expected).sum() / (mask | expected).sum() > 0.9


def test_a_link_is_shown_by_the_browser_and_judged_by_the_service(page: Page, url: str) -> None:
    link = page.get_by_label("Link to a picture")
    link.fill(f"{url}/samples/rings.png")
    link.press("Enter")
    expect(page.locator("#canvas")).to_have_attribute("aria-label", "The picture rings.png")
    assert canvas(page).std() > 10  # a picture, not a blank
    page.get_by_label("What should be found?").fill("ring")
    page.get_by_role("button", name="Segment", exact=True).click()
    alert(page, "may not name port")  # nor would this machine's address be followed: the service refuses it

    link.fill("not a link")
    page.get_by_role("button", name="Use link").click()
    alert(page, "A link begins with https://")


def test_mistakes_are_answered_with_sentences(page: Page) -> None:
    segment = page.get_by_role("button", name="Segment", exact=True)
    segment.click()
    alert(page, "Choose a picture first.")
    upload(page, b"no picture", "notes.png")
    alert(page, "notes.png is not a picture that can be read.")
    upload(page, png())
    expect(page.get_by_role("alert")).to_be_hidden()
    segment.click()
    alert(page, "Type at least one prompt")
    page.get_by_label("What should be found?").fill("x" * 501)
    segment.click()
    alert(page, "500")
    page.get_by_role("button", name="Remove xxx").click()
    page.get_by_label("What should be found?").fill("ring")
    upload(page, png(np.zeros((1001, MAX_PIXELS // 1000, 3), np.uint8)))
    segment.click()
    alert(page, "1,000,000")
    # And after all that it still works.
    upload(page, png())
    segment.click()
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.locator(".verdict")).to_have_text("2 found")


def test_a_service_that_is_gone_is_a_sentence_too(page: Page, context: BrowserContext) -> None:
    upload(page, png())
    page.get_by_label("What should be found?").fill("ring")
    context.set_offline(True)
    segment = page.get_by_role("button", name="Segment", exact=True)
    segment.click()
    alert(page, "The service cannot be reached.")
    context.set_offline(False)
    segment.click()
    expect(page.locator(".verdict")).to_have_text("2 found")


def test_an_answer_that_breaks_off_is_a_sentence_and_one_given_up_is_none(page: Page) -> None:
    for is_given_up, name in ((False, "Error"), (True, "AbortError")):
        told = page.evaluate(
            """async (isGivenUp) => {
                const { classify } = await import("/web/api.js");
                const { fetch } = window;
                const control = new AbortController();
                const pull = (to) => {
                    if (isGivenUp) control.abort();
                    to.error(new TypeError());
                };
                window.fetch = async () => new Response(new ReadableStream({ pull }));
                try { await classify({ url: "http://example.org" }, 5, control.signal); }
                catch ({ name, message }) { return [name, message]; }
                finally { window.fetch = fetch; }
            }""",
            is_given_up,
        )
        assert told[0] == name
        assert is_given_up or told[1] == "The answer broke off. Try again."


def test_what_was_chosen_last_is_taken_not_what_is_there_last(page: Page) -> None:
    held: list[Route] = []
    page.route("**/samples/rings.png", lambda route: held.append(route))
    page.get_by_role("button", name="Sample picture rings").click()
    upload(page, png())
    picture = page.locator("#canvas")
    expect(picture).to_have_attribute("aria-label", "The picture scene.png")
    expect(page.locator("#working")).to_be_visible()
    with page.expect_response("**/samples/rings.png"):
        held[0].continue_()
    expect(page.locator("#working")).to_be_hidden()
    expect(picture).to_have_attribute("aria-label", "The picture scene.png")
    expect(page.locator(".chip-text")).to_have_count(0)


def test_what_the_models_know_is_told_once_the_service_answers(context: BrowserContext, url: str) -> None:
    page = context.new_page()
    page.route("**/v1/models", lambda route: route.fulfill(status=503, body="restarting"))
    page.goto(url)
    alert(page, "503")
    page.unroute("**/v1/models")
    upload(page, png())
    expect(page.locator("#notice")).to_be_hidden()
    ask(page, "ring")
    expect(page.locator("#notice")).to_be_visible()


def test_a_link_need_not_be_utf_8(page: Page) -> None:
    name = page.evaluate(
        """async () => (await (await import("/web/picture.js")).fromLink("http://127.0.0.1:1/caf%E9.jpg")).name"""
    )
    assert name == "caf%E9.jpg"


def test_words_are_shown_as_words(page: Page) -> None:
    upload(page, png())
    evil = '<img src="x" onerror="document.title = 1"><b>ring</b>'
    ask(page, evil)
    expect(page.locator(".prompt-text")).to_have_text(evil)
    assert page.locator(".panel img, .panel b").count() == 0


def test_prompts_come_and_go(page: Page) -> None:
    field = page.get_by_label("What should be found?")
    chips = page.locator(".chip-text")
    field.press_sequentially("red  circle,")
    field.fill("star, heart,star")
    expect(chips).to_have_text(["red circle", "star", "heart"])
    page.get_by_role("button", name="Remove star").click()
    expect(page.get_by_role("button", name="Remove heart")).to_be_focused()
    field.press("Backspace")
    expect(chips).to_have_text(["red circle"])
    field.fill(", ".join(f"word {number}" for number in range(40)))
    field.press("Enter")
    expect(chips).to_have_count(16)
    expect(page.get_by_text("at most 16 prompts")).to_be_visible()
    expect(field).to_have_value(",".join(f"word {number}" for number in range(15, 40)))


def test_the_classifier_answers_with_bars(page: Page, url: str) -> None:
    page.get_by_role("tab", name="Classify").click()
    for name in CLASS_NAMES:
        expect(page.locator("#classes")).to_contain_text(name)
    upload(page, png())
    page.get_by_role("button", name="Classify", exact=True).click()
    bars = page.locator("#bars li")
    expect(bars).to_have_count(len(CLASS_NAMES))
    response = httpx.post(f"{url}/v1/classify", files={"image": png()}, timeout=60)
    predictions = response.json()["predictions"]
    assert bars.locator(".label").all_inner_texts() == [one["label"] for one in predictions]
    widths = bars.evaluate_all(
        "(bars) => bars.map((bar) => { const [whole, part] = bar.querySelectorAll('.bar, .bar > span');"
        "return part.getBoundingClientRect().width / whole.getBoundingClientRect().width; })"
    )
    assert widths == pytest.approx([one["score"] for one in predictions], abs=0.01)


def test_a_key_is_asked_for_only_where_it_is_needed(page: Page, url: str) -> None:
    key = page.get_by_label("API key")
    expect(key).to_be_hidden()
    page.goto(f"{url}/locked/")
    expect(key).to_be_focused()
    alert(page, "key")
    key.fill("ключ")  # no header can carry it
    key.press("Enter")
    alert(page, "An API key has no spaces")
    key.fill("a-wrong-one")
    key.press("Enter")
    expect(page.locator("#notice")).to_be_hidden()
    alert(page, "key")
    key.fill(API_KEY)
    key.press("Enter")
    expect(page.locator("#notice")).to_be_visible()
    expect(key).to_be_hidden()
    upload(page, png())
    ask(page, "ring")
    expect(page.locator(".verdict")).to_have_text("2 found")
