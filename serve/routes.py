"""The routes under `/v1/` that take pictures."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Form, Request, Response
from pydantic import BeforeValidator, Field, WithJsonSchema

from core.images import PictureError
from core.segment.options import MAX_PROMPT_CHARACTERS, SegmentOptions, check_prompts
from core.segment.prompt_tokens import PromptTokens
from serve import problems
from serve.answers import MaskFormat, overlay, prompt_answers
from serve.gate import Ticket, ticket_of
from serve.pictures import Picture, PictureForm, Pictures
from serve.ports import ClassifierPort, LateError, SegmentAnswer, SegmentAsk, SegmenterCard, SegmenterPort
from serve.problems import Problem
from serve.schemas import (
    CacheUse,
    Classification,
    FieldError,
    PictureInfo,
    Segmentation,
    SegmenterName,
    Timings,
)
from serve.settings import Settings

# Kept back from the models' time, to write the answer in: of a short time more.
_WRITING_SHARE, _SHORT_WRITING_SHARE, _SHORT_WRITING_S = 0.05, 0.2, 0.5
_PROBLEMS = (
    problems.UNREADABLE_PICTURE,
    problems.MALFORMED_BODY,
    problems.UNAUTHORIZED,
    problems.FORBIDDEN_URL,
    problems.BODY_TOO_LARGE,
    problems.PICTURE_TOO_LARGE,
    problems.URL_TOO_LARGE,
    problems.UNSUPPORTED_MEDIA_TYPE,
    problems.INVALID_FIELD,
    problems.INTERNAL_ERROR,
    problems.URL_FAILED,
    problems.BUSY,
    problems.UNAVAILABLE,
    problems.DEADLINE_PASSED,
    problems.URL_TIMED_OUT,
)


def _threshold(value: object) -> object:
    if value == "auto":
        return value
    try:
        share = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        share = -1.0
    if not 0 < share < 1:
        raise ValueError("must be `auto` or a number between 0 and 1")
    return share


Threshold = Annotated[
    float | Literal["auto"],
    BeforeValidator(_threshold),
    WithJsonSchema(
        {
            "anyOf": [
                {"const": "auto", "type": "string"},
                {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
            ]
        }
    ),
]


class ClassifyForm(PictureForm):
    top_k: Annotated[int, Field(5, ge=1, description="How many classes to name; all of them if there are fewer.")]


class SegmentForm(PictureForm):
    prompts: Annotated[
        list[Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)]],
        Field(min_length=1, description="What to look for; repeat the field for several.", examples=[["red circle"]]),
    ]
    threshold: Annotated[
        Threshold,
        Field("auto", description="Share of the heatmap above which a pixel counts, or `auto`: one chosen a prompt."),
    ]
    refine: Annotated[bool, Field(True, description="Whether SAM 2 outlines what CLIPSeg finds.")]
    max_instances: Annotated[int, Field(20, ge=1, le=200, description="Most objects a prompt, the surest first.")]
    format: Annotated[MaskFormat, Field("rle", description="Of the masks.")]
    explain: Annotated[bool, Field(False, description="Add heatmaps, the masks' quality and SAM 2's candidates.")]


def picture_routes(
    settings: Settings, image_size: int, classifier: ClassifierPort, segmenter: SegmenterPort, card: SegmenterCard
) -> APIRouter:
    """`/v1/classify` and `/v1/segment`.

    Args:
        image_size: side of the square that the classifier works on.
    """
    router = APIRouter(dependencies=[Depends(_refuse_repeated)])
    pictures = Pictures(settings)
    model = SegmenterName(preset=card.preset, clipseg=card.clipseg, sam2=card.sam2)

    @router.post("/v1/classify", tags=["classify"], responses=problems.documented(*_PROBLEMS))
    async def classify(
        form: Annotated[ClassifyForm, Form(media_type="multipart/form-data")],
        ticket: Annotated[Ticket, Depends(ticket_of)],
    ) -> Classification:
        """The likeliest classes of a picture."""
        # Scaled down here: a photograph of 12 megapixels would be 36 MB between processes, this is a few kB.
        async with in_time(ticket), pictures.read(form, ticket, image_size) as picture:
            try:
                return await classifier.classify(picture.image, form.top_k)
            except PictureError as error:
                raise Problem(problems.UNREADABLE_PICTURE, str(error)) from error

    @router.post(
        "/v1/segment",
        tags=["segment"],
        response_model=Segmentation,
        responses={
            200: {
                "description": "Masks; or with `Accept: image/png` the picture with the masks drawn over it.",
                "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
            },
            **problems.documented(*_PROBLEMS),
        },
    )
    async def segment(
        form: Annotated[SegmentForm, Form(media_type="multipart/form-data")],
        request: Request,
        ticket: Annotated[Ticket, Depends(ticket_of)],
    ) -> Response:
        """Masks of what the prompts name. That a prompt is not in the picture is an answer, with its reason."""
        prompts = _checked_prompts(form.prompts, settings.max_prompts)
        options = SegmentOptions(threshold=form.threshold, refine=form.refine, max_instances=form.max_instances)
        drawn = prefers_png(request.headers.get("accept", ""))
        async with in_time(ticket), pictures.read(form, ticket) as picture:
            ask = SegmentAsk(
                image=picture.image,
                key=picture.sha256,
                prompts=prompts,
                options=options,
                heatmaps=form.explain and not drawn,
                timeout_s=_time_for_models(ticket.left_s),
            )
            try:
                answer = await segmenter.segment(ask)
                if drawn:
                    png = await pictures.in_thread(overlay, picture.image, answer.results)
                    return Response(png, media_type="image/png")
                body = await pictures.in_thread(_written, form, picture, answer, model, ticket, card.prompt_tokens)
                return Response(body, media_type="application/json")
            except LateError as error:
                raise _too_late(ticket) from error

    return router


def prefers_png(accept: str) -> bool:
    """Whether an `Accept` header ranks `image/png` above JSON; of equal ranks the one that it names more precisely."""
    ranks: dict[str, float] = {}
    for part in accept.split(","):
        media, *parameters = (word.strip().lower() for word in part.split(";"))
        rank = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    rank = float(parameter[2:])
                except ValueError:
                    rank = 0.0
        ranks[media] = max(ranks.get(media, 0.0), rank)

    def rank_of(*ranges: str) -> tuple[float, int]:
        """By the most precise of the ranges that is named (RFC 9110, section 12.5.1)."""
        return next(((ranks[media], -place) for place, media in enumerate(ranges) if media in ranks), (0.0, 0))

    png = rank_of("image/png", "image/*", "*/*")
    return png[0] > 0 and png > rank_of("application/json", "application/*", "*/*")


def _time_for_models(left_s: float) -> float:
    return left_s - max(_WRITING_SHARE * left_s, min(_SHORT_WRITING_SHARE * left_s, _SHORT_WRITING_S))


def _written(
    form: SegmentForm,
    picture: Picture,
    answer: SegmentAnswer,
    model: SegmenterName,
    ticket: Ticket,
    tokens: PromptTokens | None,
) -> bytes:
    started = time.perf_counter()
    degraded = answer.degraded is not None
    results = prompt_answers(
        answer.results,
        form.format,
        explain=form.explain,
        degraded=degraded,
        left_s=lambda: ticket.left_s,
        tokens=tokens,
    )
    now = time.perf_counter()
    times = {
        "decode": picture.decode_ms,
        "queue": answer.times.queue,
        "clipseg": answer.times.clipseg,
        "sam2": answer.times.sam2,
        "masks": 1000 * (now - started),
        "total": 1000 * (now - ticket.began),
    }
    if picture.fetch_ms is not None:
        times["fetch"] = picture.fetch_ms
    height, width = picture.image.shape[:2]
    body = Segmentation(
        image=PictureInfo(width=width, height=height, sha256=picture.sha256),
        results=results,
        model=model,
        timings_ms=Timings(**{stage: round(milliseconds, 2) for stage, milliseconds in times.items()}),
        cache=CacheUse(image="hit" if answer.cached else "miss"),
    )
    # What was not asked for is left out; what has no default, such as `reason`, is always there.
    return body.model_dump_json(exclude_defaults=True).encode()


def _checked_prompts(prompts: list[str], most: int) -> tuple[str, ...]:
    try:
        if len(prompts) > most:
            raise ValueError(f"{len(prompts)} prompts; at most {most} are answered at once")
        return tuple(check_prompts(prompts))
    except ValueError as error:
        errors = [FieldError(field="prompts", message=str(error))]
        raise Problem(problems.INVALID_FIELD, f"prompts: {error}", errors=errors) from error


async def _refuse_repeated(request: Request) -> None:
    """FastAPI would take the last one."""
    given = Counter(name for name, _ in (await request.form()).multi_items())
    for name in {**ClassifyForm.model_fields, **SegmentForm.model_fields}:
        if given[name] > 1 and name != "prompts":
            error = FieldError(field=name, message="is given more than once")
            raise Problem(problems.INVALID_FIELD, f"{error.field}: {error.message}", errors=[error])


@asynccontextmanager
async def in_time(ticket: Ticket) -> AsyncIterator[None]:
    """Give the block up at the request's deadline; raises Problem then."""
    try:
        async with asyncio.timeout(ticket.left_s):
            yield
    except TimeoutError as error:
        raise _too_late(ticket) from error


def _too_late(ticket: Ticket) -> Problem:
    return Problem(problems.DEADLINE_PASSED, f"There was no answer within {ticket.timeout_s:.3g} s.")
