"""How much faster than the documented use of both libraries?

    python -m benchmarks.segmentation --photos DIR
    python -m benchmarks.segmentation --photos DIR --rounds 7 --output docs/records/segmentation/speed.json

Models of full size (CLIPSeg rd64, SAM 2.1 tiny) with random weights: what they see does not change how long they take.
The same work on both sides: for every prompt a heatmap, a box, and the masks that SAM 2 offers for it. The documented
way encodes the picture once for every prompt and calls `SAM2ImagePredictor` prompt by prompt, in float32; ours encodes
it once, in bfloat16 where the machine has instructions for it, and decodes all prompts together. A picture seen before
is one whose encodings were kept. Rounds are interleaved; a ratio is that of one round, and the median is judged. Last,
matrix products reached per second (FLOPs of both encoders over the time they took) against this machine's own rate.
"""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.full_size import FullSize
from benchmarks.process_memory import MEGABYTE
from benchmarks.prototype import Prototype
from benchmarks.record import Spread, Verdict, conclude, spread
from core.runtime import multiplies_bf16
from core.segment.masks import box_xyxy
from core.segment.pipeline import Segmenter
from core.segment.questions import EncodedImage
from core.segment.sam2 import MaskPrompt

PROMPTS = ("a truck", "a wheel", "the sky", "a window", "a bag", "an apple", "a road", "a bottle")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Flags of the benchmark."""

    photos: Path | None = None
    """Folder with photographs; coloured noise of 1200x900 pixels if it is not given."""
    rounds: int = 5
    """How often every case is timed."""
    output: Path | None = None
    """Write a JSON record here."""


def documented(prototype: Prototype, image: np.ndarray, prompts: tuple[str, ...]) -> None:
    """Each prompt on its own, as the documentation shows it."""
    for prompt in prompts:
        with torch.inference_mode():
            box = _box(prototype.heatmap(image, prompt), image)
            prototype.predictor.set_image(image)
            prototype.predictor.predict(box=box[None], multimask_output=True)


def ours(segmenter: Segmenter, picture: EncodedImage, prompts: tuple[str, ...]) -> None:
    """All prompts together; a picture that carries its encodings is not encoded again."""
    if picture.grounded is None:
        (picture.grounded,) = segmenter.grounder.encode_images([picture.image])
    if picture.encoded is None:
        (picture.encoded,) = segmenter.sam2.encode_images([picture.image])
    (heatmaps,) = segmenter.grounder.heatmaps([picture.grounded], [prompts])
    boxes = [MaskPrompt(box_xyxy=_box(logits, picture.image)) for logits in heatmaps]
    answers = segmenter.sam2.decode([picture.encoded] * len(boxes), boxes)
    for answer in answers:
        segmenter.sam2.upsample(answer.mask_logits, (picture.image.shape[0], picture.image.shape[1]))


def _box(logits: torch.Tensor, image: np.ndarray) -> np.ndarray:
    """The box of the hottest half: random weights have no threshold of their own."""
    hot = (logits >= logits.median()).numpy()
    scale = np.array([image.shape[1], image.shape[0]] * 2) / hot.shape[0]
    return box_xyxy(hot) * scale


def seconds(call: Callable[[], None]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def photographs(folder: Path | None) -> list[np.ndarray]:
    """RGB arrays."""
    if folder is None:
        return [np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8)]
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise SystemExit(f"there are no photographs in {folder}")
    return [np.array(Image.open(file).convert("RGB")) for file in files]


def matrix_rate(dtype: torch.dtype) -> float:
    """FLOPs a second of a large matrix product, the best of ten."""
    a, b = torch.randn(2048, 2048, dtype=dtype), torch.randn(2048, 2048, dtype=dtype)

    def multiply() -> None:
        torch.mm(a, b)

    multiply()
    return 2 * 2048**3 / min(seconds(multiply) for _ in range(10))


@contextlib.contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Resident memory at its highest within the block, in MB; Linux only."""
    Path("/proc/self/clear_refs").write_text("5")
    peak: list[float] = []
    yield peak
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak.append(int(status["VmHWM"].split()[0]) * 1024 / MEGABYTE)


