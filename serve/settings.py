"""What an operator can set, as `serve run serve.config name=value ...` or under `args:` in a Serve YAML file."""

from pathlib import Path
from typing import Annotated, Any, Literal

import click
from PIL import Image
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

# Above this Pillow itself starts to warn of decompression bombs.
_PILLOW_PIXEL_LIMIT = Image.MAX_IMAGE_PIXELS or 89_478_485


class StartError(click.ClickException):
    """The service cannot start, and this sentence says why.

    `serve run` is a click command: it prints such an exception as one line and exits with 1. Any other exception would
    end in a traceback, and one raised in a replica in a series of restarts.
    """


def _absolute(folder: Path) -> Path:
    """Links are followed now: a replica that restarts must not move on to what `latest` means by then."""
    return folder.expanduser().resolve()


class Settings(BaseModel):
    """The service's settings; a name that is not listed here is refused.

    Raises:
        StartError: a setting is missing, unknown or outside its range; the message names it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    classifier: Annotated[Path, AfterValidator(_absolute)] = Field(
        description="Checkpoint folder of the classifier, such as results/patch_size/latest/best."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="Where the model runs. `auto` is CUDA if the machine that starts the service has it, else the CPU; "
        "`cuda` reserves a GPU of the Ray cluster for every replica.",
    )
    max_batch_size: int = Field(16, ge=1, le=1024, description="Most pictures that go through the model at once.")
    batch_wait_ms: float = Field(
        5, ge=0, le=1000, description="How long, in milliseconds, a picture waits for others to share its model call."
    )
    replicas: int = Field(1, ge=1, le=1000, description="Copies of the classifier; each takes one CPU, or one GPU.")
    max_upload_mb: float = Field(20, gt=0, le=1024, description="Largest request body, in MiB.")
    max_pixels: int = Field(
        40_000_000,
        ge=1,
        le=_PILLOW_PIXEL_LIMIT,
        description="Largest picture, in pixels; checked before it is decoded.",
    )
    request_timeout_s: float = Field(
        30, gt=0, le=3600, description="Time, in seconds, to answer in once the upload has arrived."
    )

    @property
    def max_upload_bytes(self) -> int:
        return int(self.max_upload_mb * 2**20)

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: Any, validate: ModelWrapValidatorHandler["Settings"]) -> "Settings":
        try:
            return validate(values)
        except ValidationError as error:
            raise StartError("; ".join(_sentence(cls, problem) for problem in error.errors())) from error


def _sentence(settings: type[BaseModel], problem: Any) -> str:
    name = ".".join(map(str, problem["loc"])) or "settings"
    if problem["type"] == "missing":
        return f"the setting {name!r} is required: {settings.model_fields[name].description}"
    if problem["type"] == "extra_forbidden":
        return f"there is no setting {name!r}; there are: {', '.join(settings.model_fields)}"
    return f"{name}={problem['input']}: {problem['msg']}"
