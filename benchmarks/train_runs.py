"""Train the same task several times: seeds, methods, fields; one result file with every evaluation and its interval.

    python benchmarks/train_runs.py pointmaze            # `make train`, 5 seeds
    python benchmarks/train_runs.py arm                  # `make train-arm`, 7 seeds
    python benchmarks/train_runs.py arm-paper            # the paper's `dfp` beside ours, offline, 3 seeds
    python benchmarks/train_runs.py arm-half             # the same with energy:0.5 in both terms, 5 seeds
    python benchmarks/train_runs.py arm-topk             # drifting and MeanFlow with and without top-K, 5 seeds
    python benchmarks/train_runs.py arm-topk-constant    # the same with a constant learning rate
    python benchmarks/train_runs.py arm-topk-sampled     # a' ~ pi in the critic's target, not the best of 4
    python benchmarks/train_runs.py arm-topk-paper       # `dfp`, with Eq. 3, with and without top-K, 5 seeds
    python benchmarks/train_runs.py arm-topk-greedy      # as arm-topk-constant, executing the best of N' by the critic
    python benchmarks/train_runs.py lift                 # `make train-lift`, 2 seeds
    python benchmarks/train_runs.py lift-half            # the same with energy:0.5
    python benchmarks/train_runs.py can-topk             # Can: drifting and MeanFlow with and without top-K, 5 seeds
    python benchmarks/train_runs.py square-topk          # the same on Square
    python benchmarks/train_runs.py square-driftql       # DriftQL with chunks there, 2 seeds
    python benchmarks/train_runs.py fields-pointmaze     # DFP on every field, 5 seeds
    python benchmarks/train_runs.py fields-arm           # the same on the arm, offline
    python benchmarks/train_runs.py methods-pointmaze    # every online method, 3 seeds
    python benchmarks/train_runs.py improvements-pointmaze    # variants of the top-K term, 3 seeds
    python benchmarks/train_runs.py improvements-arm          # the same on the arm
    python benchmarks/train_runs.py strength-pointmaze        # its weight and its K (Tables 3 and 4), 3 seeds
    python benchmarks/train_runs.py strength-arm              # the same on the arm
    python benchmarks/train_runs.py rivals-pointmaze          # methods newer than the paper, 3 seeds
    python benchmarks/train_runs.py search-arm                # one number of five methods on the arm, seed 0
    python benchmarks/train_runs.py methods-arm               # QC-BFN, QC-FQL and DriftQL on the arm, 5 seeds
    python benchmarks/train_runs.py values-arm                # DriftQL taken apart, on the arm

A study is a sweep (`wgflow_rl.sweep`: one thread per run, finished runs skipped, stopped ones resumed, a run that two
studies share made once), read into benchmarks/results/NAME.json, .md and .png. `--read` writes these from runs that are
there already, `--draw` draws what they hold. `--add` keeps the seeds that NAME.json has and trains those after them.
"""

import json
from dataclasses import dataclass
from itertools import takewhile, zip_longest
from pathlib import Path

import numpy as np
from _cli import script_parser
from _provenance import provenance
from _results import RESULTS, write_results

from wgflow_rl.experiments import cluster, plan
from wgflow_rl.experiments.figures import COLOURS
from wgflow_rl.experiments.job import Job, state
from wgflow_rl.experiments.results import bootstrap
from wgflow_rl.training.csv_table import read_numbers
from wgflow_rl.training.curve import draw_curve
from wgflow_rl.utils.pictures import SHADE, plain, save

MAZE = "pointmaze-medium-navigate-singletask-task1-v0"
ARM = "cube-single-play-singletask-task2-v0"
LIFT, CAN, SQUARE = "lift-mh-low_dim", "can-mh-low_dim", "square-mh-low_dim"


def both(field: str) -> tuple[str, ...]:
    """DFP with this field in both terms. At laptop size its variants differ in nothing else."""
    return ("dfp", "--field", field, "--improve-field", field)


HALF = both("energy:0.5")

