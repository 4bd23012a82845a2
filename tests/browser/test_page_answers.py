"""Pictures, prompts and answers on the page, and the files it saves."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from browsing import PIXELS, PROMPTS, SIZE, answer, ask, canvas, masks, png, saved, saved_json, saved_pixels, upload
from PIL import Image
from playwright.sync_api import Page, Request, expect
from pycocotools import mask as coco
from scipy import ndimage

from core.segment.overlay import PALETTE, draw_overlay
from core.segment.results import CroppedMask, Instance, PromptResult


def test_answers_are_drawn_and_told(page: Page, url: str) -> None:
    upload(page, png())
    before = canvas(page)
    ask(page, *PROMPTS)
    after = canvas(page)

    truth = answer(url)
    counts = [len(result["instances"]) for result in truth["results"]]
    assert counts == [2, 1, 0]
    cards = page.locator(".card")
    for card, prompt, verdict in zip(cards.all(), PROMPTS, ("2 found", "1 found", "not found"), strict=True):
        expect(card.get_by_role("heading", level=3)).to_have_text(f"{prompt}{verdict}")
    expect(cards.nth(2)).to_contain_text("heatmap peaks at")
    expect(page.get_by_role("status").filter(has_text="3 objects for 2 of 3 prompts")).to_be_visible()

    # Each object tinted in its prompt's colour, all else as it was.
    scale = after.shape[1] / SIZE[1]
    anything = np.zeros(SIZE, bool)
    for mask, colour in zip(masks(truth), (PALETTE[0], PALETTE[0], PALETTE[1]), strict=True):
        anything |= mask
        y, x = np.unravel_index(np.asarray(ndimage.distance_transform_edt(mask)).argmax(), SIZE)
        place = int((y + 0.5) * scale), int((x + 0.5) * scale)
        expected = 0.55 * before[place] + 0.45 * np.array(colour)
        assert np.abs(after[place] - expected).max() < 6
    far = np.asarray(ndimage.distance_transform_edt(~anything)) > 5
    same = np.array(Image.fromarray(far).resize(after.shape[1::-1], Image.Resampling.NEAREST))
    assert same.mean() > 0.5
    np.testing.assert_array_equal(after[same], before[same])


def test_the_saved_overlay_is_what_core_draws(page: Page, url: str) -> None:
    upload(page, png())
    ask(page, *PROMPTS)
    overlay = saved_pixels(page, "Overlay", "RGBA")
    results = [
        PromptResult(
            prompt=result["prompt"],
            found=result["found"],
            presence=1.0,
            reason=None,
            threshold=0.5,
            heatmap=np.zeros((1, 1), np.float32),
            instances=tuple(instance(mask) for mask in masks({"results": [result]})),
        )
        for result in answer(url)["results"]
    ]
    assert sum(len(result.instances) for result in results) == 3
    np.testing.assert_allclose(overlay[..., :3].astype(int), draw_overlay(PIXELS, results, labels=False), atol=2)


def instance(mask: np.ndarray) -> Instance:
    return Instance(
        cropped=CroppedMask.from_full(mask), score=1, quality=1, presence=1, evidence=(), source="sam2", why="test"
    )


def test_saved_masks_labels_and_json_hold_the_services_answer(page: Page, url: str) -> None:
    upload(page, png())
    ask(page, *PROMPTS)
    truth = answer(url)
    expected = masks(truth)

    content = saved_json(page)
    for one, other in zip(content["results"], truth["results"], strict=True):
        assert one == {name: value for name, value in other.items() if name != "heatmap"}
    assert content["image"] == truth["image"]

    labels = saved_pixels(page, "Label map", "P")
    for number, mask in enumerate(expected, 1):
        np.testing.assert_array_equal(labels == number, mask)
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    coloured = np.array(Image.open(io.BytesIO(saved(page, "Label map"))).convert("RGB"))
    assert {tuple(colour) for colour in coloured[labels == 3]} == {PALETTE[1]}

    name = "Save the mask of black star, object 3"
    np.testing.assert_array_equal(saved_pixels(page, name, "L"), expected[2].astype(np.uint8) * 255)


def test_run_lengths_are_read_as_coco_reads_them(page: Page) -> None:
    rng = np.random.default_rng(0)
    some = [rng.random((h, w)) < share for h, w, share in [(1, 1, 0.5), (5, 3, 0.2), (3, 70, 0.9), (64, 48, 0.5)]]
    blob = np.zeros((3000, 400), bool)  # long runs: numbers of several characters, and negative differences
    blob[10:2990, 100:300] = True
    blob[200:2900, 150:170] = False
    column, corner = np.zeros((7, 5), bool), np.zeros((7, 5), bool)
    column[:, 2], corner[6, 4] = True, True
    for mask in [*some, blob, column, corner, np.zeros((4, 6), bool), np.ones((4, 6), bool)]:
        encoded: Any = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
        read = page.evaluate(
            """async (mask) => {
                const { decode } = await import("/web/rle.js");
                const { bits, ...box } = decode(mask);
                let text = "";
                for (const bit of bits) text += bit;
                return { ...box, text };
            }""",
            {"size": list(mask.shape), "counts": encoded["counts"].decode()},
        )
        tight = CroppedMask.from_full(mask)
        height, width = tight.bits.shape
        assert (read["width"], read["height"]) == (width, height)
        if mask.any():
            assert (read["left"], read["top"]) == (tight.left, tight.top)
        assert read["text"] == "".join(map(str, tight.bits.astype(int).ravel()))


def test_run_lengths_that_do_not_fit_are_refused(page: Page) -> None:
    for counts in ("", "5", "T", "o0", "@"):  # nothing, too little, cut short, too much, negative
        refused = page.evaluate(
            """async (counts) => {
                const { decode } = await import("/web/rle.js");
                try { decode({ size: [4, 4], counts }); return null; } catch (error) { return error.name; }
            }""",
            counts,
        )
        assert refused == "RangeError", counts


def test_masks_of_large_pictures_are_drawn_no_larger_than_a_screen(page: Page) -> None:
    drawn = page.evaluate(
        """async () => {
            const { drawMask, drawMaskForScreen } = await import("/web/marks.js");
            const picture = { width: 8192, height: 1000 };
            const bits = Uint8Array.from({ length: 4096 * 400 }, (_, bit) => (bit % 4096 < 1024 ? 1 : 0));
            const mask = { left: 0, top: 0, width: 4096, height: 400, bits };
            return [drawMask, drawMaskForScreen].map((draw) => {
                const canvas = draw(mask, [10, 20, 30], picture);
                const { data } = canvas.getContext("2d").getImageData(0, canvas.height / 2, canvas.width, 1);
                const covered = data.filter((value, index) => index % 4 === 3 && value > 0).length;
                return [canvas.width, canvas.height, covered];
            });
        }"""
    )
    assert drawn == [[4096, 400, 1024], [1024, 100, 256]]


def test_colours_are_those_of_core(page: Page) -> None:
    colours = page.evaluate("async () => (await import('/web/palette.js')).PALETTE")
    assert colours == [list(colour) for colour in PALETTE]


def test_the_slider_previews_without_a_request(page: Page, url: str) -> None:
    upload(page, png())
    bare = canvas(page)
    ask(page, *PROMPTS)
    answered = canvas(page)
    requests: list[Request] = []
    page.on("request", lambda request: requests.append(request))
    card = page.locator(".card").first
    slider = card.get_by_label("Threshold")

    truth = answer(url)["results"][0]
    heatmap = Image.open(io.BytesIO(base64.b64decode(truth["heatmap"]["data"]))).convert("F")
    stretched = np.array(heatmap.resize((SIZE[1], SIZE[0]), Image.Resampling.BILINEAR)) / 255
    previews = []
    for threshold in (0.1, 0.6, 0.95):
        slider.fill(str(threshold))
        covered = 100 * float((stretched >= threshold).mean())
        text = card.get_by_text("of the picture").inner_text()
        assert float(text.split("covers ")[1].split("%")[0].removeprefix("less than ")) == pytest.approx(
            covered, abs=0.15
        )
        previews.append(canvas(page))
    # The lower the threshold, the more is coloured.
    coloured = [int((preview != bare).any(-1).sum()) for preview in previews]
    assert coloured[0] > coloured[1] > coloured[2] > 0

    card.get_by_role("button", name="Back to automatic").click()
    np.testing.assert_array_equal(canvas(page), answered)
    expect(slider).to_be_focused()
    assert float(slider.input_value()) == pytest.approx(truth["threshold"], abs=0.006)
    assert not requests
