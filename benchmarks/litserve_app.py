"""What the service is measured against: the same pipeline behind LitServe, with its batching.

python -m benchmarks.litserve_app --port 8002
"""

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import litserve
import numpy as np
import tyro
from PIL import Image
from starlette.requests import Request

from benchmarks.full_size import chosen
from benchmarks.load import PATIENCE_S


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Of the command line."""

    port: int
    """Where to listen, on the loopback address."""
    max_batch_size: int = 16
    """Most pictures that go through the models at once."""
    batch_wait_ms: float = 5
    """How long a picture waits for others."""


class SegmentApi(litserve.LitAPI):
    """Pictures and prompts in, masks as COCO's run lengths out."""

    def setup(self, device: str) -> None:
        self.segmenter, self.options = chosen()

    def decode_request(self, request: Request, **kwargs: Any) -> tuple[np.ndarray, list[str]]:
        form: Any = request
        picture = Image.open(BytesIO(form["image"].file.read()))
        return np.array(picture.convert("RGB")), form.getlist("prompts")

    def batch(self, inputs: list[tuple[np.ndarray, list[str]]]) -> list[tuple[np.ndarray, list[str]]]:
        return inputs

    def predict(self, x: Any, **kwargs: Any) -> Any:
        images, prompts = zip(*x, strict=True)
        return self.segmenter.segment(images, prompts, self.options)

    def unbatch(self, output: Any) -> Any:
        return output

    def encode_response(self, output: Any, **kwargs: Any) -> dict[str, Any]:
        return {
            "results": [
                {
                    "prompt": result.prompt,
                    "found": result.found,
                    "instances": [
                        {"score": one.score, "box_xyxy": one.cropped.box_xyxy, "mask": one.cropped.rle()}
                        for one in result.instances
                    ],
                }
                for result in output
            ]
        }


def main(flags: Flags) -> None:
    """Serve until it is ended."""
    api = SegmentApi(
        max_batch_size=flags.max_batch_size,
        batch_timeout=flags.batch_wait_ms / 1000,
        api_path="/v1/segment",
    )
    server = litserve.LitServer(api, accelerator="cpu", timeout=PATIENCE_S, healthcheck_path="/readyz")
    server.run(host="127.0.0.1", port=flags.port, generate_client_file=False, num_api_servers=1, pretty_logs=False)


if __name__ == "__main__":
    main(tyro.cli(Flags, description=__doc__))
