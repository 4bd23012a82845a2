"""The report of a sweep, Markdown and HTML, written from its results folder.

python -m sweeps.report results/patch_size/latest                      # write it again
python -m sweeps.report results/patch_size/monday results/patch_size/tuesday    # print the answer and table of both
"""

import html
import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from sweeps.answer import by_one_seed
from sweeps.results import Level, ResultsError, SweepResults, differences, levels, load, merged

Answer = Callable[[Sequence[Level]], str]


def render(results: SweepResults, answer: Answer) -> None:
    """Write `report.md`, `report.html` and `figures/` into the results folder."""
    # Not at the top: what draws takes seconds to load, and whoever asks for --help has nothing to draw.
    from sweeps.figures import draw_all, importance

    figures = draw_all(results, results.folder / "figures")
    content = _content(results, answer, importance(results))
    (results.folder / "report.md").write_text(_MARKDOWN.render(**content, figures=figures))
    (results.folder / "report.html").write_text(_HTML.render(**content, figures=figures))


def answer_of(results: SweepResults, answer: Answer) -> str:
    """The sweep's sentence, or the plain statement that there is none."""
    factor = results.sweep["factor"]
    found = levels(results.trials, factor)
    if not found:
        return "No trial was completed, so there is no answer."
    if any(math.isnan(level.test_mean) for level in found):
        first = f"{found[0].value} leads with {100 * found[0].val_mean:.1f}% in validation"
        return f"The sweep has not ended, and test accuracy is measured at the end. So far {first}."
    text = answer(found)
    if by_one_seed(found):
        text += " By one seed each: how much of it is chance is not known."
    if lost := [level for level in found if level.num_lost]:
        shares = ", ".join(f"{level.value} ({level.num_lost} of {level.n + level.num_lost} lost)" for level in lost)
        text += f" Means without the seeds that failed or were stopped early: {shares}."
    tried = results.trials[f"config/{factor}"].unique()
    if missing := [str(value) for value in tried if value not in [level.value for level in found]]:
        text += f" Of {', '.join(sorted(missing, key=lambda one: (len(one), one)))} no trial was completed."
    return text


def summary_rows(results: SweepResults) -> tuple[list[str], list[list[str]]]:
    """The table of the answer as text: headings, and a row a level of the factor."""
    factor = results.sweep["factor"]
    headings = [factor, "n", "val %", "test %", "FLOPs", "pictures", "passes", "parameters", "CPU s"]
    found = levels(results.trials, factor)
    rows = [
        [
            str(level.value),
            str(level.n),
            _mean_and_spread(level.val_mean, level.val_std),
            _mean_and_spread(level.test_mean, level.test_std),
            f"{level.train_flops:.2g}",
            f"{level.images_seen:,.0f}",
            f"{level.passes:.1f}",
            f"{level.num_params:,}",
            f"{level.cpu_s:,.0f}",
        ]
        for level in found
    ]
    prototype = results.sweep.get("prototype", {})
    if any(str(level.value) in prototype for level in found):
        place = headings.index("test %") + 1
        headings[place:place] = ["prototype %", "gain"]
        for row, level in zip(rows, found, strict=True):
            row[place:place] = _beside_the_prototype(level, prototype.get(str(level.value)))
    if any(level.teacher_flops for level in found):
        headings.append("teacher's FLOPs")
        for row, level in zip(rows, found, strict=True):
            row.append(f"{level.teacher_flops:.2g}")
    return headings, rows


def difference_rows(results: SweepResults) -> tuple[list[str], list[list[str]]]:
    """The table of what each level is above the reference, as text; empty where the sweep has no reference."""
    factor, reference = results.sweep["factor"], results.sweep.get("reference")
    headings = [factor, "n", f"points above {reference}", "95% interval"]
    rows = [
        [
            str(difference.value),
            str(difference.n),
            f"{difference.points:+.2f}",
            "-" if math.isnan(difference.low) else f"{difference.low:+.2f} to {difference.high:+.2f}",
        ]
        for difference in differences(levels(results.trials, factor), reference)
    ]
    return headings, rows


