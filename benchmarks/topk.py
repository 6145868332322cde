"""What the top-K term gains in our measured runs: `python benchmarks/topk.py`.

Reads the evaluations in benchmarks/results, prints the Markdown tables of docs/topk.md and draws its picture. Runs with
and without the term that share a seed are equal until the online phase, so differences are taken seed by seed. Nothing
is trained.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from _results import RESULTS
from matplotlib.figure import Figure
from paper_numbers import table
from scipy.stats import page_trend_test
from scipy.stats import t as student

from wgflow_rl.experiments.results import Summary, paired, summary
from wgflow_rl.utils.pictures import BLUE, INK, plain, save

LAST = 3  # online evaluations at the end of a run that are averaged, or all if there are fewer


@dataclass(frozen=True)
class Pair:
    """Two variants of a result file that differ in the term alone."""

    task: str
    backbone: str
    file: str
    with_term: str
    without: str
    measure: str
    unit: str

    def values(self, variant: str) -> pd.Series:
        return at_end(self.file, variant, self.measure)

    @property
    def gain(self) -> pd.Series:
        return self.values(self.with_term) - self.values(self.without)


DFP, MVP = ("dfp-ml-energy", "dfp-ml-energy-no-topk"), ("mvp-topk", "mvp")
PAPER = ("dfp", "dfp-no-topk")  # with the paper's field
RUNS = (
    (("maze", "drifting", "methods-pointmaze", *DFP), ("success", "steps")),
    (("maze", "MeanFlow", "methods-pointmaze", *MVP), ("success", "steps")),
    (("cube-single", "drifting", "arm-topk", *DFP), ("success", "steps")),
    (("cube-single", "MeanFlow", "arm-topk", *MVP), ("success", "steps")),
    (("cube-single, one a'", "drifting", "arm-topk-sampled", *DFP), ("success", "steps")),
    (("cube-single, one a'", "MeanFlow", "arm-topk-sampled", *MVP), ("success", "steps")),
    (("cube-single, Eq. 3", "drifting", "arm-topk-paper", *PAPER), ("success", "steps")),
    (("cube-single, constant rate", "drifting", "arm-topk-constant", *DFP), ("success", "steps")),
    (("cube-single, greedy", "drifting", "arm-topk-greedy", *DFP), ("success", "steps")),
    (("cube-single, greedy", "MeanFlow", "arm-topk-greedy", *MVP), ("success", "steps")),
    (("Square", "drifting", "square-topk", *DFP), ("success", "steps")),
    (
        ("PushT", "drifting", "pusht-online", "dfp with top-K", "dfp without top-K"),
        ("score", "success"),
    ),
)
UNITS = {
    "success": ("success", "success"),
    "steps": ("length", "steps per episode"),
    "score": ("score", "score"),
}
PAIRS = tuple(Pair(*run, *UNITS[measure]) for run, measures in RUNS for measure in measures)
RULES = (  # finished pairs, played anew with other rules of acting
    ("cube-single, one a'", "drifting", "arm-topk", DFP),
    ("cube-single, one a'", "MeanFlow", "arm-topk", MVP),
    ("cube-single, Eq. 3", "drifting", "arm-topk-paper", PAPER),
    ("Square", "drifting", "square-topk", DFP),
)
UNPAIRED = {
    "cube-single, greedy": ("arm-half",),
    "Lift": ("lift", "lift-half"),
}  # all with the term


def evaluations(file: str) -> dict[str, dict[int, list[dict]]]:
    """Rows of every evaluation: variant -> seed -> rows."""
    record = json.loads((RESULTS / f"{file}.json").read_text())
    if "evaluations" not in record:
        return {name: dict(enumerate(seeds)) for name, seeds in record["runs"].items()}
    found: dict[str, dict[int, list[dict]]] = {}
    for row in record["evaluations"]:
        found.setdefault(row["variant"], {}).setdefault(row["seed"], []).append(row)
    return found


def at_end(file: str, variant: str, measure: str) -> pd.Series:
    """Mean of a measure over the last online evaluations, by seed."""
    curves = evaluations(file)[variant]
    online = [[row for row in rows if row.get("phase") != "offline"] for rows in curves.values()]
    means = [np.mean([row[measure] for row in rows[-LAST:]]) for rows in online]
    return pd.Series(means, index=list(curves))


def t_interval(found: Summary) -> tuple[float, float]:
    """95 % interval of the mean of normal differences, with Student's t."""
    half = student.ppf(0.975, found.seeds - 1) * found.std / math.sqrt(found.seeds)
    return found.mean - half, found.mean + half