# Bandwidths and temperatures: the best of benchmarks/clone_chunks.py (four settings per field). The learning
# rate is the preset's: no field gained more than 0.5 % in held-out score from another, and the critic shares it.
FIELDS = {
    "dfp-ml-energy": ("dfp-ml-energy",),
    "dfp-energy": ("dfp-energy",),
    "dfp-ml": ("dfp-ml",),
    "dfp-published": ("dfp-published",),
    "dfp, drifting-relative:0.3": both("drifting-relative:0.3"),
    "dfp, energy:0.5": HALF,
    "dfp, energy:0.25": both("energy:0.25"),
    "dfp, likelihood+energy:0.25": both("likelihood:0.2+energy:0.25"),
}
MILDER = "published:0.02,0.05,0.2"  # the published field's best on the arm
ARM_FIELDS = FIELDS | {
    "dfp-published": ("dfp-published", "--field", MILDER, "--improve-field", MILDER)
}
IMPROVEMENTS = {
    "top-K": HALF,
    "no top-K": (*HALF, "--lam", "0"),
    "Boltzmann, matched": (*HALF, "--positives", "matched"),
    "worst as negatives": (*HALF, "--repulsion", "0.5"),
    "top-K and values": (*HALF, "--q-weight", "0.1"),
}
# K of 16 candidates with the paper's weight, and weights with the paper's K: Tables 4 and 3.
STRENGTHS = {
    f"lambda {lam}, K {k}": ("dfp-ml-energy", "--candidates", "16", "--lam", lam, "--top-k", k)
    for lam, k in (
        *(("0", "4"), ("0.1", "4"), ("0.5", "4"), ("1", "4"), ("5", "4")),
        *(("0.5", "1"), ("0.5", "2"), ("0.5", "8")),
    )
}
BEST = ("dfp-ml-energy", "--candidates", "16", "--lam", "0.5", "--top-k", "4")
BY_ENERGY = (*BEST, "--improve-field", "energy:0.5")  # the likelihood field has no negatives
ARM_IMPROVEMENTS = {
    "top-K": BEST,
    "no top-K": STRENGTHS["lambda 0, K 4"],
    "Boltzmann, matched": (*BEST, "--positives", "matched"),
    "Boltzmann, T = 2": (*BEST, "--positives", "boltzmann", "--temperature", "2"),  # as in acting
    "top-K and values": (*BEST, "--q-weight", "0.1"),
    "values, W = 1": (*BEST, "--lam", "0", "--q-weight", "1"),
    "values, W = 10": (*BEST, "--lam", "0", "--q-weight", "10"),
    "top-K by energy:0.5": BY_ENERGY,
    "top-K by energy:0.5, worst as negatives": (*BY_ENERGY, "--repulsion", "0.5"),
}
TOPK = ("dfp-ml-energy", "dfp-ml-energy-no-topk", "mvp", "mvp-topk")
# As the preset for arms was when these studies ran: a constant learning rate, the best of N' by the critic.
CONSTANT = ("--lr-end", "1")
GREEDY = ("--act-temperature", "0", *CONSTANT)
# Values of one number of some methods, on the arm with chunks of 5, and the best of two of them.
SEARCHED = {
    "qc-fql": ("alpha", "30", "100", "300", "1000"),
    "driftql": ("alpha", "60", "200", "600", "2000"),
    "fedit": ("edit-scale", "0.1", "0.2", "0.5", "1"),
    "qam": ("inverse-temperature", "0.3", "1", "3", "10"),
}
ONE_SAMPLE = ("--target-samples", "1", "--act-samples", "1", "--act-temperature", "0")
LED = ("dfp-ml-energy-no-topk", *ONE_SAMPLE)  # in place of the top-K term the gradient of Q


def led(weight: str) -> tuple[str, ...]:
    """The gradient of Q with this weight, from the first update on."""
    return ("--q-weight", weight, "--q-weight-offline", weight)


SEARCH = {
    f"{name}, {number} {value}": (name, f"--{number}", value)
    for name, (number, *values) in SEARCHED.items()
    for value in values
} | {f"dfp-ml-energy, values {w}": (*LED, *led(w)) for w in ("0.1", "0.3", "1")}
CHOSEN = {
    "qc-bfn": ("qc-bfn",),
    "qc-fql": ("qc-fql", "--alpha", "300"),
    "driftql": ("driftql", "--alpha", "600"),
}
# What DriftQL adds: a policy that regresses to the data's action, as Eq. 3 does at a small length, led by values.
REGRESSION = (*both("drifting:0.05"), "--lam", "0", *ONE_SAMPLE)
VALUES = {
    "driftql": CHOSEN["driftql"],
    "driftql, 8 samples": (*CHOSEN["driftql"], "--generated", "8"),  # as DFP has
    "regression, W = 0.1": (*REGRESSION, *led("0.1")),
    "regression, W = 0": REGRESSION,
    "regression, W = 0.03": (*REGRESSION, *led("0.03")),
    "dfp-ml-energy, one of 32, W = 0.1": ("dfp-ml-energy-no-topk", *led("0.1")),
}
OTHERS = ("qc-bfn", "qc-fql", "bfn", "fql")
NEWER = ("driftql", "fedit", "qam", "qam-e")


