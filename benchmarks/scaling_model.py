"""The figures and tables of docs/scaling.md: what was measured, and a model on paper of a thousand GPUs.

    python -m benchmarks.scaling_model            # print the tables
    python -m benchmarks.scaling_model --write    # put them into docs/scaling.md, and draw the figures

Every constant marked `measured` is read from the records that `benchmarks.scaling` wrote into docs/records/scaling;
every constant marked `assumed` stands in `Assumptions`, and is to be replaced by one's own.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import tyro

from benchmarks.record import spread
from serve.batch_input import Item, cut

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "docs" / "records" / "scaling"
PAGE = ROOT / "docs" / "scaling.md"
FIGURE = "figures/growth.png"
_GB, _HOUR = 1e9, 3600.0
_STATE_FILES = 4  # of a trial, copied with every snapshot: result.json, params.json, params.pkl, TensorBoard's
_CHECKPOINT_FILES = 4  # weights, config, training state, history


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What was not measured here. Prices are round figures of public clouds, in dollars."""

    gpus: int = 1000
    gpus_a_node: int = 8
    pictures: int = 100_000_000
    picture_bytes: float = 100_000
    pictures_a_second_and_gpu: float = 50
    """Segmentation, `tiny` preset, two prompts. Nothing here was run on a GPU: halve it, double it."""
    trial_hours: float = 1.0
    reports: int = 8
    dataset_bytes: float = 184e6
    """CIFAR-10 as arrays."""
    network_bytes_a_second: float = 1.25e9
    """10 Gbit/s a node."""
    gpu_hour: float = 0.40
    """At spot prices."""
    puts_per_million: float = 5.0
    gets_per_million: float = 0.4


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Constants from the records, each on this machine.

    trial_s, report_s: the driver's CPU seconds for one more trial, and for one more report with a checkpoint.
    snapshot_bytes: of Tune's record, a trial. listing_s: CPU seconds of the beginning of a batch job, a picture.
    reads_a_picture, reads_a_shard, writes_a_shard: requests of a batch job to an object store.
    requests_per_second: of the lightest route at the most requests at once.
    """

    trial_s: float
    report_s: float
    snapshot_bytes: float
    listing_s: float
    reads_a_picture: float
    reads_a_shard: float
    writes_a_shard: float
    requests_per_second: float


def read(part: str) -> list[dict[str, Any]]:
    """The rows of a record; none if that part was not measured."""
    file = RECORDS / f"{part}.json"
    return json.loads(file.read_text())["rows"] if file.exists() else []


def measured() -> Measured:
    """
    Raises:
        FileNotFoundError: a part that the model needs has no record.
    """
    trials, reports, pictures, requests = (_needed(part) for part in ("trials", "reports", "pictures", "requests"))
    first, more_shards, more_pictures = _needed("storage")
    shards = more_shards["shards"] - first["shards"]
    few, many = trials[-2], trials[-1]
    once, often = reports[0], reports[-1]
    more_reports = once["trials"] * (often["reports"] - once["reports"])
    return Measured(
        trial_s=(many["driver_cpu_seconds"] - few["driver_cpu_seconds"]) / (many["trials"] - few["trials"]),
        report_s=max(0.0, often["driver_cpu_seconds"] - once["driver_cpu_seconds"]) / more_reports,
        snapshot_bytes=many["snapshot_bytes"] / many["trials"],
        listing_s=pictures[-1]["begin_cpu_seconds"] / pictures[-1]["pictures"],
        reads_a_picture=(more_pictures["reads"] - more_shards["reads"])
        / (more_pictures["pictures"] - more_shards["pictures"]),
        reads_a_shard=(more_shards["reads"] - first["reads"]) / shards,
        writes_a_shard=(more_shards["writes"] - first["writes"]) / shards,
        requests_per_second=max(row["per_second"] for row in requests if row["at_once"] == requests[-1]["at_once"]),
    )


def _needed(part: str) -> list[dict[str, Any]]:
    rows = read(part)
    if not rows:
        raise FileNotFoundError(f"{RECORDS / part}.json: run python -m benchmarks.scaling --output {RECORDS}")
    return rows


def shards_of(pictures: int) -> int:
    """How many shards a batch job cuts a listing into, by the code that does it; from a million on all are equal."""
    nothing = Item(b"", -1, 0)
    sizes = [len(shard) for shard in cut(([nothing] for _ in range(min(pictures, 1_200_000))), None)]
    return len(sizes) + math.ceil((pictures - sum(sizes)) / max(sizes))


def sweep_model(a: Assumptions, m: Measured) -> list[tuple[str, str, str]]:
    """Rows of quantity, value, how it follows, for a sweep whose trials keep all GPUs busy."""
    trials_a_second = a.gpus / (a.trial_hours * _HOUR)
    shortest = a.gpus * (m.trial_s + a.reports * m.report_s)
    driver = shortest / (a.trial_hours * _HOUR)
    nodes = math.ceil(a.gpus / a.gpus_a_node)
    trials = round(trials_a_second * 24 * _HOUR)
    snapshots = 24 * _HOUR / max(1, trials // 100)
    operations = snapshots * trials * _STATE_FILES / 2 + trials * a.reports * _CHECKPOINT_FILES
    return [
        ("trials in a day", f"{trials:,}", f"{a.gpus:,} GPUs, {a.trial_hours:g} h a trial (assumed)"),
        (
            "driver busy",
            f"{driver:.1%}",
            f"{m.trial_s * 1000:.0f} ms a trial + {a.reports} x {m.report_s * 1000:.0f} ms a report (measured)",
        ),
        ("shortest trial that keeps all GPUs busy", f"{shortest:,.0f} s", "the driver then does nothing else"),
        (
            "Tune's record at the end of the day",
            f"{trials * m.snapshot_bytes / 2**20:,.0f} MiB",
            f"{m.snapshot_bytes / 1000:.1f} kB a trial (measured), rewritten whole {snapshots:,.0f} times",
        ),
        (
            "storage writes",
            f"{operations / 1e6:,.1f} million",
            f"{_STATE_FILES} files of every trial at each snapshot, {_CHECKPOINT_FILES} a report; "
            f"{operations / 1e6 * a.puts_per_million:,.0f} dollars on an object store",
        ),
        (
            "object store",
            f"{a.dataset_bytes / _GB:.2f} GB a node",
            f"one copy a node, whatever runs on it; {nodes} nodes fetch it in at most "
            f"{nodes * a.dataset_bytes / a.network_bytes_a_second:.0f} s if all ask the head",
        ),
        ("cost", f"{a.gpus * 24 * a.gpu_hour:,.0f} dollars a day", f"{a.gpu_hour:.2f} dollars a GPU hour (assumed)"),
    ]


def batch_model(a: Assumptions, m: Measured, shards: int) -> list[tuple[str, str, str]]:
    """The same for a batch job over all pictures on all GPUs."""
    rate = a.gpus * a.pictures_a_second_and_gpu
    hours = a.pictures / rate / _HOUR
    listing = a.pictures * m.listing_s
    gets = a.pictures * m.reads_a_picture + shards * m.reads_a_shard
    puts = shards * m.writes_a_shard
    storage = gets / 1e6 * a.gets_per_million + puts / 1e6 * a.puts_per_million
    return [
        (
            "pictures a second",
            f"{rate:,.0f}",
            f"{a.pictures_a_second_and_gpu:g} a GPU (assumed), independent of each other",
        ),
        ("time on the GPUs", f"{hours * 60:,.0f} minutes", f"{a.pictures:,} pictures"),
        (
            "listing before the first picture",
            f"{listing / 60:,.0f} minutes",
            f"{m.listing_s * 1e6:.0f} µs of CPU a picture (measured), on the driver alone",
        ),
        ("shards", f"{shards:,}", "by the code that cuts them"),
        (
            "read from storage",
            f"{a.pictures * a.picture_bytes / 1e12:,.0f} TB",
            f"{rate * a.picture_bytes / _GB:.0f} GB/s",
        ),
        (
            "storage operations",
            f"{(gets + puts) / 1e6:,.1f} million",
            f"{m.reads_a_picture:g} reads a picture, {m.reads_a_shard:g} reads and {m.writes_a_shard:g} writes a shard "
            f"(measured): {storage:,.0f} dollars on an object store",
        ),
        ("cost of the GPUs", f"{hours * a.gpus * a.gpu_hour:,.0f} dollars", f"{hours:.2f} h x {a.gpus:,} GPUs"),
    ]


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(headings), " | ".join("---" for _ in headings), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def tables() -> dict[str, str]:
    """The tables of the page by name; those of parts without a record are left out."""
    found: dict[str, str] = {}
    if rows := read("trials"):
        found["trials"] = markdown(
            ("trials", "s a trial", "driver CPU s a trial", "Tune's record, MB", "files"),
            [
                (
                    f"{row['trials']:,}",
                    f"{row['seconds'] / row['trials']:.3f}",
                    f"{row['driver_cpu_seconds'] / row['trials']:.3f}",
                    f"{row['snapshot_bytes'] / 1e6:.2f}",
                    f"{row['files']:,}",
                )
                for row in rows
            ],
        )
    if rows := read("reports"):
        found["reports"] = markdown(
            ("reports a trial", "trials", "s in all", "driver CPU s in all"),
            [
                (
                    f"{row['reports']}",
                    f"{row['trials']}",
                    f"{row['seconds']:.1f}",
                    f"{row['driver_cpu_seconds']:.1f}",
                )
                for row in rows
            ],
        )
    if rows := read("nodes"):
        found["nodes"] = markdown(
            ("nodes", "s until they are up", "s until 20 MB are on all", "s a trial"),
            [
                (
                    f"{row['nodes']}",
                    f"{row['up_seconds']:.1f}",
                    f"{row['object_to_all_nodes_seconds']:.2f}",
                    f"{row['seconds'] / row['trials']:.3f}",
                )
                for row in rows
            ],
        )
    if rows := read("pictures"):
        found["pictures"] = markdown(
            (
                "pictures",
                "begin, s",
                "CPU µs a picture",
                "resume, s",
                "CPU µs a picture",
                "shards",
                "MB",
                "memory, MiB",
            ),
            [
                (
                    f"{row['pictures']:,}",
                    f"{row['begin_seconds']:.2f}",
                    f"{row['begin_cpu_seconds'] / row['pictures'] * 1e6:.1f}",
                    f"{row['resume_seconds']:.2f}",
                    f"{row['resume_cpu_seconds'] / row['pictures'] * 1e6:.1f}",
                    f"{row['shards']:,}",
                    f"{row['listing_bytes'] / 1e6:.2f}",
                    f"{row['rss_mib']:,.0f}",
                )
                for row in rows
            ],
        )
    if rows := read("requests"):
        found["requests"] = markdown(
            ("route", "at once", "requests/s", "median ms", "99% within, ms", "not 200"),
            [
                (
                    f"`{row['path']}`",
                    f"{row['at_once']:,}",
                    f"{row['per_second']:,.0f}",
                    f"{row['median_ms']:,.0f}",
                    f"{row['p99_ms']:,.0f}",
                    f"{row['failed']}",
                )
                for row in rows
            ],
        )
    if (file := RECORDS / "node_deaths.json").exists():
        record = json.loads(file.read_text())
        kills = record["kills"]
        recoveries = [kill["recovery_s"] for kill in kills if kill["recovery_s"] is not None]
        found["node deaths"] = markdown(
            ("nodes killed", "trials interrupted", "s until further than before, median (range)", "s undisturbed"),
            [
                (
                    f"{len(kills)}",
                    f"{sum(kill['interrupted'] for kill in kills)}",
                    spread(recoveries).text(".1f"),
                    spread(record["undisturbed_s"]).text(".1f"),
                )
            ],
        )
    if (RECORDS / FIGURE).exists():
        found["figure"] = f"![How cost grows with trials, pictures, nodes and requests](records/scaling/{FIGURE})"
    if all(read(part) for part in ("trials", "reports", "pictures", "requests")):
        a, m = Assumptions(), measured()
        found["model of a sweep"] = markdown(("quantity", "value", "from"), sweep_model(a, m))
        found["model of a batch job"] = markdown(
            ("quantity", "value", "from"), batch_model(a, m, shards_of(a.pictures))
        )
    return found


def with_tables(page: str, found: dict[str, str]) -> str:
    """The page with the text between `<!-- NAME -->` and `<!-- end -->` replaced by the table of that name."""

    def replace(match: re.Match[str]) -> str:
        table = found.get(match["name"], "Not measured yet.")
        return f"<!-- {match['name']} -->\n{table}\n<!-- end -->"

    return re.sub(r"<!-- (?P<name>(?!end)[\w ]+) -->\n.*?<!-- end -->", replace, page, flags=re.DOTALL)


def draw() -> None:
    """A panel a part: how its cost grows, beside a straight line through its first point."""
    panels = [
        ("trials", "trials", "driver_cpu_seconds", "trivial trials", "driver CPU seconds"),
        ("pictures", "pictures", "begin_cpu_seconds", "pictures listed", "CPU seconds"),
        ("nodes", "nodes", "up_seconds", "nodes", "seconds until up"),
        ("requests", "at_once", "median_ms", "requests at once", "median ms"),
    ]
    present = [panel for panel in panels if read(panel[0])]
    figure, all_axes = plt.subplots(
        1, len(present), figsize=(3.4 * len(present), 3.2), layout="constrained", squeeze=False
    )
    for axes, (part, x_name, y_name, x_label, y_label) in zip(all_axes[0], present, strict=True):
        rows = read(part)
        if part == "requests":
            rows = [row for row in rows if row["path"] == rows[0]["path"]]
        x, y = [row[x_name] for row in rows], [row[y_name] for row in rows]
        axes.plot(x, y, marker="o", label="measured")
        axes.plot(x, [y[0] * value / x[0] for value in x], color="grey", linestyle=":", label="proportional")
        axes.set(xlabel=x_label, ylabel=y_label, xscale="log", yscale="log")
        axes.legend(frameon=False)
    (RECORDS / FIGURE).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(RECORDS / FIGURE, dpi=110)
    plt.close(figure)


def main(write: bool = False) -> None:
    """
    Args:
        write: put the tables into docs/scaling.md and draw the figure, instead of printing the tables.
    """
    if not write:
        for name, table in tables().items():
            print(f"\n{name}\n\n{table}")
        return
    draw()
    PAGE.write_text(with_tables(PAGE.read_text(), tables()))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
