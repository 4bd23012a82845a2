import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import stdtrit

from sweeps import block_design, kd_temperature, report
from sweeps.answer import doubt, is_clear, ranking
from sweeps.figures import importance, pareto_front
from sweeps.patch_size import SWEEP, answer
from sweeps.report import answer_of, markdown_table, render, summary_rows
from sweeps.results import (
    Level,
    ResultsError,
    SweepResults,
    TrialRecord,
    differences,
    finalists,
    levels,
    load,
    merged,
    to_frames,
)


def record(patch_size: int, seed: int, accuracy: float | None, status: str = "completed", **more: Any) -> TrialRecord:
    history = [
        {
            "epoch": epoch,
            "attempt": 1,
            "progress": epoch / 2,
            "passes": epoch / 2,
            "images_seen": 500 * epoch,
            "train_flops": 1e9 * epoch,
            "train_loss": 2.0,
            "val_loss": 2.0,
            "val_accuracy": accuracy * epoch / 2,
            "num_params": 1000,
            "wall_s": 1.0,
            "cpu_s": 1.0,
        }
        for epoch in (1, 2)
        if accuracy is not None
    ]
    point = {"patch_size": patch_size, "seed": seed, **more}
    name = f"{point}"
    return TrialRecord(
        name=name,
        trial_id=name,
        point=point,
        status=status,
        error="boom | <script>" if status == "failed" else None,
        history=history,
        checkpoint=None,
    )


RECORDS = [
    *(record(4, seed, 0.6 + 0.01 * seed) for seed in range(3)),
    *(record(8, seed, 0.5 + 0.01 * seed) for seed in range(3)),
    record(16, 0, None, status="failed"),
    record(2, 0, 0.9, status="stopped"),
]


def example(folder: Path, records: list[TrialRecord] = RECORDS) -> SweepResults:
    trials, epochs = to_frames(records)
    trials.loc[finalists(trials, "patch_size"), "test_accuracy"] = 0.55
    sweep = {
        "sweep": "patch_size",
        "question": SWEEP.question,
        "factor": "patch_size",
        "command": "python sweeps/patch_size.py",
        "started": "2026-01-01",
        "commit": "abc",
        "base": {"depth": 6},
        "machine": {"cpu": "a CPU", "cores": 2, "memory_gib": 8, "gpus": [], "versions": {"torch": "2"}},
        "dataset": {"name": "shapes", "source": "generated", "train": 1, "val": 1, "test": 1, "classes": []},
    }
    folder.mkdir(exist_ok=True)
    trials.to_parquet(folder / "trials.parquet")
    epochs.to_parquet(folder / "epochs.parquet")
    (folder / "sweep.json").write_text(json.dumps(sweep))
    return load(folder)


def test_every_trial_has_a_row_also_one_that_never_reported(tmp_path: Path) -> None:
    results = example(tmp_path)
    assert len(results.trials) == 8
    failed = results.trials.set_index("config/patch_size").loc[16]
    assert failed["status"] == "failed" and failed["error"] == "boom | <script>" and pd.isna(failed["val_accuracy"])
    assert len(results.epochs) == 14
    assert results.factors == ["config/patch_size"]


def test_a_setting_of_words_and_truths_is_kept_and_reported(tmp_path: Path) -> None:
    records = [record(p, s, 0.1 * p, flip=flip) for p in (4, 8) for s in range(2) for flip in (True, "alternating", 1)]
    results = example(tmp_path, records)
    assert set(results.trials["config/flip"]) == {"True", "alternating", "1"}
    render(results, answer)
    assert [level.n for level in levels(results.trials, "patch_size")] == [2, 2]
    (tmp_path / "pure").mkdir()
    assert example(tmp_path / "pure", [record(4, 0, 0.5, flip=True)]).trials["config/flip"].dtype == bool


def test_finalists_are_the_best_completed_setting_of_each_level_with_all_seeds() -> None:
    records = [
        *(record(4, seed, 0.6, learning_rate=0.1) for seed in range(2)),
        *(record(4, seed, 0.7, learning_rate=0.2) for seed in range(2)),
        record(4, 0, 0.99, learning_rate=0.3),  # its other seed failed
        record(4, 1, None, status="failed", learning_rate=0.3),
        record(8, 0, 0.5, learning_rate=0.1),
    ]
    trials, _ = to_frames(records)
    chosen = trials.loc[finalists(trials, "patch_size")]
    assert sorted(zip(chosen["config/patch_size"], chosen["config/learning_rate"], chosen["seed"], strict=True)) == [
        (4, 0.2, 0),
        (4, 0.2, 1),
        (8, 0.1, 0),
    ]


