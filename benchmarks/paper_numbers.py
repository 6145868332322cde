"""Task-by-task analysis of the published tables: `python benchmarks/paper_numbers.py`.

Reads the transcribed tables of Koo et al. 2026 (wgflow_rl/experiments/published) and prints
Markdown, which docs/paper_numbers.md includes. Every figure follows from printed numbers. Standard
errors assume that the five seeds of a cell and the tasks are independent.
"""

from __future__ import annotations

import functools
import math

from wgflow_rl.experiments.tables import records

SEEDS = 5
Cell = tuple[float, float]  # mean and standard error, percent


def successes(phase: str) -> dict[str, dict[str, Cell]]:
    """Success of each method on each task at the end of a phase, from Table 6 (one decimal)."""
    cells: dict[str, dict[str, Cell]] = {}
    for row in records(6):
        if row["phase"] == phase and row["env"]:
            mean, std = float(row["mean"]), float(row["std"])
            cells.setdefault(row["method"], {})[row["task"]] = mean, std / math.sqrt(SEEDS)
    return cells


def difference(a: Cell, b: Cell) -> Cell:
    return a[0] - b[0], math.hypot(a[1], b[1])


def average(cells: list[Cell]) -> Cell:
    n = len(cells)
    return sum(mean for mean, _ in cells) / n, math.hypot(*(error for _, error in cells)) / n


def show(cell: Cell) -> str:
    return f"{cell[0]:+.1f} ± {cell[1]:.1f}"


