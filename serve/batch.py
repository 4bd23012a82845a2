"""Segment or classify many pictures, on one machine or a cluster.

    python serve/batch.py photos --prompt "red circle" --prompt star --output results/batch/photos
    python serve/batch.py 'photos/**/*.jpg' --prompts-file prompts.txt --preset tiny --overlays --output out
    python serve/batch.py train.parquet --image-column img --prompt ring --output s3://bucket/rings
    python serve/batch.py photos --classifier results/patch_size/latest/best --output classes

Results are parquet (a row a picture, prompt and instance), COCO's JSON, and errors.parquet for pictures that cannot be
used. Stopped at any moment and started again, a job does only what is missing. docs/batch.md names every column.
"""

import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from core.segment.calibration import Calibration
from nodes.command import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, UsageError, say, say_error
from serve.batch_cluster import Workers, connect, plan_workers
from serve.batch_finish import finish, is_finished
from serve.batch_flags import Flags, parse
from serve.batch_input import Input, find_input, without_output
from serve.batch_job import RESULTS, Job, open_job
from serve.batch_models import Classification, Segmentation, Task
from serve.batch_progress import ProgressLine
from serve.batch_storage import Store
from serve.batch_worker import JobStopped, ShardWorker, Work


def main(flags: Flags) -> int:
    """Run the job; returns the exit code."""
    from ray.exceptions import RayError

    try:
        job, task, source = _prepare(flags)
        pending = sorted(set(range(job.num_shards)) - job.done())
        if not pending and is_finished(job):
            say("This job is finished; nothing is left to do.")
        else:
            _run(flags, job, task, source, pending)
        _conclude(job)
    except UsageError as problem:
        say_error(str(problem))
        return EXIT_USAGE
    except KeyboardInterrupt:
        say("\nStopped. What was done is kept: the same command goes on.")
        return EXIT_INTERRUPTED
    except (JobStopped, OSError, RayError) as problem:
        say_error(f"the job cannot go on: {problem}\nWhat was done is kept: the same command goes on.")
        return EXIT_FAILED
    return EXIT_OK


def _prepare(flags: Flags) -> tuple[Job, Task, Input]:
    """Check all that can be checked before Ray is started, and open the output."""
    task = _task(flags)
    source = find_input(
        flags.input, recursive=flags.recursive, image_column=flags.image_column, id_column=flags.id_column
    )
    store = Store.at(flags.output)
    source = without_output(source, store)
    try:
        model: Any = task.load("cpu")  # workers load it again, where they are; a mistake is known here at once
    except ValueError as problem:
        raise UsageError(str(problem)) from problem
    settings = task.settings(model) | {
        "max_pixels": flags.max_pixels,
        "image_column": flags.image_column,
        "id_column": flags.id_column,
    }
    return open_job(store, settings, source, flags.shard_size), task, source


def _task(flags: Flags) -> Task:
    if flags.classifier is not None:
        return Classification(folder=flags.classifier.expanduser().resolve(), top_k=flags.top_k)
    try:
        calibration = None if flags.calibration is None else Calibration.load(flags.calibration)
    except ValueError as problem:
        raise UsageError(str(problem)) from problem
    return Segmentation(
        prompts=tuple(flags.prompts()),
        options=flags.options(),
        preset=flags.preset,
        clipseg=flags.clipseg,
        sam2=flags.sam2,
        calibration=calibration,
        overlays=flags.overlays,
    )


def _run(flags: Flags, job: Job, task: Task, source: Input, pending: list[int]) -> None:
    began = time.time()
    if pending:
        figures = _do_shards(flags, job, task, source, pending)
    else:
        job.begin_run({})
        figures = {}
    counts = finish(job)
    job.end_run({**figures, "seconds": round(time.time() - began, 2)}, counts)
    job.clean()


def _do_shards(flags: Flags, job: Job, task: Task, source: Input, pending: list[int]) -> dict[str, Any]:
    """Do what is missing; returns figures for the record."""
    import ray

    began = time.time()
    startup = 0.0
    done = job.num_pictures - job.pictures_in(set(pending))
    connect(flags.address)
    try:
        workers = plan_workers(flags, len(pending))
        job.begin_run({"workers": workers.number, "cpus_per_worker": workers.cpus, "gpus_per_worker": workers.gpus})
        left_out = f"; {source.left_out.total():,} other files left out" if source.left_out else ""
        earlier = f", {done:,} of them done before" if done else ""
        say(f"{job.num_pictures:,} pictures{earlier}{left_out}; {workers.number} workers load the models")
        work = Work(
            task=task,
            source=replace(source, files=()),  # what a glob matched is in the listing
            store=job.store,
            run=uuid.uuid4().hex,
            max_pixels=flags.max_pixels,
            batch_size=flags.batch_size,
            threads=workers.cpus,
            device="cuda" if workers.gpus else "cpu",
        )
        with ProgressLine(total=job.num_pictures, done=done) as progress:
            for shard in _stream(work, pending, workers):
                if shard["stopped"]:
                    raise JobStopped(shard["stopped"])
                startup = startup or shard["began"] - began
                progress.add(pictures=shard["pictures"], unusable=shard["unusable"], began=shard["began"])
    finally:
        ray.shutdown()
    return {
        "pictures": job.num_pictures - done,
        "startup_s": round(startup, 2),
        "pictures_per_s": round(progress.rate, 3),
    }


def _stream(work: Work, pending: list[int], workers: Workers) -> Iterator[dict[str, Any]]:
    """Shards through a pool of actors, a block a shard, so that what is held does not depend on how many there are."""
    import pyarrow as pa
    from ray.data import ActorPoolStrategy, from_arrow

    # Two in the hands of a worker: the next is there when one ends, and none has many left when others have none.
    pool = ActorPoolStrategy(size=workers.number, max_tasks_in_flight_per_actor=2)
    done = from_arrow([pa.table({"shard": [shard]}) for shard in pending]).map_batches(
        ShardWorker,
        fn_constructor_args=(work,),
        batch_format="pyarrow",
        batch_size=1,
        compute=pool,
        num_cpus=workers.cpus,
        num_gpus=workers.gpus,
    )
    blocks: Any = done.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow")
    for block in blocks:
        yield from block.to_pylist()


def _conclude(job: Job) -> None:
    counts = job.record["counts"]
    if counts["unusable"]:
        say(f"{counts['unusable']:,} of {counts['pictures']:,} pictures cannot be used: errors.parquet says why")
    if "instances" in counts:
        say(f"{counts['instances']:,} instances in {counts['answered']:,} pictures")
    beside = "batch.json, errors.parquet" + (", instances.json" if "instances" in counts else "")
    say(f"results: {job.store.shown(RESULTS)} (beside it {beside})")


if __name__ == "__main__":
    sys.exit(main(parse(__doc__)))
