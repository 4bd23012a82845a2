"""What goes over the wire: the bodies of answers and of errors."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


def _example(**fields: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [fields]})


class Prediction(BaseModel):
    label: str
    score: Annotated[float, Field(ge=0, le=1, description="Softmax probability.")]


class ModelName(BaseModel):
    name: str = Field(description="Architecture and dataset, such as `vit-cifar10`.")
    revision: str = Field(description="The start of the SHA-256 of the weights file: other weights, other revision.")


class Classification(BaseModel):
    model_config = _example(
        predictions=[{"label": "cat", "score": 0.91}, {"label": "dog", "score": 0.06}],
        model={"name": "vit-cifar10", "revision": "3f0c9a1b7d2e"},
    )

    predictions: list[Prediction] = Field(description="The likeliest classes, best first.")
    model: ModelName


class ModelCard(ModelName):
    """A model as it is loaded now."""

    dataset: str = Field(description="What it was trained on.")
    class_names: list[str]
    image_size: int = Field(description="Pictures are scaled to a square of this many pixels a side.")
    device: str


Probability = Annotated[float, Field(ge=0, le=1)]


class RleMask(BaseModel):
    """COCO's compressed run lengths: `pycocotools.mask.decode` reads it."""

    format: Literal["rle"]
    size: list[int] = Field(description="Height and width of the picture.")
    counts: str


class PolygonMask(BaseModel):
    """Outlines of the parts. What an outline encloses is inside: holes are filled. `rle` and `png` keep them."""

    format: Literal["polygon"]
    size: list[int] = Field(description="Height and width of the picture.")
    polygons: list[list[float]] = Field(description="One list a part: x1, y1, x2, y2, ... in pixels.")


class PngMask(BaseModel):
    """A one-channel PNG of the picture's size: 255 inside, 0 outside."""

    format: Literal["png"]
    size: list[int] = Field(description="Height and width of the picture.")
    data: str = Field(description="Base64.")


class HeatmapPng(BaseModel):
    """Probabilities of the whole picture squeezed into a square, as a grey PNG: 255 is probability 1."""

    format: Literal["png"]
    size: list[int]
    data: str = Field(description="Base64.")


class MaskCandidate(BaseModel):
    """One mask that SAM 2 offered, and how it was judged; all but `kind` and `index` in [0, 1]."""

    kind: str = Field(description="What SAM 2 was asked with, such as `box` or `box+points`.")
    index: int = Field(description="Which of its masks.")
    agreement: float = Field(description="Soft IoU with the heatmap.")
    predicted_iou: float = Field(description="SAM 2's own opinion.")
    stability: float = Field(description="Of the mask's edge.")
    leakage: float = Field(description="Share of the mask where the heatmap is cold.")
    score: float = Field(description="All of these together.")


class FoundInstance(BaseModel):
    """One object."""

    score: Probability = Field(description="`presence` and the mask's quality together.")
    presence: Probability = Field(description="That it is what the prompt names.")
    box_xyxy: list[int] = Field(description="Left, top, right, bottom in pixels; the last two are exclusive.")
    area: int = Field(description="Pixels.")
    source: Literal["sam2", "coarse"] = Field(description="`coarse`: SAM 2 was not asked, or not believed.")
    why: str = Field(description="Why the mask is from there.")
    zoomed: bool = Field(description="Whether a closer look was taken.")
    mask: Annotated[RleMask | PolygonMask | PngMask, Field(discriminator="format")]
    quality: Probability | None = Field(None, description="Of the mask; with `explain` only.")
    candidates: list[MaskCandidate] | None = Field(None, description="SAM 2's best offers; with `explain` only.")


class PromptAnswer(BaseModel):
    prompt: str
    found: bool = Field(description="Whether the picture shows it. That it does not is an answer, not an error.")
    presence: Probability
    threshold: Probability = Field(description="The share of the heatmap taken for the edge of the coarse mask.")
    reason: str | None = Field(description="Why nothing was found, or why masks are coarse where they need not be.")
    instances: list[FoundInstance] = Field(description="The objects, the surest first.")
    degraded: Literal["deadline"] | None = Field(
        None, description="`deadline`: the time was too short for SAM 2, so that the masks are coarse."
    )
    tokens_read: int | None = Field(
        None,
        description="Where the prompt has more tokens (words and parts of words) than the model reads: how many, from "
        "its beginning, were read.",
    )
    heatmap: HeatmapPng | None = Field(None, description="With `explain` only.")


class PictureInfo(BaseModel):
    """Width and height as a person sees the picture: EXIF orientation applied."""

    width: int
    height: int
    sha256: str = Field(description="Of the file.")


class SegmenterName(BaseModel):
    preset: str
    clipseg: str = Field(description="Checkpoint and the start of its SHA-256, or its revision on the hub.")
    sam2: str = Field(description="Checkpoint and the start of its SHA-256.")


