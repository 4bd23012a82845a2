"""What the service is measured against: FastAPI and uvicorn, and the documented use of both libraries behind a lock.

    uvicorn benchmarks.plain_app:app --port 8001

The models are those of the folder that the variable `PATCHWORK_FULL_SIZE` names (see `benchmarks.full_size`), else
`demo`'s. SAM 2's predictor keeps the picture it was given, so requests must take turns.
"""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Form, UploadFile
from PIL import Image

from benchmarks.full_size import chosen
from benchmarks.prototype import Prototype
from core.segment.results import CroppedMask

_loaded: dict[str, Prototype] = {}
_one_at_a_time = threading.Lock()


@asynccontextmanager
async def _load(app: FastAPI) -> AsyncIterator[None]:
    _loaded["models"] = Prototype(chosen()[0])
    yield


app = FastAPI(lifespan=_load)


@app.get("/readyz")
def ready() -> bool:
    """Answered once the models are loaded."""
    return True


@app.post("/v1/segment")
def segment(image: UploadFile, prompts: Annotated[list[str], Form()]) -> dict[str, Any]:
    """Masks of the prompts, in the order given."""
    pixels = np.array(Image.open(image.file).convert("RGB"))
    results = []
    for prompt in prompts:
        with _one_at_a_time:
            answer = _loaded["models"].segment(pixels, prompt)
        mask = CroppedMask.from_full(answer.mask)
        results.append({"prompt": prompt, "found": answer.found, "mask": mask.rle()})
    return {"results": results}