@dataclass(frozen=True)
class Study:
    """Some variants of the training command on one environment."""

    env: str
    seeds: int
    variants: dict[str, tuple[str, ...]]  # name -> method, flags
    flags: tuple[str, ...] = ()  # of every variant


STUDIES = {
    "pointmaze": Study(MAZE, 5, {"dfp-ml-energy": ("dfp-ml-energy",)}),
    "arm": Study(ARM, 7, {"dfp-ml-energy-no-topk": ("dfp-ml-energy-no-topk",)}),
    "arm-paper": Study(
        ARM,
        3,
        {"dfp": ("dfp",), "dfp-ml-energy": ("dfp-ml-energy",)},
        ("--online-steps", "0", "--eval-every", "1000", "--eval-episodes", "50", *GREEDY),
    ),
    "arm-half": Study(ARM, 5, {"dfp, energy:0.5": HALF}, GREEDY),
    "arm-topk": Study(ARM, 5, {name: (name,) for name in TOPK}),
    "arm-topk-sampled": Study(ARM, 5, {name: (name,) for name in TOPK}, ("--target-samples", "1")),
    "arm-topk-paper": Study(ARM, 5, {name: (name,) for name in ("dfp", "dfp-no-topk")}),
    "arm-topk-constant": Study(ARM, 5, {name: (name,) for name in TOPK}, CONSTANT),
    "arm-topk-greedy": Study(ARM, 5, {name: (name,) for name in TOPK}, GREEDY),
    "lift": Study(LIFT, 2, {"dfp-ml-energy": ("dfp-ml-energy",)}),
    "can-topk": Study(CAN, 5, {name: (name,) for name in TOPK}),
    "square-topk": Study(SQUARE, 5, {name: (name,) for name in TOPK}),
    "square-driftql": Study(
        SQUARE, 2, {"driftql, 8 samples": VALUES["driftql, 8 samples"]}, ("--chunk", "5")
    ),
    "lift-half": Study(LIFT, 2, {"dfp, energy:0.5": HALF}),
    "fields-pointmaze": Study(MAZE, 5, FIELDS),
    "improvements-pointmaze": Study(MAZE, 3, IMPROVEMENTS),
    "improvements-arm": Study(ARM, 3, ARM_IMPROVEMENTS),
    "strength-pointmaze": Study(MAZE, 3, STRENGTHS),
    "strength-arm": Study(ARM, 3, STRENGTHS),
    "search-arm": Study(ARM, 1, SEARCH, ("--chunk", "5")),
    "values-arm": Study(ARM, 5, VALUES, ("--chunk", "5")),
    "methods-arm": Study(ARM, 5, CHOSEN, ("--chunk", "5")),
    "rivals-pointmaze": Study(MAZE, 3, {name: (name,) for name in NEWER}),
    "methods-pointmaze": Study(MAZE, 3, {name: (name,) for name in (*TOPK, *OTHERS)}),
    "fields-arm": Study(
        ARM,
        3,
        ARM_FIELDS,
        ("--offline-steps", "4000", "--online-steps", "0", "--eval-every", "2000", *GREEDY),
    ),
}


def jobs_of(study: Study, runs: Path) -> dict[str, list[Job]]:
    """The runs of every variant, seed 0 first."""
    found, kinds = {}, {}
    for name, (method, *flags) in study.variants.items():
        (kind,) = plan.from_methods(
            [method], [study.env], preset="laptop", extra=(*flags, *study.flags)
        ).kinds
        found[name] = [kind.job(runs, seed) for seed in range(study.seeds)]
        kinds |= {job: (kind, seed) for seed, job in enumerate(found[name])}
    shared = {job.folder: job for job in plan.share_offline(kinds, runs)}
    return {name: [shared[job.folder] for job in each] for name, each in found.items()}