def main(settings: Settings) -> None:
    """Time the cases, print ratios and verdicts."""
    with tempfile.TemporaryDirectory() as folder:
        segmenter = FullSize(Path(folder)).save().load()
    prototype = Prototype(segmenter)
    pictures = photographs(settings.photos)
    seen = segmenter.encode(pictures)
    has_bf16 = multiplies_bf16(segmenter.sam2.device)
    print(f"{len(pictures)} photographs, {torch.get_num_threads()} threads, bf16: {has_bf16}")
    print(f"kept of a picture: {seen[0].nbytes / MEGABYTE:.1f} MB, its pixels among them\n")
    ratios: dict[str, list[float]] = {"one prompt": [], "eight prompts": [], "new prompt, picture seen before": []}
    times: dict[str, list[float]] = {f"{case}, {who}": [] for case in ratios for who in ("documented", "ours")}
    for turn in range(settings.rounds + 1):
        for image, kept in zip(pictures, seen, strict=True):
            asked = (f"a new thing {turn}",)
            for case, prompts, picture in (
                ("one prompt", PROMPTS[:1], EncodedImage(image)),
                ("eight prompts", PROMPTS, EncodedImage(image)),
                ("new prompt, picture seen before", asked, kept),
            ):
                theirs = seconds(lambda p=prompts, i=image: documented(prototype, i, p))
                mine = seconds(lambda p=prompts, q=picture: ours(segmenter, q, p))
                if turn:  # the first round warms up
                    ratios[case].append(theirs / mine)
                    times[f"{case}, documented"].append(theirs)
                    times[f"{case}, ours"].append(mine)
    spreads: dict[str, Spread] = {case: spread(values) for case, values in ratios.items()}
    for case, one in spreads.items():
        theirs, mine = (1000 * statistics.median(times[f"{case}, {who}"]) for who in ("documented", "ours"))
        print(f"{case:34}{theirs:9.0f} ms {mine:9.1f} ms {one.text('.1f'):>24} times faster", flush=True)

    rate = matrix_rate(torch.bfloat16 if has_bf16 else torch.float32)
    with FlopCounterMode(display=False) as counter:
        segmenter.encode(pictures[:1])
    flops = counter.get_total_flops()
    share = flops / statistics.median(seconds(lambda: _encode(segmenter, pictures[0])) for _ in range(5)) / rate
    print(f"\nboth encoders: {flops / 1e9:.0f} GFLOPs, {share:.0%} of the {rate / 1e9:.0f} GFLOP/s of a matrix product")
    with peak_memory() as low:
        ours(segmenter, EncodedImage(pictures[0]), PROMPTS[:1])
    with peak_memory() as high:
        ours(segmenter, EncodedImage(pictures[0]), tuple(f"thing {n}" for n in range(200)))
    print(f"peak resident memory: {low[0]:.0f} MB with 1 prompt, {high[0]:.0f} MB with 200")

    verdicts = [
        Verdict(claim=case, measured=spreads[case].median, target=target, unit="times the documented way's speed")
        for case, target in zip(spreads, (2, 6, 20), strict=True)
    ]
    figures: dict[str, Any] = {
        "ratios": {case: asdict(one) for case, one in spreads.items()},
        "seconds": {case: statistics.median(values) for case, values in times.items()},
        "encoder_flops": flops,
        "matrix_rate": rate,
        "share_of_matrix_rate": share,
        "kept_mb_a_picture": seen[0].nbytes / MEGABYTE,
        "peak_mb": {"1 prompt": low[0], "200 prompts": high[0]},
    }
    conclude("segmentation", settings, figures, verdicts, settings.output)


def _encode(segmenter: Segmenter, image: np.ndarray) -> None:
    segmenter.encode([image])


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
