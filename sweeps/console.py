"""What a sweep says on the terminal before and after its trials; `sweeps.progress` shows them while they run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from core.data import Dataset
from core.train_config import Plan
from nodes import command
from nodes.command import say
from sweeps.flags import Flags
from sweeps.progress import format_count
from sweeps.question import Resolved, Sweep
from sweeps.report import Answer, answer_of, summary_rows
from sweeps.results import SweepResults
from sweeps.run_folder import RunFolder


def say_how_to_resume(sweep: str, folder: Path | None, why: str) -> None:
    """The last words of a run that was stopped."""
    say(f"\n{why}.")
    if folder is not None:
        say(f"What was done is kept. Go on with:\n  python sweeps/{sweep}.py --resume {folder}")


def say_how_to_finish(sweep: str, folder: Path) -> None:
    """The other way on from there."""
    say(f"or end it by what is trained:\n  python sweeps/{sweep}.py --resume {folder} --finish")


def announce(
    sweep: Sweep, flags: Flags, resolved: Resolved, plans: Mapping[Any, Plan | None], data: Dataset, folder: Path
) -> None:
    """Question, data, and what a trial of each level costs."""
    command.OUT.print(f"[bold]{sweep.question}[/bold]")
    say(
        f"{resolved.num_trials} trials ({flags.search} search) on {data.name} ({data.source}): {len(data.train):,} "
        f"training, {len(data.val):,} validation and {len(data.test):,} test pictures"
    )
    table = Table(box=None)
    for heading in (sweep.factor, "GFLOPs a picture", "pictures", "passes", "FLOPs a trial", "parameters"):
        table.add_column(heading, justify="right")
    for level, plan in plans.items():
        if plan is None:
            table.add_row(str(level), "cannot be built")
            continue
        images = plan.num_steps * plan.batch_size
        table.add_row(
            str(level),
            f"{plan.train_flops(plan.num_steps) / images / 1e9:.3g}",
            f"{images:,}",
            f"{images / len(data.train):.1f}",
            f"{plan.train_flops(plan.num_steps):.2g}",
            format_count(plan.num_params),
        )
    command.OUT.print(table)
    say(f"results: {folder}\n")


def conclude(results: SweepResults, answer: Answer, run: RunFolder) -> None:
    """Failures, the table, the answer, the folder, and the command that serves the winner."""
    failed = results.trials.loc[results.trials["status"] == "failed", ["trial", "error"]]
    if len(failed):
        say(f"{len(failed)} of {len(results.trials)} trials failed:")
        for trial, reason in failed.itertuples(index=False):
            say(f"  {trial}: {reason}")
        say()
    if run.best.is_dir():
        headings, rows = summary_rows(results)
        table = Table(box=None)
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        # Wider than a narrow terminal or a pipe, rather than cut off.
        Console(highlight=False, width=max(110, command.OUT.width)).print(table)
    say(f"\n{answer_of(results, answer)}\n")
    say(f"results: {run.path} (report.html, report.md, trials.parquet, epochs.parquet)")
    if run.best.is_dir():
        say(f"serve the winner: serve run serve.config classifier={run.best}")