def table(header: list[str], body: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def top_k_per_task() -> str:
    """Gain of the top-K term on each backbone and task, and what single tasks contribute."""
    online = successes("online")
    pairs = {"Drifting": ("DFP", "DFP w/o top-K"), "MeanFlow": ("MVP w/ top-K", "MVP")}
    gains = {
        name: {task: difference(online[a][task], online[b][task]) for task in online[a]}
        for name, (a, b) in pairs.items()
    }
    body = [[task, *(show(gain[task]) for gain in gains.values())] for task in online["DFP"]]
    body.append(["all 12", *(show(average(list(gain.values()))) for gain in gains.values())])
    top = max(gains["Drifting"], key=lambda task: gains["Drifting"][task][0])
    without = [[g for task, g in gain.items() if task != top] for gain in gains.values()]
    body.append([f"without {top}", *(show(average(gain)) for gain in without)])
    total = sum(mean for mean, _ in gains["Drifting"].values())
    share = gains["Drifting"][top][0] / total
    clear = {name: sum(g > 2 * e for g, e in gain.values()) for name, gain in gains.items()}
    return "\n".join(
        [
            table(["task", *(f"{name}: gain from top-K" for name in gains)], body),
            "",
            f"{top} alone makes {share:.0%} of the drifting backbone's gain. Tasks with a gain of "
            f"more than two standard errors: {clear['Drifting']} of 12 (drifting), "
            f"{clear['MeanFlow']} of 12 (MeanFlow).",
        ]
    )


GROUPS = {"Robo.": ("lift", "square", "can")} | {
    f"Cube-{n}.": tuple(f"cube-{size}-task{task}" for task in (2, 3, 4))
    for n, size in ((2, "double"), (3, "triple"), (4, "quadruple"))
}


def number_of_positives() -> str:
    """Table 4 and the same group means without the term."""
    online = successes("online")["DFP w/o top-K"]
    groups = [*GROUPS, "Avg."]
    none = [sum(online[task][0] for task in GROUPS[g]) / 3 for g in GROUPS]
    body = [["no top-K", *(f"{mean:.1f}" for mean in [*none, sum(none) / 4])]]
    for k in dict.fromkeys(row["K"] for row in records(4)):
        means = {r["environment_group"]: float(r["mean"]) for r in records(4) if r["K"] == k}
        body.append([f"K = {k}", *(f"{means[group]:.1f}" for group in groups)])
    return table(["", *groups], body)


def weight_of_the_term() -> str:
    """Table 3 and the same tasks without the term."""
    online = successes("online")["DFP w/o top-K"]
    tasks = list(dict.fromkeys(row["task"] for row in records(3)))
    body = [["0 (DFP w/o top-K)", *(f"{online[task][0]:.1f}" for task in tasks)]]
    for lam in dict.fromkeys(row["lambda"] for row in records(3)):
        means = {row["task"]: row["mean"] for row in records(3) if row["lambda"] == lam}
        body.append([lam, *(means[task] for task in tasks)])
    return table(["λ", *tasks], body)


def against_the_best_baseline() -> str:
    online = successes("online")
    baselines = ("BFN", "QC-BFN", "FQL", "QC-FQL", "MVP")
    body, ahead, behind = [], 0, 0
    for task, ours in online["DFP"].items():
        best = max(baselines, key=lambda name: online[name][task][0])
        gap = difference(ours, online[best][task])
        ahead, behind = ahead + (gap[0] > 2 * gap[1]), behind + (gap[0] < -2 * gap[1])
        body.append([task, f"{ours[0]:.1f}", f"{best} {online[best][task][0]:.1f}", show(gap)])
    verdict = (
        f"Ahead by more than two standard errors on {ahead} of 12 tasks, behind by as much on "
        f"{behind}; on the other {12 - ahead - behind} the two cannot be told apart. The baseline "
        "is the best of five on each task, which favours the baseline."
    )
    return table(["task", "DFP", "best baseline", "difference"], body) + "\n\n" + verdict


@functools.cache
def sums_of_squares(step: int) -> list[int]:
    """For each total s, the set of Σ v² over five rates v in {0, step, ..., 100} with Σ v = s.

    A set of integers is one integer with their bits set: adding a rate v shifts it by v².
    """
    reach = [1] + [0] * (100 * SEEDS)
    for _ in range(SEEDS):
        more = [0] * len(reach)
        for total, squares in enumerate(reach):
            if squares:
                for v in range(0, min(100, 100 * SEEDS - total) + 1, step):
                    more[total + v] |= squares << (v * v)
        reach = more
    return reach


def possible(mean: float, std: float, *, episodes: int, ddof: int) -> bool:
    """Return True if five success rates, of `episodes` episodes, can give mean and std."""
    total = round(SEEDS * mean)
    squares = sums_of_squares(100 // episodes)[total]
    low, high = (
        (SEEDS - ddof) * max(std + slack, 0) ** 2 + total**2 / SEEDS for slack in (-0.05, 0.05)
    )
    return any(squares >> q & 1 for q in range(math.ceil(low - 1e-6), math.floor(high + 1e-6) + 1))


def episodes_per_evaluation() -> str:
    printed = {(float(row["mean"]), float(row["std"])) for row in records(6) if row["env"]}
    body = []
    for episodes in (50, 100):
        for ddof, name in ((1, "n - 1"), (0, "n")):
            missed = sum(not possible(*pair, episodes=episodes, ddof=ddof) for pair in printed)
            body.append([str(episodes), name, f"{missed} of {len(printed)}"])
    return table(["episodes per evaluation", "std divides by", "impossible cells"], body)


def cost() -> str:
    body = [
        [row["method"], row["online_cost_ms_per_step"], row["evaluation_cost_ms_per_step"]]
        for row in records(9)
    ]
    times = {row[0]: (float(row[1]), float(row[2])) for row in body}
    online, acting = (times["QC-BFN"][i] / times["DFP"][i] for i in (0, 1))
    hours = {row["experiment"]: float(row["gpu_hours_rtx3090"]) for row in records(10)}
    main = hours["Main offline-to-online (Table 1)"]
    runs = 6 * 12 * SEEDS
    return "\n".join(
        [
            table(["method", "ms per online step", "ms per action, CPU"], body),
            "",
            f"Acting, QC-BFN takes {acting:.1f} times as long as DFP, an online step "
            f"{online:.2f} times. The one-step baselines act faster than DFP (FQL "
            f"{times['FQL'][1]:g} ms, MVP {times['MVP'][1]:g} ms, DFP {times['DFP'][1]:g} ms). "
            f"Table 10 gives Table 1 {main:,.0f} GPU-hours: {main / runs:.1f} per run if that is "
            f"6 methods x 12 tasks x {SEEDS} seeds.",
        ]
    )


SECTIONS = {
    "The top-K term, task by task": top_k_per_task,
    "The number of positives": number_of_positives,
    "The weight of the term": weight_of_the_term,
    "Against the best baseline of each task": against_the_best_baseline,
    "How many episodes stand behind a number": episodes_per_evaluation,
    "What it costs": cost,
}


def main() -> None:
    print("\n\n".join(f"## {title}\n\n{section()}" for title, section in SECTIONS.items()))


if __name__ == "__main__":
    main()