def answer(found: Summary) -> str:
    low, high = t_interval(found)
    return "higher" if low > 0 else "lower" if high < 0 else "cannot be told apart"


def number(value: float, unit: str, sign: str = "") -> str:
    return f"{value:{sign}.{0 if unit.startswith('steps') else 2}f}"


def cells(found: Summary, unit: str) -> list[str]:
    """The difference, its two intervals and the answer."""
    if found.seeds == 1:
        return [number(found.mean, unit, "+"), "", "", "one seed"]
    show = [number(v, unit, "+") for v in (found.mean, *t_interval(found), *(found.interval or ()))]
    return [show[0], f"[{show[1]}, {show[2]}]", f"[{show[3]}, {show[4]}]", answer(found)]


INTERVALS = ["mean", "95 %, Student's t", "95 %, bootstrap"]
COMPARED = ["with", "without", "difference per seed", *INTERVALS, "with the term"]


def compared(a: pd.Series, b: pd.Series, unit: str) -> list[str]:
    """Means over seeds with and without the term, the differences seed by seed, and their mean with its intervals."""
    found = paired(a, b)
    assert found is not None
    each = " ".join(number(value, unit, "+") for value in a - b)
    return [number(a.mean(), unit), number(b.mean(), unit), each, *cells(found, unit)]


def gains() -> str:
    """With and without the term, per task, backbone and measure."""
    body = []
    for pair in PAIRS:
        a, b = pair.values(pair.with_term), pair.values(pair.without)
        about = [f"{pair.task}, {pair.backbone}", pair.unit]
        body.append([*about, *compared(a, b, pair.unit)])
    return table(["task, backbone", "measure", *COMPARED], body)


def variants(file: str, none: str, measure: str) -> str:
    """Variants of the term beside the same runs without it, and the differences in one measure."""
    body = []
    for variant in evaluations(file):
        values = {name: at_end(file, variant, UNITS[name][0]) for name in ("success", "steps")}
        means = [number(each.mean(), UNITS[name][1]) for name, each in values.items()]
        column, unit = UNITS[measure]
        gain = paired(values[measure], at_end(file, none, column))
        assert gain is not None
        differs = [""] * 4 if variant == none else cells(gain, unit)
        body.append([variant, str(len(values[measure])), *means, *differs])
    return table(["term", "seeds", "success", "steps per episode", *INTERVALS, measure], body)


def played(file: str, names: tuple[str, str]) -> dict[str, tuple[pd.Series, pd.Series]]:
    """Success by seed of finished runs with and without the term, for each rule of acting."""
    rows = pd.DataFrame(json.loads((RESULTS / f"best_of-{file}.json").read_text())["rows"])
    found = {}
    for (samples, temperature), each in rows.groupby(["samples", "temperature"]):
        rule = "one sample" if samples == 1 else f"one of {samples}, T = {temperature:g}"
        a, b = (
            each[each["method"] == name].set_index("seed")["success"].sort_index() for name in names
        )
        if len(a):
            found[rule] = (a, b)
    return found


def variants_acting(file: str, none: str) -> str:
    """Variants of the term beside the same runs without it: at the end of training, and executing a single sample."""
    body = []
    for variant in evaluations(file):
        end = at_end(file, variant, "success"), at_end(file, none, "success")
        row = [variant]
        for a, b in (end, played(file, (variant, none))["one sample"]):
            found = summary(a - b)
            assert found is not None
            mean, interval, _, said = cells(found, "success")
            differs = ["", ""] if variant == none else [f"{mean} {interval}", said]
            row += [number(a.mean(), "success"), *differs]
        body.append(row)
    differs = ["difference [95 %, Student's t]", "with the term"]
    return table(
        ["term", "one of 32, in training", *differs, "one sample, played again", *differs], body
    )


