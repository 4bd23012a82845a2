"""The command line of `serve/batch.py`, checked before anything is loaded."""

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from core.images import MAX_PIXELS
from core.segment.options import SegmentOptions, check_prompts
from nodes.command import EXIT_USAGE, UsageError, optional

_SEGMENTING = (
    *("prompt", "prompts_file", "preset", "clipseg", "sam2", "calibration"),
    *("threshold", "refine", "max_instances", "overlays"),
)


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of a batch job."""

    input: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="INPUT")]
    """The pictures: a folder, a file, a glob in quotes, or parquet with the pictures' bytes; also behind a URL, such as
    s3://bucket/folder."""
    output: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """Folder for the results, on this machine, on NFS, or s3://bucket/folder. The same command again goes on where it
    was stopped."""
    prompt: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], optional("TEXT", "none")] = ()
    """What to look for, such as --prompt "red circle" --prompt star."""
    prompts_file: Annotated[Path | None, optional("FILE", "none")] = None
    """A text file with a prompt a line, beside or instead of --prompt."""
    preset: Literal["demo", "tiny", "small", "base", "large"] = "demo"
    """Which models: `demo` comes with the project, the others from the hub or its cache."""
    clipseg: Annotated[str | None, optional("NAME", "the preset's")] = None
    """A CLIPSeg checkpoint instead: a name on the hub, or a folder that all nodes reach."""
    sam2: Annotated[str | None, optional("NAME", "the preset's")] = None
    """A SAM 2 checkpoint instead: a name on the hub, or a folder that all nodes reach."""
    calibration: Annotated[Path | None, optional("FILE", "the preset's")] = None
    """What `sweeps/segmentation_threshold.py` wrote for these models."""
    threshold: Annotated[Literal["auto"] | float, tyro.conf.arg(metavar="auto|SHARE")] = "auto"
    """Share of the heatmap, between 0 and 1, above which a pixel belongs to the coarse mask."""
    refine: bool = True
    """Ask SAM 2 for exact masks; otherwise CLIPSeg's coarse ones are the answer."""
    max_instances: int = 20
    """Most objects a prompt is answered with in a picture, the surest first."""
    overlays: bool = False
    """Also write every picture with its masks drawn over it."""
    classifier: Annotated[Path | None, optional("FOLDER", "none: segment")] = None
    """Classify instead of segmenting, with this checkpoint folder, such as results/patch_size/latest/best."""
    top_k: int = 5
    """With --classifier: how many classes a picture gets, the likeliest first."""
    recursive: bool = True
    """Also read the folders within a folder."""
    image_column: str = "image"
    """In parquet: the column with the bytes, or the hub's struct of bytes and path."""
    id_column: Annotated[str | None, optional("NAME", "the hub's path, else file and row")] = None
    """In parquet: the column that names a picture."""
    max_pixels: int = 40_000_000
    """Larger pictures are reported, not read."""
    batch_size: int = 16
    """Pictures that go through the models at once: fewer take less memory."""
    shard_size: Annotated[int | None, optional("N", "32, growing to 1,024; fewer of a few hundred")] = None
    """Pictures that are written together: what is lost, at most, a worker, when the job is stopped."""
    num_workers: Annotated[int | None, optional("N", "all that the cluster has room for")] = None
    """Processes with a copy of the models each."""
    cpus_per_worker: Annotated[int | None, optional("N", "1, or more where there is less work than CPUs")] = None
    """CPUs of a worker; its PyTorch uses as many threads."""
    gpus_per_worker: Annotated[float | None, optional("N", "1 where the cluster has GPUs, else 0")] = None
    """GPUs of a worker, fractions allowed."""
    address: Annotated[str | None, optional("HOST:PORT", "$RAY_ADDRESS, else Ray starts here")] = None
    """Ray cluster to run on; `auto` for the one of this machine."""

    def __post_init__(self) -> None:
        for flag, low in (
            ("top_k", 1),
            ("max_pixels", 1),
            ("batch_size", 1),
            ("shard_size", 1),
            ("num_workers", 1),
            ("cpus_per_worker", 1),
            ("gpus_per_worker", 0),
        ):
            value = getattr(self, flag)
            if value is not None and value < low:
                raise UsageError(f"--{flag.replace('_', '-')} must be at least {low}, got {value}")
        if self.max_pixels > MAX_PIXELS:
            raise UsageError(f"--max-pixels must be at most {MAX_PIXELS:,}, got {self.max_pixels:,}")
        if not self.input:
            raise UsageError("INPUT is empty; give a folder, a file, a glob or a URL")
        if not self.output:
            raise UsageError("--output is empty; give a folder")
        given = {field.name for field in fields(self) if getattr(self, field.name) != field.default}
        if self.classifier is not None:
            for flag in (name for name in _SEGMENTING if name in given):
                shown = "no-refine" if flag == "refine" else flag.replace("_", "-")
                raise UsageError(f"--{shown} is for segmenting; it cannot be used with --classifier")
        elif "top_k" in given:
            raise UsageError("--top-k is for classifying; it needs --classifier")
        elif not self.prompt and self.prompts_file is None:
            raise UsageError("nothing to look for: give --prompt or --prompts-file, or classify with --classifier")

    def prompts(self) -> list[str]:
        """Those of the command line, then those of the file.

        Raises:
            UsageError: one is empty, too long, not text, or given twice; the message names its line.
        """
        places = [(f"--prompt {text!r}", text) for text in self.prompt]
        if self.prompts_file is not None:
            places += _read_prompts(self.prompts_file)
        seen: dict[str, str] = {}
        problems = []
        for place, text in places:
            try:
                (cleaned,) = check_prompts([text])
            except ValueError as error:
                problems.append(f"{place}: {str(error).replace('prompt 1', 'the prompt')}")
                continue
            if cleaned in seen:
                problems.append(f"{place}: the same as {seen[cleaned]}")
            seen.setdefault(cleaned, place)
        if problems:
            raise UsageError("the prompts cannot be used:\n  " + "\n  ".join(problems))
        return list(seen)

    def options(self) -> SegmentOptions:
        """What is asked of the segmenter.

        Raises:
            UsageError: a value is out of range.
        """
        try:
            return SegmentOptions(threshold=self.threshold, refine=self.refine, max_instances=self.max_instances)
        except ValueError as error:
            raise UsageError(str(error)) from error


def _read_prompts(file: Path) -> list[tuple[str, str]]:
    """The lines that are not blank, each with a name for its place."""
    try:
        lines = file.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise UsageError(f"the prompts file {file} cannot be read: {error.strerror}") from error
    places = []
    for number, line in enumerate(lines, 1):
        place = f"{file}, line {number}"
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise UsageError(f"{place} is not UTF-8 text: {error.reason} at byte {error.start + 1}") from error
        if "\0" in text:
            raise UsageError(f"{place} holds a zero byte: is this a text file?")
        if text.strip():
            places.append((place, text))
    if not places:
        raise UsageError(f"the prompts file {file} holds no prompts")
    return places


def parse(description: str | None) -> Flags:
    """Read `sys.argv`; `--help` and a mistaken flag end the program (exit codes 0 and 2)."""
    try:
        return tyro.cli(Flags, description=description, prog="serve/batch.py", config=(tyro.conf.FlagCreatePairsOff,))
    except UsageError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(EXIT_USAGE)
