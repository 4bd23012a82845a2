"""The end of a batch job: the parts' errors in one file, the instances as COCO's JSON, and the counts."""

import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow.compute as pc
import pyarrow.parquet as pq

from serve.batch_job import ERROR_SCHEMA, ERRORS, RESULTS, Job, read_parts

ERRORS_FILE, COCO_FILE = "errors.parquet", "instances.json"


def finish(job: Job) -> dict[str, int]:
    """Write what is made of all parts, one of which is in memory at a time; returns the counts."""
    counts = {"pictures": job.num_pictures, "unusable": _write_errors(job)}
    settings = job.record["settings"]
    if settings["task"] == "segment":
        counts |= _write_coco(job, settings["prompts"])
    return counts


def is_finished(job: Job) -> bool:
    """Whether all has been written before and is still there."""
    names = job.store.names()
    wanted = {ERRORS_FILE, COCO_FILE} if job.record["settings"]["task"] == "segment" else {ERRORS_FILE}
    return job.finished and wanted <= set(names)


def _write_errors(job: Job) -> int:
    rows = 0
    with job.store.writing(ERRORS_FILE) as file, pq.ParquetWriter(file, ERROR_SCHEMA, compression="zstd") as writer:
        for table in read_parts(job.store, ERRORS):
            writer.write_table(table)
            rows += table.num_rows
    return rows


def _write_coco(job: Job, prompts: list[str]) -> dict[str, int]:
    """COCO's instance format, in two passes over the parts: the pictures, then their objects."""
    numbers = {prompt: number for number, prompt in enumerate(prompts, 1)}
    with job.store.writing(COCO_FILE) as file:
        _write(file, '{"info": {"description": "Patchwork batch segmentation"},\n"licenses": [],\n"categories": ')
        _write(file, json.dumps([{"id": number, "name": prompt} for prompt, number in numbers.items()]))
        _write(file, ',\n"images": [')
        usable = _write_list(file, _coco_images(job))
        _write(file, '],\n"annotations": [')
        instances = _write_list(file, _coco_annotations(job, numbers))
        _write(file, "]}\n")
    return {"answered": usable, "instances": instances}


def _coco_images(job: Job) -> Iterator[dict[str, Any]]:
    for table in read_parts(job.store, RESULTS, ["image_id", "picture", "width", "height"]):
        previous = None
        for row in table.to_pylist():
            if row["image_id"] != previous:  # a picture's rows follow one another
                previous = row["image_id"]
                size = {"width": row["width"], "height": row["height"]}
                yield {"id": previous, "file_name": row["picture"], **size}


def _coco_annotations(job: Job, numbers: dict[str, int]) -> Iterator[dict[str, Any]]:
    number = 0
    for table in read_parts(job.store, RESULTS):
        for row in table.filter(pc.field("found")).to_pylist():
            number += 1
            yield {
                "id": number,
                "image_id": row["image_id"],
                "category_id": numbers[row["prompt"]],
                "bbox": [row["left"], row["top"], row["right"] - row["left"], row["bottom"] - row["top"]],
                "area": row["area"],
                "iscrowd": 0,
                "score": row["score"],
                "segmentation": {"size": [row["height"], row["width"]], "counts": row["mask_rle"]},
            }


def _write_list(file: BinaryIO, entries: Iterator[dict[str, Any]]) -> int:
    count = 0
    text = io.TextIOWrapper(file, encoding="utf-8", write_through=True)
    for count, entry in enumerate(entries, 1):
        text.write(("\n" if count == 1 else ",\n") + json.dumps(entry))
    text.detach()
    return count


def _write(file: BinaryIO, text: str) -> None:
    file.write(text.encode())