def train(jobs: dict[str, list[Job]]) -> None:
    """Train what is not finished, seed by seed. Raises: SystemExit naming the runs that failed."""
    outcomes = cluster.execute(by_seed(jobs))
    if bad := [f"{job.folder}: {o.error}" for job, o in outcomes.items() if o.state != "done"]:
        raise SystemExit("not done:\n" + "\n".join(bad))


def by_seed(jobs: dict[str, list[Job]]) -> list[Job]:
    """The jobs, those of the first seeds first."""
    return [job for seed in zip_longest(*jobs.values()) for job in seed if job is not None]


def finished(jobs: dict[str, list[Job]]) -> dict[str, list[Job]]:
    """The finished runs of each variant that has any, up to the first seed that is not finished."""
    done = {
        name: list(takewhile(lambda job: state(job.folder).state == "done", each))
        for name, each in jobs.items()
    }
    return {name: each for name, each in done.items() if each}


def refuse_other_settings(before: dict[str, dict], now: dict[str, dict]) -> None:
    """Raises: SystemExit if seeds of one variant were trained with different settings."""
    for name in before.keys() & now.keys():
        for part in ("agent", "schedule"):
            then, new = before[name][part], now[name][part]
            if differ := [key for key in then.keys() & new.keys() if then[key] != new[key]]:
                raise SystemExit(f"{name}: {', '.join(differ)} differ from those of the results")


def joined(before: dict[str, list], new: dict[str, list]) -> dict[str, list]:
    """The seeds of both, by variant."""
    return {name: before.get(name, []) + new.get(name, []) for name in {**before, **new}}


def read(folder: Path) -> list[dict]:
    """Rows of eval.csv as numbers."""
    return read_numbers(folder / "eval.csv")