def trends() -> str:
    """Page's test of an order of the variants within every seed: from no term to K = 1, and to the largest weight."""
    orders = {
        "none, K = 8, 4, 2, 1": ("lambda 0, K 4", *(f"lambda 0.5, K {k}" for k in (8, 4, 2, 1))),
        "none, lambda = .1, .5, 1, 5": tuple(
            f"lambda {w}, K 4" for w in ("0", "0.1", "0.5", "1", "5")
        ),
    }

    measures = {
        "maze, steps per episode": lambda v: at_end("strength-pointmaze", v, "length"),
        "cube-single, success, one of 32": lambda v: at_end("strength-arm", v, "success"),
        "cube-single, success, one sample": lambda v: played("strength-arm", (v, v))["one sample"][
            0
        ],
    }
    body = []
    for order, names in orders.items():
        for about, of in measures.items():
            values = np.stack([of(name) for name in names], 1)
            p = {way: page_trend_test(sign * values, method="exact").pvalue for way, sign in WAYS}
            way = min(p, key=p.__getitem__)
            both = min(1.0, 2 * p[way])
            body.append([about, order, way if both < 0.05 else "no trend", f"{both:.2g}"])
    return table(["measure", "from left to right", "it", "p"], body)


def rules() -> str:
    """Success of finished runs that execute one of N' chunks, drawn from softmax(Q / T)."""
    body = []
    for task, backbone, file, names in RULES:
        for rule, (a, b) in played(file, names).items():
            body.append([f"{task}, {backbone}", rule, *compared(a, b, "success")])
    return table(["task, backbone", "executes", *COMPARED], body)


def backbones() -> str:
    """Gain of the term on the drifting backbone minus its gain on the MeanFlow backbone."""
    gains = {(pair.backbone, f"{pair.task}, {pair.unit}"): (pair.gain, pair.unit) for pair in PAIRS}
    for task, backbone, file, names in RULES:
        for rule, (a, b) in played(file, names).items():
            gains[backbone, f"{task}, success of {rule}"] = (a - b, "success")
    body = []
    for (backbone, about), (mean_flow, unit) in gains.items():
        if backbone == "MeanFlow":
            drifting, _ = gains["drifting", about]
            found = paired(drifting, mean_flow)
            assert found is not None
            body.append([about, *cells(found, unit)])
    return table(["gain, drifting minus MeanFlow", *INTERVALS, "answer"], body)


def unpaired() -> str:
    """Success on robots before and after the online phase, of runs that have no partner without the term."""
    body = []
    for task, files in UNPAIRED.items():
        for file in files:
            for variant, seeds in evaluations(file).items():
                offline = [
                    [r for r in rows if r["phase"] == "offline"][-1:] for rows in seeds.values()
                ]
                ends = [[row["success"] for row in rows[-LAST:]] for rows in seeds.values()]
                before = np.mean([row["success"] for (row,) in offline])
                body.append(
                    [task, variant, str(len(seeds)), f"{before:.2f}", f"{np.mean(ends):.2f}"]
                )
    return table(["task", "with the term", "seeds", "end of offline", f"last {LAST}"], body)


def methods(*files: str) -> str:
    """Success of each variant of these files at the end of training, by seed."""
    body = []
    for file in files:
        settings = json.loads((RESULTS / f"{file}.json").read_text())["settings"]
        for variant, seeds in evaluations(file).items():
            success = at_end(file, variant, "success")
            found = summary(success)
            assert found is not None
            interval = (
                "[{:.2f}, {:.2f}]".format(*found.interval) if found.interval else "(one seed)"
            )
            before = [
                [r["success"] for r in rows if r["phase"] == "offline"] for rows in seeds.values()
            ]
            steps = number(at_end(file, variant, "length").mean(), "steps")
            samples = settings[variant]["agent"].get("act_samples", 1)
            body.append(
                [
                    variant,
                    f"one of {samples}" if samples > 1 else "one sample",
                    f"{found.mean:.2f} {interval}",
                    " ".join(f"{value:.2f}" for value in success),
                    f"{np.mean([each[-1] for each in before]):.2f}",
                    steps,
                ]
            )
    success = f"success, last {LAST} [95 % bootstrap]"
    return table(
        ["method", "executes", success, "per seed", "end of offline", "steps per episode"], body
    )


