"""The table and the picture of `conditional_toys.py`, from its JSON rows alone."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from pathlib import Path

from _results import markdown, plus_minus

RATIO = "E\\|x-x'\\| / E\\|x-y\\|"
HEADER = (
    "field | setting, learning rate | energy distance | sliced W2 | shares found | share error "
    f"| spread within modes | {RATIO} | held-out score | search: best to worst | ms per step"
)


def toys_of(results: dict) -> list[str]:
    return list(dict.fromkeys(row["toy"] for row in results["floor"]))


def chosen(results: dict, toy: str) -> dict[str, list[dict]]:
    """The final rows of a toy, a list over seeds for each field that has them all."""
    groups: dict[str, list[dict]] = {}
    for row in results["final"]:
        if row["toy"] == toy:
            groups.setdefault(row["name"], []).append(row)
    seeds = len(results["setup"]["seeds"])
    return {name: rows for name, rows in groups.items() if len(rows) == seeds}


def mean(rows: list[dict], key: str) -> float:
    return statistics.fmean(row[key] for row in rows)


def ties(groups: dict[str, list[dict]], key: str) -> set[str]:
    """Fields that cannot be told from the best: within 2 standard errors of the difference (few seeds: coarse)."""
    stats = {
        name: (mean(rows, key), statistics.stdev(row[key] for row in rows))
        for name, rows in groups.items()
    }
    best, sd = min(stats.values())
    n = min(len(rows) for rows in groups.values())
    return {name for name, (m, s) in stats.items() if m - best <= 2 * math.hypot(s, sd) / n**0.5}


def table(results: dict) -> str:
    """Markdown: one table a toy, mean ± sd over seeds, bold where no field is better by more than the noise.

    "search: best to worst" is the held-out score over the settings tried: what a badly chosen one costs.
    """
    setup, tries = results["setup"], Counter((row["toy"], row["name"]) for row in results["search"])
    finished = {(toy, name) for toy in toys_of(results) for name in chosen(results, toy)}
    settings = "/".join(str(n) for n in sorted({tries[key] for key in finished}))
    lines = [
        "# Conditional behaviour cloning with one positive per state",
        "",
        f"Network f(z, s), hidden {tuple(setup['hidden'])}, batch {setup['batch']}, G = {setup['generated']}, "
        f"{setup['optimiser']}; {setup['steps']} steps, seeds {setup['seeds']}. Each field and toy: "
        f"{settings} settings of {setup['search_steps']} steps on seed {setup['search_seed']}, "
        f"the lowest held-out energy score wins. Metrics against the true conditional: {setup['truth'][0]} states, "
        f"{setup['truth'][1]} samples each. Bold: within two standard errors of the best, so a tie. Milliseconds: "
        "processor time of the least disturbed run with that field, everything included.",
    ]
    lines += summary(results)
    for toy in toys_of(results):
        floor = [row for row in results["floor"] if row["toy"] == toy]
        groups = chosen(results, toy)
        best = {key: ties(groups, key) for key in ("energy_distance", "sliced_w2", "weight_error")}
        body = [["truth itself", "", *_cells(floor, set()), "", "", ""]]
        search = [row for row in results["search"] if row["toy"] == toy]
        for name, rows in groups.items():
            marks = {key for key, names in best.items() if name in names}
            field, score = rows[0]["field"], _pm(rows, "held_out_score", 4)
            runs = [row for row in search + rows if row["field"] == field]
            cost = min(row["cpu_ms_per_step"] for row in runs)
            tried = [row["held_out_score"] for row in search if row["name"] == name]
            span = f"{min(tried):.3f} to {max(tried):.3f}"
            setting = f"{field}, {rows[0]['lr']:g}"
            body.append([name, setting, *_cells(rows, marks), score, span, f"{cost:.1f}"])
        lines += ["", f"## {toy}", "", *markdown(HEADER, body)]
    return "\n".join(lines) + "\n"


def summary(results: dict) -> list[str]:
    """Lines of a table over all toys, of fields run on all: ratios as geometric means, spreads by their extremes."""
    names, fields = toys_of(results), list(dict.fromkeys(row["name"] for row in results["final"]))
    groups = {toy: chosen(results, toy) for toy in names}
    fields = [field for field in fields if all(field in group for group in groups.values())]
    truth = {toy: [row for row in results["floor"] if row["toy"] == toy] for toy in names}
    best = {toy: ties(groups[toy], "energy_distance") for toy in names}
    header = (
        "field | sliced W2 over truth's | share error over truth's | spread within modes: least, most "
        f"| {RATIO}: least, most | energy distance: best or tied"
    )
    body = []
    for field in fields:
        mine = {toy: group[field] for toy, group in groups.items() if field in group}
        cells = [_over(mine, truth, key) for key in ("sliced_w2", "weight_error")]
        cells += [_extremes(mine, key) for key in ("within", "spread_ratio")]
        count = sum(field in best[toy] for toy in mine)
        body.append([field, *cells, f"{count} of {len(mine)}"])
    return ["", f"## All {len(names)} toys", "", *markdown(header, body)]


def _over(mine: dict[str, list[dict]], truth: dict[str, list[dict]], key: str) -> str:
    ratios = [mean(rows, key) / mean(truth[toy], key) for toy, rows in mine.items()]
    return f"{statistics.geometric_mean(ratios):.2f}"


def _extremes(mine: dict[str, list[dict]], key: str) -> str:
    means = [mean(rows, key) for rows in mine.values()]
    return f"{min(means):.2f}, {max(means):.2f}"


def _cells(rows: list[dict], marks: set[str]) -> list[str]:
    shares = [
        statistics.fmean(column) for column in zip(*(row["weights"] for row in rows), strict=True)
    ]
    texts = [
        _pm(rows, "energy_distance", 4),
        _pm(rows, "sliced_w2", 3),
        " ".join(f"{w:.2f}" for w in shares),
    ]
    texts += [_pm(rows, "weight_error", 3), _pm(rows, "within", 2), _pm(rows, "spread_ratio", 2)]
    keys = ("energy_distance", "sliced_w2", "", "weight_error", "", "")
    return [f"**{text}**" if key in marks else text for text, key in zip(texts, keys, strict=True)]


def _pm(rows: list[dict], key: str, digits: int) -> str:
    return plus_minus([row[key] for row in rows], digits)


SHOWN = {  # a part of the toys and fields, which can be read on a page
    "toys": ("three modes", "ten modes", "ring", "heavy tail"),
    "fields": {
        "energy, exponent 1/2": "energy:0.5",
        "energy": "energy",
        "likelihood": "likelihood",
        "published": "published",
        "drifting-relative": "drifting-relative",
    },
}


def draw(results: dict, path: Path) -> None:
    """Samples for one state (seed 0): a row per toy, a column per field, with the mean energy distance of the seeds."""
    from matplotlib.figure import Figure

    toys, fields = SHOWN["toys"], SHOWN["fields"]
    size = 1.55 * (len(fields) + 1), 1.7 * len(toys) + 0.3
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    for line, toy in zip(figure.subplots(len(toys), len(fields) + 1), toys, strict=True):
        groups = chosen(results, toy)
        truth = next(row for row in results["floor"] if row["toy"] == toy and row["points"])
        # Beyond the box is a fiftieth of the true points, the outliers of a heavy tail.
        coordinates = sorted(max(map(abs, point)) for point in truth["points"])
        reach = 1.15 * coordinates[int(0.98 * (len(coordinates) - 1))]
        columns = {toy: [truth], **{label: groups[name] for name, label in fields.items()}}
        for ax, (label, rows) in zip(line, columns.items(), strict=True):
            true = rows[0] is truth
            points = next(row["points"] for row in rows if row["points"])
            if not true:
                ax.scatter(*zip(*truth["points"], strict=True), s=4, color="0.8", linewidths=0)
                ax.set_xlabel(f"{mean(rows, 'energy_distance'):.4f}", fontsize=9)
            ax.scatter(*zip(*points, strict=True), s=4, color="0.3" if true else "C3", linewidths=0)
            ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
            if true:
                ax.set_ylabel(label, fontsize=9)
            if toy == toys[0]:
                ax.set_title("truth" if true else label, fontsize=9)
    figure.savefig(path)