def test_levels_hold_mean_and_sample_deviation() -> None:
    trials, _ = to_frames(RECORDS)
    best, second = levels(trials, "patch_size")
    assert (best.value, second.value) == (4, 8)
    assert best.n == 3
    assert best.val_mean == pytest.approx(0.61)
    assert best.val_std == pytest.approx(0.01)


def test_the_answer_names_the_winner_its_lead_doubt_and_what_is_missing(tmp_path: Path) -> None:
    results = example(tmp_path)
    assert answer_of(results, answer) == (
        "Patch size 4 is best: 55.0 ± 0.0% test accuracy, 0.0 points above patch size 8 "
        "(chance alone could explain it, n=3). Of 2, 16 no trial was completed."
    )
    single = example(tmp_path / "single", [record(4, 0, 0.6), record(8, 0, 0.5)])
    assert answer_of(single, answer) == (
        "Patch size 4 is best: 55.0% test accuracy, 0.0 points above patch size 8. "
        "By one seed each: how much of it is chance is not known."
    )
    nothing = example(tmp_path / "none", [record(4, 0, None, status="failed")])
    assert answer_of(nothing, answer) == "No trial was completed, so there is no answer."


def level(value: str, test_mean: float, test_std: float, n: int = 2) -> Level:
    unused = dict.fromkeys(("train_flops", "teacher_flops", "images_seen", "passes", "cpu_s"), 0.0)
    accuracies = {"val_mean": test_mean, "val_std": test_std, "test_mean": test_mean, "test_std": test_std}
    return Level(value=value, n=n, num_params=1, **accuracies, **unused)


def test_the_answer_tells_whose_mean_lacks_seeds(tmp_path: Path) -> None:
    records = [
        record(4, 0, 0.6),
        record(4, 1, None, status="failed"),
        record(4, 2, 0.4, status="stopped"),
        *(record(8, seed, 0.5) for seed in range(3)),
    ]
    assert answer_of(example(tmp_path, records), answer).endswith(
        " Means without the seeds that failed or were stopped early: 4 (2 of 3 lost)."
    )


def test_a_sweep_that_has_not_ended_has_no_test_accuracy_to_answer_with(tmp_path: Path) -> None:
    results = example(tmp_path)
    results.trials["test_accuracy"] = math.nan
    assert answer_of(results, answer) == (
        "The sweep has not ended, and test accuracy is measured at the end. So far 4 leads with 61.0% in validation."
    )


def test_many_comparisons_ask_more_of_each() -> None:
    two = [level("a", 0.53, 0.006, n=3), level("b", 0.51, 0.006, n=3)]
    many = [*two, *(level(f"c{number}", 0.4, 0.006, n=3) for number in range(30))]
    assert not doubt(two, *two)
    assert doubt([*two, *many[2:5]], *two) == ""  # more seeds tell the spread better
    (one,), (first, *_) = differences(two, "b"), differences(many, "b")
    freedom = 2 * len(many)
    expected = 0.6 * stdtrit(freedom, 1 - 0.025 / (len(many) - 1)) * math.sqrt(2 / 3)
    assert first.high - first.points == pytest.approx(expected)
    assert one.high - one.points == pytest.approx(0.6 * stdtrit(4, 0.975) * math.sqrt(2 / 3))


def test_the_winner_in_validation_need_not_be_ahead_on_the_test_split() -> None:
    found = [level("a", 0.5, 0.01), level("b", 0.6, 0.01)]
    assert ranking(found, "size").startswith(
        "Size a is best in validation: 50.0 ± 1.0% test accuracy, 10.0 points below"
    )


def test_the_distance_to_the_last_is_doubted_too() -> None:
    found = [level("a", 0.53, 0.012), level("b", 0.525, 0.012), level("c", 0.52, 0.012)]
    assert ranking(found, "size").count("chance alone") == 2
    # Others than those ranked tell as well how much seeds vary.
    quiet, noisy = [level("a", 0.56, 0.001), level("b", 0.53, 0.001)], level("cnn", 0.9, 0.2)
    assert "chance alone" not in ranking(quiet, "size")
    assert "chance alone" in ranking([*quiet, noisy], "size", among=quiet)


