"""The page's files over HTTP, without a browser or models."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import httpx
from fastapi import FastAPI

from serve import problems
from serve.page import page_routes

ROOT = Path(__file__).resolve().parents[2]
WEB = ROOT / "serve" / "web"


def get(*paths: str, samples: bool = True, headers: dict[str, str] | None = None) -> list[httpx.Response]:
    app = FastAPI()
    problems.install(app)
    app.include_router(page_routes(samples))

    async def send() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://page", headers=headers) as client:
            return [await client.get(path) for path in paths]

    return asyncio.run(send())


def test_every_file_is_served_with_its_type_and_strict_headers() -> None:
    types = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    paths = [f"/web/{file.name}" for file in WEB.iterdir()]
    assert len(paths) > 10
    for path, response in zip(["/", *paths], get("/", *paths), strict=True):
        assert response.status_code == 200, path
        assert response.headers["content-type"].startswith(types[Path(path).suffix or ".html"])
        policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"


def test_a_file_that_the_browser_has_is_not_sent_again() -> None:
    [first] = get("/web/app.js")
    [again] = get("/web/app.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    [other] = get("/web/api.js", headers={"If-None-Match": first.headers["etag"]})
    assert other.status_code == 200


def test_nothing_else_is_served() -> None:
    for response in get("/web/page.py", "/web/..%2fpage.py", "/web/%2e%2e/page.py", "/web/", "/samples/x.png"):
        assert response.status_code == 404, response.url
        assert response.headers["content-type"] == "application/problem+json"


def test_samples_are_offered_with_demo_weights_only() -> None:
    [listed] = get("/samples")
    names = [sample["name"] for sample in listed.json()]
    assert len(names) >= 3
    [picture] = get(f"/samples/{names[0]}.png")
    assert picture.content.startswith(b"\x89PNG")
    none, gone = get("/samples", f"/samples/{names[0]}.png", samples=False)
    assert none.json() == []
    assert gone.status_code == 404


def test_the_page_needs_nothing_from_elsewhere() -> None:
    for file in WEB.iterdir():
        text = file.read_text()
        assert not re.search(r"(src|href|from|import|url)\W{1,3}(https?:)?//", text), file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text), file.name
    page = (WEB / "index.html").read_text()
    assert not re.search(r"\sstyle=|\son\w+=|<style|<script(?! type=\"module\" src=)", page)
    used = set(re.findall(r"web/([\w.]+)", page))
    used |= {name for file in WEB.glob("*.js") for name in re.findall(r'from "\./([\w.]+)"', file.read_text())}
    assert used | {"index.html"} == {file.name for file in WEB.iterdir()}


def test_serving_the_page_needs_no_torch() -> None:
    code = "import sys, serve.page; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
