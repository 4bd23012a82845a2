"""The README's numbers are those of the records, and its links lead somewhere."""

import importlib
import json
import re
from pathlib import Path

import pytest

from sweeps.report import answer_of, markdown_table, summary_rows
from sweeps.results import load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RECORDS = sorted(file.parent for file in ROOT.glob("docs/records/*/*/sweep.json"))


@pytest.mark.parametrize("folder", RECORDS, ids=lambda folder: folder.name)
def test_table_answer_and_command_are_the_records(folder: Path) -> None:
    results = load(folder)
    sweep = importlib.import_module(f"sweeps.{results.sweep['sweep']}").SWEEP
    for text in (README, (folder / "report.md").read_text()):
        assert markdown_table(*summary_rows(results)) in text
        assert answer_of(results, sweep.answer) in text.replace("\n", " ")
    assert results.sweep["command"].replace(f" --name {folder.name}", "") in README


def test_segmentation_table_is_the_records() -> None:
    scores = json.loads((ROOT / "docs/records/segmentation/answers.json").read_text())["scores"]
    for row, name in (("prototype", "prototype"), ("coarse masks only", "coarse only"), ("Patchwork", "ours")):
        one = scores[name]
        numbers = [f"{one[column]:.3f}" for column in ("mean_iou", "boundary_f", "ap50")]
        shares = [f"{one[column]:.1%}" for column in ("found", "absent")]
        assert " | ".join([f"| {row}", *numbers, *shares]) in README


def test_segmentation_figures_are_the_records() -> None:
    folder = ROOT / "docs/records/segmentation"
    answers, damage, thresholds = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("answers", "damage", "thresholds")
    )
    for of in ("of all prompts", "of those that name something"):
        assert f"{answers['worse_than_coarse'][of]:.2%}" in README
    for verdict in damage["verdicts"]:
        kind = verdict["claim"].removeprefix("lost to ").partition(" of strength")[0]
        assert f"{kind} {round(verdict['measured'], 2) + 0.0:.2f}" in README
    for verdict in thresholds["verdicts"]:
        assert f"{verdict['measured']:.4f}" in README


def test_there_are_records() -> None:
    assert RECORDS


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{f.name}" for f in ROOT.glob("docs/*.md"))])
def test_links_lead_to_files(page: str) -> None:
    file = ROOT / page
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", file.read_text()):
        assert (file.parent / target).exists(), target