def test_doubt_says_what_the_interval_beside_it_says() -> None:
    noisy, quiet, alone = level("noisy", 0.53, 0.012), level("quiet", 0.5, 0.012), level("alone", 0.4, math.nan, n=1)
    assert doubt([noisy, quiet], noisy, quiet)  # 3 points, 2.5 times the spread: t with 2 degrees of freedom asks more
    many = [level("noisy", 0.53, 0.012, n=5), level("quiet", 0.51, 0.012, n=5)]
    assert not doubt(many, *many)  # 2 points, 1.7 times the spread of five seeds
    for found in ([noisy, quiet], many, [noisy, quiet, alone]):
        (first, *_), (found_one, *_) = found, differences(found, "quiet")
        assert bool(doubt(found, first, found[1])) == (found_one.low <= 0 <= found_one.high)
    assert not doubt([noisy, quiet, alone], noisy, alone)  # the others tell how much seeds vary
    lone = level("lone", 0.9, math.nan, n=1)
    for one, two in ((alone, lone), (lone, alone)):
        assert not is_clear([one, two], one, two)
        assert not doubt([one, two], one, two)  # it is told once, for all of them
    assert "n=1" in doubt([noisy, quiet, level("lone", 0.5, math.nan, n=1)], noisy, level("lone", 0.5, math.nan, n=1))


def test_answers_name_what_they_compare() -> None:
    found = [level("no-teacher", 0.9, 0.01), level("T4", 0.6, 0.01), level("T2", 0.59, 0.01), level("T1", 0.2, 0.01)]
    assert " No clear difference from T4: T2. T4 is 30.0 points below no-teacher." in kd_temperature.answer(found)
    found = [level("cnn+explicit", 0.9, 0.01), level("qk-norm", 0.6, 0.01)]
    assert block_design.answer(found).startswith("Patch-only design qk-norm has 60.0")


def test_the_cost_names_the_teachers_share(tmp_path: Path) -> None:
    results = example(tmp_path)
    render(results, answer)
    assert "Cost: 1.4e+10 training FLOPs in 8 trials" in (tmp_path / "report.md").read_text()
    results.trials.loc[:1, "teacher_flops"] = 1e9
    render(results, answer)
    text = (tmp_path / "report.md").read_text()
    assert "Cost: 1.4e+10 training FLOPs, the teacher's forward passes 2e+09, in 8 trials" in text


def test_earlier_works_accuracy_stands_beside_the_levels_with_the_gain(tmp_path: Path) -> None:
    results = example(tmp_path)
    assert "prototype %" not in summary_rows(results)[0]
    results.sweep["prototype"] = {"4": 0.5}
    headings, rows = summary_rows(results)
    place = headings.index("test %") + 1
    assert headings[place : place + 2] == ["prototype %", "gain"]
    assert [row[place : place + 2] for row in rows] == [["50", "+5.0"], ["-", "-"]]


def test_runs_of_one_sweep_come_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [tmp_path / name for name in ("monday", "tuesday")]
    monday, tuesday = (
        example(folder, RECORDS[part]) for folder, part in zip(folders, (slice(4), slice(4, 8)), strict=True)
    )
    assert levels(merged([monday, tuesday]).trials, "patch_size") == levels(
        example(tmp_path / "all").trials, "patch_size"
    )
    monkeypatch.setattr("sys.argv", ["report", *map(str, folders)])
    assert report.main() == 0
    assert markdown_table(*summary_rows(merged([monday, tuesday]))) in capsys.readouterr().out
    with pytest.raises(ResultsError, match="more than one of"):
        merged([monday, monday])
    given_up = example(tmp_path / "sunday", [*RECORDS[:3], dataclasses.replace(RECORDS[4], status="unfinished")])
    assert given_up.trials["status"].tolist().count("unfinished") == 1
    together = merged([given_up, tuesday])
    assert (together.trials["status"] != "unfinished").all()
    assert not together.epochs.duplicated(["trial", "epoch"]).any()
    tuesday.sweep["bundles"] = {"8": {"depth": 3}}
    with pytest.raises(ResultsError, match=r"monday and \S+tuesday differ in 8"):
        merged([monday, tuesday])
    tuesday.sweep["base"] = {"depth": 7}
    with pytest.raises(ResultsError, match=r"differ in base: {'depth': 6} and {'depth': 7}"):
        merged([monday, tuesday])


def test_the_report_tells_where_each_trial_ran_and_its_settings_as_flags(tmp_path: Path) -> None:
    results = example(tmp_path)
    results.trials["hardware"] = ["Xeon"] * 5 + ["EPYC"] * 3
    results.sweep["base"] = {"layer_scale": None, "qk_norm": True}
    results.sweep["bundles"] = {"4": {"depth": 3}, "64": {"depth": 9}}
    render(results, answer)
    text = (tmp_path / "report.md").read_text()
    assert "- trained on Xeon (5 trials), EPYC (3 trials)" in text
    assert "- settings of all trials: `layer_scale=none qk_norm=true`" in text
    assert "- 4: `depth=3`" in text
    assert "depth=9" not in text  # no trial had it


