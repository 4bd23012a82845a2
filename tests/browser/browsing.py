"""What is shown to the page, what is done on it, and what the service itself says."""

import base64
import io
import json
from typing import Any

import httpx
import numpy as np
from PIL import Image
from playwright.sync_api import Page
from pycocotools import mask as coco

from core.segment.scenes import generate_scene, render

API_KEY = "a-key-for-the-browser-tests"
# Small, so that pictures which are too large are quickly made.
MAX_PIXELS = 1_000_000
TIMEOUT_MS = 60_000  # of whatever is waited for: generous, as models and browser share the machine

SIZE = (480, 640)  # height and width
# A scene with two rings, a black star and a yellow square, and no heart.
PIXELS = render(generate_scene(10_000_082, aspect=SIZE[1] / SIZE[0]), SIZE[0])[0]
PROMPTS = ("ring", "black star", "purple heart")


def png(pixels: np.ndarray = PIXELS) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def upload(page: Page, data: bytes, name: str = "scene.png") -> None:
    page.get_by_label("Choose a file").set_input_files({"name": name, "mimeType": "image/png", "buffer": data})


def ask(page: Page, *prompts: str) -> None:
    """Type the prompts, press the button, and wait for the answer to all of them."""
    field = page.get_by_label("What should be found?")
    for prompt in prompts:
        field.fill(prompt)
        field.press("Enter")
    page.get_by_role("button", name="Segment", exact=True).click()
    page.locator(".card").nth(len(prompts) - 1).wait_for()


def answer(url: str, prompts: tuple[str, ...] = PROMPTS, **fields: Any) -> dict[str, Any]:
    """What the service says of the scene to anybody who asks."""
    form = {"prompts": list(prompts), "explain": "true", **fields}
    response = httpx.post(f"{url}/v1/segment", files={"image": png()}, data=form, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def masks(answer: dict[str, Any]) -> list[np.ndarray]:
    """Every object's mask, bool, read by COCO's own code."""
    instances = [instance for result in answer["results"] for instance in result["instances"]]
    return [coco.decode({**one["mask"], "counts": one["mask"]["counts"].encode()}) > 0 for one in instances]


def saved(page: Page, button: str) -> bytes:
    """The file that pressing a button saves."""
    with page.expect_download() as download:
        page.get_by_role("button", name=button, exact=True).click()
    return download.value.path().read_bytes()


def saved_pixels(page: Page, button: str, mode: str) -> np.ndarray:
    """The picture that pressing a button saves, which must be of that mode."""
    picture = Image.open(io.BytesIO(saved(page, button)))
    assert picture.format == "PNG" and picture.mode == mode
    return np.array(picture)


def saved_json(page: Page) -> dict[str, Any]:
    return json.loads(saved(page, "JSON"))


def canvas(page: Page) -> np.ndarray:
    """What the canvas shows, RGB, at the canvas's own size; waits for the picture, which takes a while to decode."""
    data = page.evaluate(
        """() => new Promise((done) => {
            const look = () => {
                const { width, height } = document.getElementById("canvas");
                const shown = document.getElementById("canvas").getContext("2d").getImageData(0, 0, width, height);
                const isDrawn = shown.data.some((value, index) => index % 4 === 3 && value > 0);
                if (isDrawn) done({ width, height, text: new Uint8Array(shown.data.buffer).toBase64() });
                else requestAnimationFrame(look);
            };
            requestAnimationFrame(() => requestAnimationFrame(look));
        })"""
    )
    pixels = np.frombuffer(base64.b64decode(data["text"]), np.uint8)
    return pixels.reshape(data["height"], data["width"], 4)[..., :3]
