"""What an operator can set, as `serve run serve.config name=value ...` or under `args:` in a Serve YAML file."""

from pathlib import Path
from typing import Annotated, Any, Literal

import click
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from core.carried import CARRIED_CLASSIFIER
from core.images import MAX_PIXELS


class StartError(click.ClickException):
    """The service cannot start, and this sentence says why.

    `serve run` is a click command: it prints such an exception as one line and exits with 1. Any other exception would
    end in a traceback, and one raised in a replica in a series of restarts.
    """


def _absolute(path: Path) -> Path:
    """Links are followed now: a replica that restarts must not move on to what `latest` means by then."""
    return path.expanduser().resolve()


def _absolute_if_there(name: str) -> str:
    """What is on disk by its whole path, as replicas run in another folder; else it is a name that others know."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


File = Annotated[Path, AfterValidator(_absolute)]
Checkpoint = Annotated[str, AfterValidator(_absolute_if_there)]


class Settings(BaseModel):
    """The service's settings; a name that is not listed here is refused.

    Raises:
        StartError: a setting is unknown or outside its range; the message names it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: Literal["demo", "tiny", "small", "base", "large"] = Field(
        default="demo",
        description="The segmentation models: `demo` is carried by the project and knows generated shapes only; the "
        "others are public checkpoints from the hub or its cache.",
    )
    clipseg: Checkpoint | None = Field(
        default=None, description="Another CLIPSeg than the preset's: a folder, or a name on the hub."
    )
    sam2: Checkpoint | None = Field(
        default=None, description="Another SAM 2 than the preset's: a folder, a .pt file, or a name on the hub."
    )
    sam2_config: Checkpoint | None = Field(
        default=None, description="With a .pt file, the name of its sam2 configuration, or a YAML file."
    )
    calibration: File | None = Field(
        default=None, description="A file that sweeps/segmentation_threshold.py wrote. Default: the preset's own."
    )
    classifier: File = Field(
        default=CARRIED_CLASSIFIER,
        description="Checkpoint folder of the classifier, such as results/patch_size/latest/best. Default: the "
        "CIFAR-10 weights that the project carries.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="Where the models run. `auto` is CUDA if the machine that starts the service has it, else the CPU; "
        "`cuda` reserves the Ray cluster's GPUs in shares: one holds a replica of each model.",
    )
    dtype: Literal["auto", "bf16", "float32"] = Field(
        default="auto",
        description="Precision of the image encoders; `auto` is bf16 where the machine has instructions for it.",
    )
    stages: Literal["together", "apart"] = Field(
        default="together",
        description="`together`: CLIPSeg and SAM 2 share a replica, and a lone classifier works in the ingress: the "
        "fastest on one machine. `apart`: each is a deployment of its own, scaled by itself.",
    )
    max_batch_size: int = Field(default=16, ge=1, le=1024, description="Most pictures that go through a model at once.")
    batch_wait_ms: float = Field(
        default=5,
        ge=0,
        le=1000,
        description="How long, in milliseconds, a picture waits for others to share its model call while requests "
        "come in company; a lone one never waits.",
    )
    replicas: int = Field(
        default=1, ge=1, le=1000, description="Copies of each model stage; with max_replicas, the fewest."
    )
    max_replicas: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Most copies of each model stage: Serve scales by load between the two.",
    )
    cpus_per_replica: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="Threads of a replica of the segmentation models. Default: the machine's cores, at most 8, shared "
        "by the replicas on it.",
    )
    max_queued: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Most requests to one route that an ingress replica has in hand; it answers 503 beyond them. "
        "Default: two full batches for each copy of the models, one at work and one to follow it: more would only "
        "wait longer.",
    )
    max_upload_mb: float = Field(default=20, gt=0, le=1024, description="Largest request body, in MiB.")
    max_pixels: int = Field(
        default=40_000_000,
        ge=1,
        le=MAX_PIXELS,
        description="Largest picture, in pixels, of at most 65,535 a side; checked before it is decoded.",
    )
    max_prompts: int = Field(default=16, ge=1, le=200, description="Most prompts of one request.")
    cache_mb: float = Field(
        default=256,
        ge=0,
        le=1_000_000,
        description="Memory, in MiB, in which each model stage keeps encoded pictures, so that one that comes again is "
        "not encoded again; 0 for none.",
    )
    allow_urls: bool = Field(
        default=True,
        description="Whether pictures may be given by URL; private and local addresses are refused in any case.",
    )
    request_timeout_s: float = Field(
        default=30,
        gt=0,
        le=3600,
        description="Time, in seconds, to answer a request in; a request may ask for less by the header "
        "X-Request-Timeout-Seconds.",
    )

    @property
    def max_in_hand(self) -> int:
        """`max_queued`, or its default."""
        return self.max_queued or 2 * self.max_batch_size * (self.max_replicas or self.replicas)

    @property
    def max_upload_bytes(self) -> int:
        return int(self.max_upload_mb * 2**20)

    @property
    def cache_bytes(self) -> int:
        return int(self.cache_mb * 2**20)

    @model_validator(mode="after")
    def _fits_together(self) -> "Settings":
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise StartError(f"max_replicas={self.max_replicas} is below replicas={self.replicas}")
        if self.sam2_config is not None and self.sam2 is None:
            raise StartError("sam2_config is of use with sam2 only: name that checkpoint too")
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: Any, validate: ModelWrapValidatorHandler["Settings"]) -> "Settings":
        try:
            return validate(values)
        except ValidationError as error:
            raise StartError("; ".join(_sentence(cls, problem) for problem in error.errors())) from error


def _sentence(settings: type[BaseModel], problem: Any) -> str:
    name = ".".join(map(str, problem["loc"])) or "settings"
    if problem["type"] == "extra_forbidden":
        return f"there is no setting {name!r}; there are: {', '.join(settings.model_fields)}"
    return f"{name}={problem['input']}: {problem['msg']}"