def markdown_table(headings: list[str], rows: list[list[str]]) -> str:
    """A pipe table; cells are escaped, since trial errors may hold anything."""

    def line(cells: list[str]) -> str:
        return (
            "| " + " | ".join(html.escape(c, quote=False).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"
        )

    return "\n".join([line(headings), "|" + " ---: |" * len(headings), *map(line, rows)])


def _beside_the_prototype(level: Level, accuracy: float | None) -> list[str]:
    if accuracy is None:
        return ["-", "-"]
    return [f"{100 * accuracy:.0f}", f"{100 * (level.test_mean - accuracy):+.1f}"]


def _mean_and_spread(mean: float, std: float) -> str:
    if math.isnan(mean):
        return "-"
    return f"{100 * mean:.2f}" if math.isnan(std) else f"{100 * mean:.2f} ± {100 * std:.2f}"


def _content(results: SweepResults, answer: Answer, importance: Mapping[str, float]) -> dict[str, Any]:
    sweep, trials = results.sweep, results.trials
    headings, rows = summary_rows(results)
    shown = ["trial", "status", "val_accuracy", "test_accuracy", "train_flops", "images_seen", "wall_s", "error"]
    every = trials.sort_values("val_accuracy", ascending=False)[shown]
    machine = sweep["machine"]
    of_teacher = sum(trials["teacher_flops"].dropna().tolist()) if "teacher_flops" in trials else 0.0
    return {
        "title": sweep["question"],
        "answer": answer_of(results, answer),
        "summary": (headings, rows),
        "has_chosen": len(trials[results.factors].drop_duplicates()) > trials[f"config/{sweep['factor']}"].nunique(),
        "differences": difference_rows(results),
        "cost": (
            f"{trials['train_flops'].sum():.3g} training FLOPs"
            + (f", the teacher's forward passes {of_teacher:.3g}," if of_teacher else "")
            + f" in {_trials(len(trials))}, "
            f"{trials['cpu_s'].sum() / 3600:.2f} CPU hours"
        ),
        "counts": ", ".join(f"{n} {status}" for status, n in trials["status"].value_counts().items())
        + ("; ended before all were trained" if sweep.get("status") == "finished early" else ""),
        "importance": sorted(importance.items(), key=lambda item: -item[1]),
        "trials": (shown, [[_cell(v) for v in row] for row in every.itertuples(index=False)]),
        "dataset": sweep["dataset"],
        "command": sweep["command"],
        "machine": f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB"
        + (f", {', '.join(machine['gpus'])}" if machine["gpus"] else ", no GPU"),
        "versions": ", ".join(f"{k} {v}" for k, v in machine["versions"].items()),
        "commit": sweep["commit"],
        "started": sweep["started"],
        "trained_on": ", ".join(f"{name} ({_trials(n)})" for name, n in trials["hardware"].value_counts().items())
        if "hardware" in trials
        else "",
        "base": _settings(sweep["base"]),
        "bundles": {
            level: _settings(fields)
            for level, fields in sweep.get("bundles", {}).items()
            if fields and level in set(trials[f"config/{sweep['factor']}"].map(str))
        },
    }


def _trials(number: int) -> str:
    return "1 trial" if number == 1 else f"{number} trials"


def _settings(fields: Mapping[str, Any]) -> str:
    """Settings in the form of `--set`."""

    def text(value: Any) -> str:
        if value is None or isinstance(value, bool):
            return str(value).lower()
        return f"{value:g}" if isinstance(value, float) else str(value)

    return " ".join(f"{name}={text(value)}" for name, value in fields.items())


def _cell(value: Any) -> str:
    if pd.isna(value):
        return ""
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:,.0f}" if value < 1e7 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


