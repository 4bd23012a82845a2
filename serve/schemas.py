"""What goes over the wire: the bodies of answers and of errors."""

from typing import Annotated

from pydantic import BaseModel, Field


class Prediction(BaseModel):
    label: str
    score: Annotated[float, Field(ge=0, le=1, description="Softmax probability.")]


class ModelName(BaseModel):
    name: str = Field(description="Architecture and dataset, such as `vit-cifar10`.")
    revision: str = Field(description="The start of the SHA-256 of the weights file: other weights, other revision.")


class Classification(BaseModel):
    predictions: list[Prediction] = Field(description="The likeliest classes, best first.")
    model: ModelName


class ModelCard(ModelName):
    """A model as it is loaded now."""

    dataset: str = Field(description="What it was trained on.")
    class_names: list[str]
    image_size: int = Field(description="Pictures are scaled to a square of this many pixels a side.")
    device: str


class Limits(BaseModel):
    max_upload_bytes: int
    max_pixels: int
    request_timeout_s: float
    formats: list[str] = Field(description="Picture formats that are read.")


class Models(BaseModel):
    models: list[ModelCard]
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

    type: str = Field(description="Stable: what a program should compare.")
    title: str
    status: int
    detail: str = Field(description="What was wrong with this request, for a person.")
    errors: list[FieldError] = Field(default=[], description="The fields at fault, where the request had bad fields.")