def table(runs: dict[str, list[list[dict]]]) -> str:
    """Markdown, one row per variant: success of the last three evaluations, online if there are any, and before."""
    lines = [
        "| variant | success, mean of the last 3 evaluations [95 % bootstrap over seeds] | each seed | first | "
        "last offline | steps of an episode: last offline, end | minutes per run |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant, seeds in runs.items():
        ends = [[row for row in rows if row["phase"] == rows[-1]["phase"]] for rows in seeds]
        last = np.array([np.mean([row["success"] for row in rows[-3:]]) for rows in ends])
        low, high = bootstrap(last)
        offline = [[row for row in rows if row["phase"] == "offline"][-1] for rows in seeds]
        mean = lambda column, rows: np.mean([row[column] for row in rows])  # noqa: E731
        ends = [rows[-1] for rows in seeds]
        lines.append(
            f"| {variant} | {last.mean():.2f} [{low:.2f}, {high:.2f}] | {' '.join(f'{v:.2f}' for v in last)} | "
            f"{mean('success', [rows[0] for rows in seeds]):.2f} | {mean('success', offline):.2f} | "
            f"{mean('length', offline):.0f}, {mean('length', ends):.0f} | {mean('wall_s', ends) / 60:.1f} |"
        )
    return "\n".join(lines) + "\n"


COLUMNS = {"success": "success rate", "length": "episode length (steps)"}
MOST_BANDS = 4  # variants beyond which bands hide lines


def draw(
    runs: dict[str, list[list[dict]]],
    path: Path,
    title: str,
    columns: dict[str, str] = COLUMNS,
) -> None:
    """Columns of the evaluations against steps, a panel each: a line per variant, the mean over its seeds; of up to
    four variants with a band from the worst to the best seed. An offline phase that variants share is drawn once."""
    from matplotlib.figure import Figure

    most, phase = max(map(len, runs.values())), shared_phase(runs)
    figure = Figure(figsize=(9, 3.6 + 0.2 * len(runs)), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(columns))
    for axes, (column, label) in zip(panels, columns.items(), strict=True):
        for number, (variant, seeds) in enumerate(runs.items()):
            rows = seeds[0]
            first = max(len(phase[0]) - 1, 0) if phase else 0
            steps = [row["step"] for row in rows][first:]
            values = np.array([[row[column] for row in rows] for rows in seeds])[:, first:]
            turn, colour = divmod(number, len(COLOURS) - 1)  # black is the shared phase
            look = {"color": COLOURS[colour], "linestyle": ("-", "--", ":")[turn % 3]}
            few = f" ({in_words(len(seeds))})" if len(seeds) < most else ""
            axes.plot(steps, values.mean(0), marker="o", markersize=4, label=variant + few, **look)
            if len(runs) <= MOST_BANDS:
                band = values.min(0), values.max(0)
                axes.fill_between(steps, *band, color=look["color"], alpha=0.12, linewidth=0)
        if phase:
            steps = [row["step"] for row in phase[0]]
            mean = np.mean([[row[column] for row in rows] for rows in phase], 0)
            axes.plot(steps, mean, "k", marker="o", markersize=4, label="offline, shared by all")
        offline = [r["step"] for r in next(iter(runs.values()))[0] if r.get("phase") == "offline"]
        if offline and offline[-1] < max(r["step"] for each in runs.values() for r in each[0]):
            axes.axvspan(0, offline[-1], color=SHADE, zorder=-2, linewidth=0)
        axes.set(xlabel="update, then environment step", ylabel=label)
        axes.set_ylim(*(0, None) if column == "length" else (-0.03, 1.03))
        axes.set_xlim(left=0)
        plain(axes)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    band = "; bands: worst to best seed" if len(runs) <= MOST_BANDS else ""
    figure.suptitle(f"{title}. Lines: means{band}", fontsize=10)
    save(figure, path)


def in_words(seeds: int) -> str:
    return f"{seeds} seed{'s' * (seeds > 1)}"


def shared_phase(runs: dict[str, list[list[dict]]]) -> list[list[dict]]:
    """The rows of the offline phase, seed by seed, if all variants have equal ones; [] if not."""
    phases = [
        [[row for row in rows if row.get("phase") == "offline"] for rows in seeds]
        for seeds in runs.values()
    ]
    longest = max(phases, key=len)
    play = lambda rows: [(row["step"], row["success"], row["length"]) for row in rows]  # noqa: E731
    equal = all(
        play(mine) == play(its)
        for seeds in phases
        for mine, its in zip(seeds, longest, strict=False)
    )
    return longest if equal and len(runs) > 1 and longest[0] else []


def draw_study(study: Study, runs: dict[str, list[list[dict]]], out: Path) -> None:
    """Draw the curves of a study beside its results."""
    title = f"{study.env}, {in_words(max(map(len, runs.values())))}"
    if len(runs) == 1:
        draw_curve(*next(iter(runs.values())), path=out.with_suffix(".png"), title=title)
    else:
        draw(runs, out.with_suffix(".png"), title)


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--runs", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--read", action="store_true", help="train nothing")
    parser.add_argument("--draw", action="store_true", help="only draw the results again")
    parser.add_argument("--add", action="store_true", help="train seeds that the results lack")
    ask = parser.parse_args()
    study = STUDIES[ask.study]
    out = RESULTS / ask.study
    if ask.draw:
        draw_study(study, json.loads(out.with_suffix(".json").read_text())["runs"], out)
        return
    jobs = jobs_of(study, ask.runs)
    there = ask.add and out.with_suffix(".json").exists()
    before = json.loads(out.with_suffix(".json").read_text()) if there else {}
    kept = before.get("runs", {})
    jobs = {name: each[len(kept.get(name, [])) :] for name, each in jobs.items()}
    if not ask.read:
        train(jobs)

    # `--read` takes the seeds that are there: the table says how many they are.
    jobs = finished(jobs)
    new = {name: [read(job.folder) for job in each] for name, each in jobs.items()}
    configs = {
        name: [json.loads((job.folder / "config.json").read_text()) for job in each]
        for name, each in jobs.items()
    }
    made_by = {
        name: [{key: config[key] for key in ("commit", "versions", "started")} for config in each]
        for name, each in configs.items()
    }
    settings = {
        name: each[0]["settings"] | {"run_dir": jobs[name][0].folder.name, "offline_run": None}
        for name, each in configs.items()
    }
    refuse_other_settings(before.get("settings", {}), settings)
    runs = joined(kept, new)
    record = {
        "command": f"python benchmarks/train_runs.py {ask.study}",
        "env": study.env,
        **provenance(),
        "settings": settings | before.get("settings", {}),
        "made_by": joined(before.get("made_by", {}), made_by),
        "runs": runs,
    }
    write_results(out.with_suffix(".json"), record)
    out.with_suffix(".md").write_text(table(runs))
    draw_study(study, runs, out)
    print(table(runs))


if __name__ == "__main__":
    main()