class Timings(BaseModel):
    """Milliseconds. Calls of the models are shared with the requests that came at the same time."""

    fetch: float | None = Field(None, description="Of the URL.")
    decode: float
    queue: float = Field(description="Waiting for the models.")
    clipseg: float
    sam2: float
    masks: float = Field(description="Writing the masks.")
    total: float


class CacheUse(BaseModel):
    image: Literal["hit", "miss"] = Field(description="`hit`: the picture was here before, and not encoded again.")


class Segmentation(BaseModel):
    model_config = _example(
        image={
            "width": 640,
            "height": 480,
            "sha256": "9f86d081884c7d65...",
        },
        results=[
            {
                "prompt": "red circle",
                "found": True,
                "presence": 0.97,
                "threshold": 0.31,
                "reason": None,
                "instances": [
                    {
                        "score": 0.93,
                        "presence": 0.97,
                        "box_xyxy": [10, 20, 90, 110],
                        "area": 4821,
                        "source": "sam2",
                        "why": "box+points agrees with the heatmap 1.06 times as well as the coarse mask does",
                        "zoomed": True,
                        "mask": {"format": "rle", "size": [480, 640], "counts": "Tg01n>2N2N1O..."},
                    }
                ],
            }
        ],
        model={"preset": "demo", "clipseg": "clipseg@1f0c9a1b7d2e", "sam2": "sam2@8e21b7a90c3d"},
        timings_ms={"decode": 3.1, "queue": 0.4, "clipseg": 9.8, "sam2": 21.0, "masks": 0.7, "total": 35.2},
        cache={"image": "miss"},
    )

    image: PictureInfo
    results: list[PromptAnswer] = Field(description="One a prompt, in the order of the prompts.")
    model: SegmenterName
    timings_ms: Timings
    cache: CacheUse


class Limits(BaseModel):
    max_upload_bytes: int
    max_pixels: int
    max_prompts: int
    max_prompt_characters: int
    max_prompt_tokens: int | None = Field(
        description="Words and parts of words of a prompt that the segmenter reads. Null: all of them."
    )
    request_timeout_s: float
    formats: list[str] = Field(description="Picture formats that are read.")
    urls: bool = Field(description="Whether pictures may be given by URL.")


class Vocabulary(BaseModel):
    """All that the demo weights know; prompts are `COLOUR SHAPE`, `SHAPE`, `COLOUR object`, each also with a size."""

    shapes: list[str]
    colours: list[str]
    sizes: list[str]


class SegmenterModels(SegmenterName):
    device: str
    vocabulary: Vocabulary | None = Field(description="Null: the models know what their checkpoints were trained on.")


class Models(BaseModel):
    model_config = _example(
        models=[
            {
                "name": "vit-cifar10",
                "revision": "3f0c9a1b7d2e",
                "dataset": "cifar10",
                "class_names": ["airplane", "automobile"],
                "image_size": 32,
                "device": "cpu",
            }
        ],
        segmenter={
            "preset": "demo",
            "clipseg": "clipseg@1f0c9a1b7d2e",
            "sam2": "sam2@8e21b7a90c3d",
            "device": "cpu",
            "vocabulary": {"shapes": ["circle", "star"], "colours": ["red", "blue"], "sizes": ["small", "large"]},
        },
        limits={
            "max_upload_bytes": 20971520,
            "max_pixels": 40000000,
            "max_prompts": 16,
            "max_prompt_characters": 500,
            "max_prompt_tokens": 75,
            "request_timeout_s": 30,
            "formats": ["JPEG", "PNG"],
            "urls": True,
        },
    )

    models: list[ModelCard] = Field(description="The classifiers.")
    segmenter: SegmenterModels
    limits: Limits


class Live(BaseModel):
    """The field is that of the Open Inference Protocol, whose clients read it."""

    live: bool = True


class Ready(BaseModel):
    """The field is that of the Open Inference Protocol, whose clients read it."""

    ready: bool = True


class FieldError(BaseModel):
    field: str
    message: str


class ProblemDetails(BaseModel):
    """RFC 9457, sent as `application/problem+json`."""

    model_config = _example(
        type="urn:patchwork:problem:invalid-field",
        title="A field of the request is missing or wrong",
        status=422,
        detail="prompts: Field required",
        request_id="c2f1a7d0",
        errors=[{"field": "prompts", "message": "Field required"}],
    )

    type: str = Field(description="Stable: what a program should compare.")
    title: str
    status: int
    detail: str = Field(description="What was wrong with this request, for a person.")
    request_id: str | None = Field(None, description="As in the service's logs.")
    errors: list[FieldError] = Field(default=[], description="The fields at fault, where the request had bad fields.")
