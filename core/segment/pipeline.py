"""From pictures and prompts to masks, in one call: the models, and many pictures' flows run together."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from core.images import as_rgb
from core.segment.calibration import Calibration
from core.segment.clipseg import ClipSeg
from core.segment.flow import Decode, EncodedImage, Flow, Ground, flow
from core.segment.grounder import Grounder
from core.segment.options import SegmentOptions, check_prompts
from core.segment.results import PromptResult
from core.segment.sam2 import MaskCandidates, Sam2

DEMO_WEIGHTS = Path(__file__).parent / "weights"
DEMO_CALIBRATION = DEMO_WEIGHTS / "calibration.json"
PRESETS = {
    "demo": (str(DEMO_WEIGHTS / "clipseg"), str(DEMO_WEIGHTS / "sam2")),
    "tiny": ("CIDAS/clipseg-rd64-refined", "facebook/sam2.1-hiera-tiny"),
    "small": ("CIDAS/clipseg-rd64-refined", "facebook/sam2.1-hiera-small"),
    "base": ("CIDAS/clipseg-rd64-refined", "facebook/sam2.1-hiera-base-plus"),
    "large": ("CIDAS/clipseg-rd64-refined", "facebook/sam2.1-hiera-large"),
}
# Pictures that are worked on together: what bounds the memory of a call.
_PICTURES_AT_ONCE = 16


class Segmenter:
    """Text prompts to masks. Keeps nothing of a call: safe to use from many threads at once."""

    def __init__(self, grounder: Grounder, sam2: Sam2, calibration: Calibration | None = None) -> None:
        self.grounder, self.sam2 = grounder, sam2
        self.calibration = calibration or Calibration()

    @classmethod
    def from_preset(cls, name: str = "demo", *, device: str = "auto", precision: str = "auto") -> "Segmenter":
        """One of `PRESETS`: `demo` comes with the project, the others from the hub or its cache.

        Raises:
            ValueError: there is no such preset, or its weights can be found neither on the hub nor in the cache.
        """
        if name not in PRESETS:
            raise ValueError(f"there is no preset {name!r}; there are: {', '.join(PRESETS)}")
        clipseg, sam2 = PRESETS[name]
        calibration = DEMO_CALIBRATION if name == "demo" else None
        return cls.from_pretrained(
            clipseg=clipseg, sam2=sam2, calibration=calibration, device=device, precision=precision
        )

    @classmethod
    def from_pretrained(
        cls,
        *,
        clipseg: str | Path,
        sam2: str | Path,
        sam2_config: str | None = None,
        calibration: Path | None = None,
        device: str = "auto",
        precision: str = "auto",
    ) -> "Segmenter":
        """Any checkpoints: names on the hub, folders, or for SAM 2 a file with its configuration.

        Args:
            calibration: a file that `sweeps/segmentation_threshold.py` wrote; None for the defaults.
            precision: `bf16`, `float32`, or `auto`: bf16 for the image encoders where the machine has it.

        Raises:
            ValueError: one of them cannot be loaded; the message names it.
        """
        return cls(
            ClipSeg.from_pretrained(clipseg, device=device, precision=precision),
            Sam2.from_pretrained(sam2, config=sam2_config, device=device, precision=precision),
            None if calibration is None else Calibration.load(calibration),
        )

    def encode(self, images: Sequence[Any]) -> list[EncodedImage]:
        """Encode pictures once, for any number of `segment_encoded`. Takes what `core.images.as_rgb` takes."""
        pictures = [EncodedImage(as_rgb(image)) for image in images]
        for start in range(0, len(pictures), _PICTURES_AT_ONCE):
            part = pictures[start : start + _PICTURES_AT_ONCE]
            self._ground_encode(part)
            self._sam2_encode(part)
        return pictures

    def segment(
        self, images: Sequence[Any], prompts: Sequence[Sequence[str]], options: SegmentOptions | None = None
    ) -> list[list[PromptResult]]:
        """Answer every picture's own prompts, in order.

        Args:
            images: uint8 arrays `[height, width, 3]`, or what else `core.images.as_rgb` takes.
            prompts: for each picture a list of texts.

        Raises:
            ValueError: a picture is no picture, there are no prompts, or one is empty or too long.
        """
        return self.segment_encoded([EncodedImage(as_rgb(image)) for image in images], prompts, options)

    def segment_encoded(
        self, pictures: Sequence[EncodedImage], prompts: Sequence[Sequence[str]], options: SegmentOptions | None = None
    ) -> list[list[PromptResult]]:
        """As `segment`, for pictures that `encode` has seen."""
        if len(pictures) != len(prompts):
            raise ValueError(f"{len(pictures)} pictures with {len(prompts)} lists of prompts: one list a picture")
        asked = [check_prompts(texts) for texts in prompts]
        options = options or SegmentOptions()
        results: list[list[PromptResult]] = []
        for start in range(0, len(pictures), _PICTURES_AT_ONCE):
            part = slice(start, start + _PICTURES_AT_ONCE)
            flows = [
                flow(picture, texts, options, self.calibration, self.sam2.low_res_size)
                for picture, texts in zip(pictures[part], asked[part], strict=True)
            ]
            results += self._run(flows)
        return results

    def _run(self, flows: Sequence[Flow]) -> list[list[PromptResult]]:
        """Advance all flows in step, so that what they want at one time is asked in one call."""
        results: dict[int, list[PromptResult]] = {}
        wanted = {index: next(running) for index, running in enumerate(flows)}
        while wanted:
            calls = [call for calls in wanted.values() for call in calls]
            answers = iter(self._answer(calls))
            coming = {}
            for index, calls in wanted.items():
                try:
                    coming[index] = flows[index].send([next(answers) for _ in calls])
                except StopIteration as done:
                    results[index] = done.value
            wanted = coming
        return [results[index] for index in range(len(flows))]

    def _answer(self, calls: Sequence[Ground | Decode]) -> list[Any]:
        answers: dict[int, Any] = {}
        for kind, ask in ((Ground, self._ground), (Decode, self._decode)):
            rows = [row for row, call in enumerate(calls) if isinstance(call, kind)]
            answers |= dict(zip(rows, ask([calls[row] for row in rows]), strict=True))  # type: ignore[arg-type]
        return [answers[row] for row in range(len(calls))]

    def _ground(self, calls: Sequence[Ground]) -> list[Any]:
        self._ground_encode([call.picture for call in calls])
        features = [call.picture.grounded for call in calls]
        return [logits.numpy() for logits in self.grounder.heatmaps(features, [call.prompts for call in calls])]

    def _decode(self, calls: Sequence[Decode]) -> list[list[MaskCandidates]]:
        self._sam2_encode([call.picture for call in calls])
        features = [call.picture.encoded for call in calls for _ in call.prompts]
        answers = iter(self.sam2.decode(features, [prompt for call in calls for prompt in call.prompts]))  # type: ignore[arg-type]
        return [[next(answers) for _ in call.prompts] for call in calls]

    def _ground_encode(self, pictures: Sequence[EncodedImage]) -> None:
        missing = list({id(p): p for p in pictures if p.grounded is None}.values())
        for part in _chunks(missing, _PICTURES_AT_ONCE):
            for picture, features in zip(part, self.grounder.encode_images([p.image for p in part]), strict=True):
                picture.grounded = features

    def _sam2_encode(self, pictures: Sequence[EncodedImage]) -> None:
        missing = list({id(p): p for p in pictures if p.encoded is None}.values())
        for part in _chunks(missing, _PICTURES_AT_ONCE):
            for picture, features in zip(part, self.sam2.encode_images([p.image for p in part]), strict=True):
                picture.encoded = features


def _chunks(items: Sequence[EncodedImage], size: int) -> Iterator[Sequence[EncodedImage]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