def hours() -> str:
    """Time of the paired runs, from the clocks of their logs; a shared offline phase counts once."""
    spent: dict[str, float] = {}
    for pair in PAIRS[::2]:
        curves = evaluations(pair.file)
        for seed, rows in curves[pair.with_term].items():
            a, b = ([row["wall_s"] for row in each] for each in (rows, curves[pair.without][seed]))
            shared = max((s for s, other in zip(a, b, strict=True) if s == other), default=0)
            spent[pair.task] = spent.get(pair.task, 0) + (a[-1] + b[-1] - shared) / 3600
    return "Hours of these runs: " + ", ".join(f"{task} {h:.1f}" for task, h in spent.items()) + "."


COLOURS = {"drifting": BLUE, "MeanFlow": "#c2571a"}
WIDEST = 0.45  # end of the picture's axis, at which wider intervals are cut


def draw(path: Path) -> None:
    """The gain in success (PushT: in score) of every pair of backbone and task, with Student's interval."""
    rows = [
        (f"{pair.task}, end of training", pair.backbone, pair.gain)
        for pair in PAIRS
        if pair.measure == ("score" if pair.task == "PushT" else "success")
    ]
    for task, backbone, file, names in RULES:
        played_again = played(file, names).items()
        rows += [
            (f"{task}, played again: {rule}", backbone, a - b) for rule, (a, b) in played_again
        ]
    labels = list(dict.fromkeys(label for label, *_ in rows))
    figure = Figure(figsize=(8.4, 0.34 * len(labels) + 1.2), dpi=130, layout="constrained")
    axes = figure.subplots()
    for label, backbone, gain in rows:
        found = summary(gain)
        assert found is not None
        at = labels.index(label) + (-0.13 if backbone == "drifting" else 0.13)
        interval = t_interval(found)
        colour = COLOURS[backbone]
        axes.plot(np.clip(interval, -WIDEST, WIDEST), [at, at], color=colour, linewidth=1.2)
        for end, mark in zip(interval, "<>", strict=True):
            if abs(end) > WIDEST:  # goes on
                axes.plot(math.copysign(WIDEST, end), at, mark, color=colour, clip_on=False)
        seeds = {"markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.6}
        axes.plot(gain, [at] * len(gain), "o", color=colour, zorder=3, **seeds)
        axes.plot(found.mean, at, "D", color=colour, markersize=7, fillstyle="none", zorder=4)
    for backbone, colour in COLOURS.items():
        axes.plot([], [], "D-", color=colour, fillstyle="none", label=backbone)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set(yticks=range(len(labels)), yticklabels=labels, xlim=(-WIDEST, WIDEST))
    axes.set_xlabel("success (PushT: score) with the term minus without it")
    axes.invert_yaxis()
    plain(axes, grid="x")
    axes.legend(frameon=False, loc="upper right")
    save(figure, path)


WAYS = (("rises", 1), ("falls", -1))
SECTIONS = {
    "With and without the term": gains,
    "What it does to the policy and to the choice": rules,
    "Weight and K in the maze": partial(variants, "strength-pointmaze", "lambda 0, K 4", "steps"),
    "Weight and K on cube-single": partial(variants_acting, "strength-arm", "lambda 0, K 4"),
    "Trends": trends,
    "Variants in the maze": partial(variants, "improvements-pointmaze", "no top-K", "steps"),
    "Variants on cube-single": partial(variants, "improvements-arm", "no top-K", "success"),
    "More for drifting than for MeanFlow?": backbones,
    "Beside other methods": partial(methods, "arm-topk", "methods-arm"),
    "On Square": partial(methods, "square-topk", "square-driftql"),
    "What makes DriftQL better": partial(methods, "values-arm"),
    "Other runs with the term": unpaired,
    "Settings": hours,
}


def main() -> None:
    print("\n\n".join(f"## {title}\n\n{section()}" for title, section in SECTIONS.items()))
    draw(RESULTS / "topk.png")


if __name__ == "__main__":
    main()