def test_the_report_owns_that_the_best_of_several_settings_is_flattered(tmp_path: Path) -> None:
    searched = [record(4, 0, 0.1 * rate, learning_rate=rate) for rate in (1, 2, 3)]
    for records, flattered in ((searched, True), (RECORDS, False)):
        results = example(tmp_path / str(flattered), records)
        render(results, answer)
        for name in ("report.md", "report.html"):
            assert ("flatters it" in (results.folder / name).read_text()) == flattered


def test_the_report_is_whole_and_escaped(tmp_path: Path) -> None:
    results = example(tmp_path)
    render(results, answer)
    html, markdown = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    for text in (html, markdown):
        assert SWEEP.question in text
        assert "<script>" not in text
    assert "boom \\| &lt;script&gt;" in markdown
    figures = sorted(p.name for p in (tmp_path / "figures").iterdir())
    assert figures == ["accuracy_against_flops.png", "learning_curves.png", "spread_over_seeds.png"]
    assert all(f"figures/{name}" in html for name in figures)
    headings, rows = summary_rows(results)
    assert rows[0][headings.index("val %")] == "61.00 ± 1.00"


def test_importance_is_drawn_where_two_settings_vary(tmp_path: Path) -> None:
    records = [record(p, s, 0.1 * p + 0.001 * s) for p in (2, 4, 8) for s in range(4)]
    results = example(tmp_path, records)
    render(results, answer)
    assert (tmp_path / "figures" / "importance.png").exists()
    shares = importance(results)
    assert shares["patch_size"] > 0.8 > 0.2 > shares["seed"]
    assert f"- patch_size: {100 * shares['patch_size']:.0f}%" in (tmp_path / "report.md").read_text()


def test_none_among_numbers_is_a_setting_of_its_own(tmp_path: Path) -> None:
    scales = ((None, 0.1), (1e-4, 0.4), (0.1, 0.8))
    records = [record(p, s, gain + 0.01 * s, layer_scale=v) for p in (4, 8) for s in range(2) for v, gain in scales]
    shares = importance(example(tmp_path, records))
    assert shares["layer_scale"] > 0.8


def test_what_is_drawn_by_its_logarithm_is_weighed_by_it(tmp_path: Path) -> None:
    """Nine tenths of the plain range lie above 0.1, where nothing is left to gain."""
    rng = np.random.default_rng(0)
    scales, ratios = 10 ** rng.uniform(-4, 0, 40), rng.uniform(1, 4, 40)
    accuracies = 0.5 + 0.05 * np.log10(np.minimum(scales, 0.05)) + 0.01 * ratios
    drawn = zip(scales.tolist(), ratios.tolist(), accuracies.tolist(), strict=True)
    results = example(tmp_path, [record(4, 0, good, layer_scale=a, mlp_ratio=b) for a, b, good in drawn])
    ranges = {"layer_scale": {"low": 1e-4, "high": 1.0, "log": True}, "mlp_ratio": {"low": 1, "high": 4, "log": False}}
    shares = importance(dataclasses.replace(results, sweep={**results.sweep, "space": ranges}))
    assert shares["layer_scale"] > 0.7 > shares["mlp_ratio"]


def test_trials_that_are_all_alike_get_their_report(tmp_path: Path) -> None:
    results = example(tmp_path, [record(p, s, 0.5) for p in (4, 8) for s in range(4)])
    render(results, answer)
    assert importance(results) == {}
    assert not (tmp_path / "figures" / "importance.png").exists()


def test_the_pareto_front_holds_what_nothing_cheaper_beats() -> None:
    cost, value = np.array([3.0, 1.0, 2.0, 4.0, 2.0]), np.array([0.5, 0.3, 0.2, 0.9, 0.4])
    assert pareto_front(cost, value).tolist() == [1, 4, 0, 3]


def test_a_report_without_any_result_says_so(tmp_path: Path) -> None:
    results = example(tmp_path, [record(4, 0, None, status="failed")])
    render(results, answer)
    assert "No trial was completed" in (tmp_path / "report.html").read_text()


def test_tables_survive_pipes_and_newlines() -> None:
    assert markdown_table(["a"], [["x|y\nz"]]).splitlines()[-1] == "| x\\|y z |"


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="is not a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ResultsError, match=r"has no trials\.parquet"):
        load(tmp_path)
    example(tmp_path)
    (tmp_path / "epochs.parquet").write_bytes(b"PAR1")
    with pytest.raises(ResultsError, match="is damaged"):
        load(tmp_path)