_ENVIRONMENT = jinja2.Environment(
    autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
)
_PLAIN = jinja2.Environment(autoescape=False, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
_PLAIN.globals["table"] = lambda pair: markdown_table(*pair)

_READING = (
    "± is the sample standard deviation over n seeds. Settings are chosen on the validation split; the test split is "
    "read once, at the end, for the finalists (the best setting of each level). Single view, last evaluation, averaged "
    "weights."
)

_CHOSEN = (
    "Where a level has several settings, the seeds that the best was chosen by are among those it is shown by, which "
    "flatters it a little."
)

_DIFFERENCES = (
    "Differences of mean test accuracy. Intervals by Student's t over seeds, with one variance for all levels, and so "
    "wide that with 95% probability all of them hold the truth (Bonferroni). That the test set is a sample too is not "
    "counted."
)

_MARKDOWN = _PLAIN.from_string(
    """# {{ title }}

**{{ answer }}**

{{ table(summary) }}

"""
    + _READING
    + "{% if has_chosen %} "
    + _CHOSEN
    + """{% endif %}


{% if differences[1] %}
{{ table(differences) }}

"""
    + _DIFFERENCES
    + """

{% endif %}
Data: {{ dataset.source }}: {{ dataset.train }} training, {{ dataset.val }} validation, {{ dataset.test }} test
pictures.
Trials: {{ counts }}. Cost: {{ cost }}.

{% for caption, file in figures.items() %}
## {{ caption }}

![{{ caption }}]({{ file }})

{% endfor %}
{% if importance %}
Importance (fANOVA; misleading where trials are few or were stopped early):
{% for name, share in importance %}
- {{ name }}: {{ "%.0f%%" | format(100 * share) }}
{% endfor %}

{% endif %}
## All trials

{{ table(trials) }}

## How it was run

- `{{ command }}`
- started {{ started }}, commit {{ commit }}
- from {{ machine }}
{% if trained_on %}
- trained on {{ trained_on }}
{% endif %}
- {{ versions }}
- settings of all trials: `{{ base }}`
{% for level, fields in bundles.items() %}
- {{ level }}: `{{ fields }}`
{% endfor %}
"""
)

_HTML = _ENVIRONMENT.from_string(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-size: 14px; display: block; overflow-x: auto; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; } .answer { font-size: 1.2rem; } code { background: #f3f3f3; padding: .1rem .3rem; }
</style></head><body>
{% macro grid(pair) %}
<table><tr>{% for h in pair[0] %}<th>{{ h }}</th>{% endfor %}</tr>
{% for row in pair[1] %}<tr>{% for c in row %}<td>{{ c }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% endmacro %}
<h1>{{ title }}</h1>
<p class="answer">{{ answer }}</p>
{{ grid(summary) }}
<p>"""
    + _READING
    + "{% if has_chosen %} "
    + _CHOSEN
    + """{% endif %}</p>
{% if differences[1] %}
{{ grid(differences) }}
<p>"""
    + _DIFFERENCES
    + """</p>
{% endif %}
<p>Data: {{ dataset.source }}: {{ dataset.train }} training, {{ dataset.val }} validation,
{{ dataset.test }} test pictures. Trials: {{ counts }}. Cost: {{ cost }}.</p>
{% for caption, file in figures.items() %}<h2>{{ caption }}</h2><img alt="{{ caption }}" src="{{ file }}">
{% endfor %}
{% if importance %}<p>Importance (fANOVA; misleading where trials are few or were stopped early):
{% for name, share in importance %}
{{ name }} {{ "%.0f%%" | format(100 * share) }}{{ ", " if not loop.last }}
{% endfor %}
</p>{% endif %}
<h2>All trials</h2>
{{ grid(trials) }}
<h2>How it was run</h2>
<p><code>{{ command }}</code></p>
<p>Started {{ started }}, commit {{ commit }}, from {{ machine }}.{% if trained_on %} Trained on {{ trained_on }}.
{% endif %} {{ versions }}.</p>
<p>Settings of all trials: <code>{{ base }}</code></p>
{% if bundles %}<ul>{% for level, fields in bundles.items() %}<li>{{ level }}: <code>{{ fields }}</code></li>
{% endfor %}</ul>{% endif %}
</body></html>
"""
)


def main() -> int:
    """Write the report of the folder named on the command line again, or print what several come to together."""
    folders = sys.argv[1:]
    if not folders or folders[0].startswith("-"):
        print(__doc__)
        return 0 if folders in (["-h"], ["--help"]) else 2
    try:
        results = load(folders[0]) if len(folders) == 1 else merged([load(folder) for folder in folders])
    except ResultsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    answer = importlib.import_module(f"sweeps.{Path(results.sweep['sweep']).name}").SWEEP.answer
    if len(folders) > 1:
        print(answer_of(results, answer), markdown_table(*summary_rows(results)), sep="\n\n")
        return 0
    render(results, answer)
    print(results.folder / "report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
