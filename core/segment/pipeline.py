"""From pictures and prompts to masks, in one call: the models, and many pictures' flows run together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.images import as_rgb
from core.segment.calibration import Calibration
from core.segment.clipseg import ClipSeg
from core.segment.flow import Flow, flow
from core.segment.grounder import Grounder
from core.segment.options import SegmentOptions, check_prompts
from core.segment.presets import checkpoints_of
from core.segment.questions import Decode, EncodedImage, Ground
from core.segment.results import PromptResult
from core.segment.sam2 import MaskCandidates, Sam2

# Pictures that are worked on together: what bounds the memory of a call.
_PICTURES_AT_ONCE = 16


class Segmenter:
    """Text prompts to masks. Keeps nothing of a call: safe to use from many threads at once."""

    def __init__(self, grounder: Grounder, sam2: Sam2, calibration: Calibration | None = None) -> None:
        self.grounder, self.sam2 = grounder, sam2
        self.calibration = calibration or Calibration()

    @classmethod
    def from_preset(
        cls,
        name: str = "demo",
        *,
        clipseg: str | None = None,
        sam2: str | None = None,
        calibration: Calibration | None = None,
        device: str = "auto",
        precision: str = "auto",
    ) -> "Segmenter":
        """One of `core.segment.presets.PRESETS`: `demo` comes with the project, the others from the hub or its cache.

        Args:
            clipseg, sam2: checkpoints in place of the preset's.
            calibration: in place of the preset's, which holds for its own checkpoints only.

        Raises:
            ValueError: there is no such preset, or its weights can be found neither on the hub nor in the cache.
        """
        checkpoints = checkpoints_of(name, clipseg, sam2)
        return cls.from_pretrained(
            clipseg=checkpoints.clipseg,
            sam2=checkpoints.sam2,
            calibration=calibration or checkpoints.calibration(),
            device=device,
            precision=precision,
        )

    @classmethod
    def from_pretrained(
        cls,
        *,
        clipseg: str | Path,
        sam2: str | Path,
        sam2_config: str | None = None,
        calibration: Calibration | None = None,
        device: str = "auto",
        precision: str = "auto",
    ) -> "Segmenter":
        """Any checkpoints: names on the hub, folders, or for SAM 2 a file with its configuration.

        Args:
            calibration: `Calibration.load` reads what `sweeps/segmentation_threshold.py` wrote; None for the defaults.
            precision: `bf16`, `float32`, or `auto`: bf16 for the image encoders where the machine has it.

        Raises:
            ValueError: one of them cannot be loaded; the message names it.
        """
        return cls(
            ClipSeg.from_pretrained(clipseg, device=device, precision=precision),
            Sam2.from_pretrained(sam2, config=sam2_config, device=device, precision=precision),
            calibration,
        )

    def encode(self, images: Sequence[Any]) -> list[EncodedImage]:
        """Encode pictures once, for any number of `segment_encoded`. Takes what `core.images.as_rgb` takes."""
        pictures = [EncodedImage(as_rgb(image)) for image in images]
        self._ground_encode(pictures)
        self._sam2_encode(pictures)
        return pictures

    def segment(
        self, images: Sequence[Any], prompts: Sequence[Sequence[str]], options: SegmentOptions | None = None
    ) -> list[list[PromptResult]]:
        """Answer every picture's own prompts, in order.

        Args:
            images: uint8 arrays `[height, width, 3]`, or what else `core.images.as_rgb` takes.
            prompts: for each picture a list of texts. Of one with more tokens than `grounder.prompt_tokens.limit` the
                beginning counts.

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
        for part in _parts(list(zip(pictures, asked, strict=True))):
            results += self._run(
                [flow(picture, texts, options, self.calibration, self.sam2.low_res_size) for picture, texts in part]
            )
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
        for part in _parts(list(dict.fromkeys(p for p in pictures if p.grounded is None))):
            for picture, features in zip(part, self.grounder.encode_images([p.image for p in part]), strict=True):
                picture.grounded = features

    def _sam2_encode(self, pictures: Sequence[EncodedImage]) -> None:
        for part in _parts(list(dict.fromkeys(p for p in pictures if p.encoded is None))):
            for picture, features in zip(part, self.sam2.encode_images([p.image for p in part]), strict=True):
                picture.encoded = features


def _parts(items: Sequence[Any]) -> list[Sequence[Any]]:
    """Items in order, as many at a time as are worked on together."""
    return [items[start : start + _PICTURES_AT_ONCE] for start in range(0, len(items), _PICTURES_AT_ONCE)]
