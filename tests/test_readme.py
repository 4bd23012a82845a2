"""The README's numbers are those of the records, and its links lead somewhere."""

import importlib
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from sweeps.report import answer_of, markdown_table, summary_rows
from sweeps.results import SweepResults, load, merged

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PROSE = README.replace("\n", " ")
RECORDS = sorted(file.parent for file in ROOT.glob("docs/records/*/*/sweep.json"))
# The README shows these as one table each, and the command that prints it.
TOGETHER = [
    [ROOT / folder for folder in line.split()] for line in re.findall(r"^python -m sweeps\.report (.*)$", README, re.M)
]


@pytest.mark.parametrize("folder", RECORDS, ids=lambda folder: folder.name)
def test_table_answer_and_command_are_the_records(folder: Path) -> None:
    results = load(folder)
    check_told(results, (folder / "report.md").read_text())
    if not any(folder in folders for folders in TOGETHER):
        check_told(results, README)
    assert results.sweep["command"].replace(f" --name {folder.name}", "") in README


@pytest.mark.parametrize("folders", TOGETHER, ids=lambda folders: folders[0].name)
def test_a_table_of_several_records_is_theirs(folders: list[Path]) -> None:
    check_told(merged([load(folder) for folder in folders]), README)


def check_told(results: SweepResults, text: str) -> None:
    sweep = importlib.import_module(f"sweeps.{results.sweep['sweep']}").SWEEP
    assert markdown_table(*summary_rows(results)) in text
    assert answer_of(results, sweep.answer) in text.replace("\n", " ")


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


THROUGHPUTS = re.findall(r"^\| (?:`demo`|full size), .*$", README, re.M)
SERVICE_TARGETS = {"plain": 3, "litserve": 1.2, "in process": 0.85}
JOB_TARGETS = {"over_documented": 2, "share_of_one_process_percent": 90}


@pytest.mark.parametrize("row", THROUGHPUTS)
def test_throughputs_are_the_records(row: str) -> None:
    setting, *cells, link = (cell.strip() for cell in row.strip("|").split("|"))
    record = json.loads((ROOT / re.findall(r"\((.*)\)", link)[0]).read_text())
    models, *numbers, processor = setting.split(", ")
    settings, is_service = record["settings"], record["benchmark"] == "serving"
    assert models.strip("`").replace(" ", "-") == settings["models"]
    wanted = [settings["concurrencies"][-1]] if is_service else [settings["prompts"], settings["pictures"]]
    assert [int(number) for number in numbers] == wanted
    assert processor.split()[0] in record["machine"]["cpu"]
    assert ("without bf16" in processor) != record["machine"]["bf16"]
    ratios, targets = (record["ratios"], SERVICE_TARGETS) if is_service else (record, JOB_TARGETS)
    for cell, (name, target) in zip(cells, targets.items(), strict=True):
        if name not in ratios:
            assert not cell
            continue
        scale = 100 if name.endswith("percent") else 1
        median, low, high = (ratios[name][of] / scale for of in ("median", "low", "high"))
        spread = f" ({low:.2f} to {high:.2f})" if low < high else ""
        assert cell == f"{median:.2f}{spread}{'' if median >= target / scale else ': missed'}"


def test_what_the_service_adds_and_refuses_is_the_records() -> None:
    ways = json.loads((ROOT / "docs/records/serving/overhead.json").read_text())
    assert set(ways["overhead_ms"]) == {"proxy", "haproxy", "optimised", "bare"}
    for one in ways["overhead_ms"].values():
        assert f"{one['median']:.1f} ms ({one['low']:.1f} to {one['high']:.1f})" in PROSE
    overload = json.loads((ROOT / "docs/records/serving/overload.json").read_text())
    assert f"refused in {overload['refusals_ms']['p95']:.0f} ms" in PROSE
    share = next(one["measured"] for one in overload["verdicts"] if one["claim"].startswith("answered"))
    assert f"{share:.0f}% of the sustainable rate" in PROSE


@pytest.mark.parametrize("name", ["speed", "full_size", "full_size_32"])
def test_the_services_latencies_are_the_records(name: str) -> None:
    rounds = json.loads((ROOT / f"docs/records/serving/{name}.json").read_text())["rounds"]
    rows = pd.DataFrame([row for one in rounds for row in one["rows"]])
    middles = rows.groupby(["contender", "concurrency"], sort=False)[["per_second", "p50", "p95", "p99"]].median()
    page = (ROOT / "docs" / "service.md").read_text()
    for (contender, concurrency), (per_second, *times) in zip(middles.index, middles.to_numpy(), strict=True):
        seconds = " | ".join(f"{one / 1000:.2f}" for one in times)
        assert f"| {contender} | {concurrency} | {per_second:.2f} | {seconds} |" in page


def test_the_training_step_is_the_records() -> None:
    for name in ("training", "training_amx"):
        record = json.loads((ROOT / f"docs/records/benchmarks/{name}.json").read_text())
        usual, tuned, share = (verdict["measured"] for verdict in record["verdicts"])
        for ratio in (usual, tuned):
            assert f"{ratio:.2f}x (" in PROSE
        assert f"{share:.0f}%" in PROSE
        assert f"{100 * record['share_of_matrix_products']:.0f}%" in PROSE


def test_there_are_records() -> None:
    assert RECORDS and len(THROUGHPUTS) == 7


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{f.name}" for f in ROOT.glob("docs/*.md"))])
def test_links_lead_to_files(page: str) -> None:
    file = ROOT / page
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", file.read_text()):
        assert (file.parent / target).exists(), target


def test_the_searches_are_the_records() -> None:
    record = json.loads((ROOT / "docs/records/search/search_efficiency.json").read_text())
    rows = [
        f"| {seed} | {one['trials']} | {one['stopped']} | {one['flops_share']:.1f}% | {100 * one['accuracy']:.1f}% | "
        f"{one['points_below']:.2f} |"
        for seed, one in enumerate(record["searches"])
    ]
    assert "\n".join(rows) in README
    assert f"{record['blind_points_below']:.2f} points below" in PROSE
    assert f"{record['blindly_halved_points_below']:.2f} points below" in PROSE
    assert f"{100 * max(cell['val_accuracy'] for cell in record['grid']):.1f}%" in README
