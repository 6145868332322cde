"""Clone the official PushT demonstrations by every field and its rivals: one network, one budget, one protocol.

    python benchmarks/pusht.py search    # settings of each method, one seed, other starts than those reported
    python benchmarks/pusht.py table     # the best setting of each method, 3 seeds
    python benchmarks/pusht.py best      # `make train-pusht`, without mirror images, on 90 demonstrations, 3 seeds
    python benchmarks/pusht.py online    # DFP from the demonstrations on, with and without the top-K term, 3 seeds

A study is a sweep (see train_runs.py), read into benchmarks/results/pusht-STUDY.json and .md; `online` also draws the
curves. `--read` trains nothing and writes these from the runs that are there. The data are those of
`python -m wgflow_rl.data download pusht`.

A score is the maximum over an episode of min(coverage / .95, 1), averaged over 50 starts: Diffusion Policy's test seeds
100000 to 100049, but 200000 to 200049 in the search. "last 3" is the mean of the last three evaluations, "best" the
highest of all. Policies execute a single sample; in `best`, the last checkpoint also plays the same starts with the
densest of 16 samples per chunk.
"""

import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from _cli import script_parser
from _provenance import provenance
from _results import RESULTS, markdown, write_results
from train_runs import Study, by_seed, draw, finished, jobs_of, read, train

from wgflow_rl import profile
from wgflow_rl.agents.agent import Agent
from wgflow_rl.envs.guard import Guard
from wgflow_rl.experiments.job import Job
from wgflow_rl.experiments.results import bootstrap
from wgflow_rl.training.csv_table import read_rows
from wgflow_rl.training.rollout import evaluate
from wgflow_rl.training.settings import Settings
from wgflow_rl.training.trained import load_agent

SHORT = ("--offline-steps", "1500", "--eval-every", "1500")
SEARCH = ("--offline-steps", "1000", "--eval-every", "1000", "--eval-seed", "200000")


def drift(field: str) -> tuple[str, ...]:
    return ("drift-bc", "--field", field)


def flow(*flags: str) -> tuple[str, ...]:
    return ("flow-bc", "--generated", "8", *flags)


def mean_flow(share: str) -> tuple[str, ...]:
    return ("meanflow-bc", "--generated", "3", "--same-times", share)


def regression(lr: str) -> tuple[str, ...]:
    return ("bc", "--lr", lr)


# Two settings per method: bandwidths, exponents, temperatures; learning rates where there is nothing else.
SETTINGS = {
    "drifting (Eq. 3)": [drift(f"drifting:{h}") for h in ("0.05", "0.8")],
    "published": [drift(f"published:{r}") for r in ("0.02,0.05,0.2", "0.5")],
    "likelihood": [drift(f"likelihood:{h}") for h in ("0.2", "0.4")],
    "energy, beta <= 1/2": [drift(f"energy:{beta}") for beta in ("0.25", "0.5")],
    "energy, beta >= 1": [drift(f"energy:{beta}") for beta in ("1", "1.5")],
    "MMD, Laplace": [
        drift("mmd-laplace:0.5"),
        drift("mmd-laplace:0.2+mmd-laplace:0.5+mmd-laplace:1"),
    ],
    "likelihood + energy": [drift(f"likelihood:0.2+energy:{beta}") for beta in ("0.5", "1")],
    "Sinkhorn": [drift(f"sinkhorn:{eps}") for eps in ("0.02", "0.1")],
    "regression": [regression(lr) for lr in ("3e-4", "1e-3")],
    "MeanFlow": [mean_flow(share) for share in ("0.5", "0.75")],
    "flow matching, 10 steps": [flow("--lr", lr) for lr in ("3e-4", "1e-3")],
}
HALF = ("dfp-energy", "--field", "energy:0.5", "--improve-field", "energy:0.5")
ONLINE = ("--offline-steps", "3000", "--online-steps", "6000")
# The setting of each method with the highest score in the search.
CHOSEN = {
    "drifting (Eq. 3), h = .8": drift("drifting:0.8"),
    "published, R = .5": drift("published:0.5"),
    "likelihood, h = .4": drift("likelihood:0.4"),
    "energy, beta = 1/2": drift("energy:0.5"),
    "energy, beta = 1": drift("energy:1"),
    "MMD, Laplace, three scales": drift("mmd-laplace:0.2+mmd-laplace:0.5+mmd-laplace:1"),
    "likelihood + energy, beta = 1": drift("likelihood:0.2+energy:1"),
    "Sinkhorn, eps = .02": drift("sinkhorn:0.02"),
    "regression": regression("1e-3"),
    "MeanFlow": mean_flow("0.75"),
    "flow matching, 10 steps": flow("--lr", "1e-3"),
}

STUDIES = {
    "search": Study(
        "pusht", 1, {" ".join(each): each for group in SETTINGS.values() for each in group}, SEARCH
    ),
    "table": Study("pusht", 3, CHOSEN, SHORT),
    "best": Study(
        "pusht",
        3,
        {
            "drift-bc": ("drift-bc",),
            "drift-bc without mirror images": ("drift-bc", "--no-mirror"),
            "drift-bc, 90 demonstrations": ("drift-bc", "--data-episodes", "90"),
        },
    ),
    "online": Study(
        "pusht",
        3,
        {
            "dfp with top-K": (*HALF, "--lam", "0.5", *ONLINE),
            "dfp without top-K": (*HALF, "--lam", "0", *ONLINE),
            "cloning, as many updates": ("drift-bc", "--offline-steps", "9000"),
        },
        (  # a small network, so that 6,000 environment steps with one update each take minutes
            *("--trunk", "256", "256", "256", "--hidden", "128", "128", "--batch", "64"),
            *("--eval-every", "1500"),
        ),
    ),
}


def play(agent: Agent, settings: Settings) -> dict[str, float]:
    """Score and success of the agent on the starts of its evaluations."""
    pool = [settings.make_env() for _ in range(8)]
    result = evaluate(
        agent.act,
        pool,
        episodes=settings.schedule.eval_episodes,
        seed=settings.seed,
        first_episode=0,
        eval_seed=settings.schedule.eval_seed,
        guard=Guard(settings.env),
    )
    for env in pool:
        env.close()
    return {"score": result.score, "success": float(result.success.mean())}


def milliseconds(call, repeats: int = 30) -> float:
    """Median processor time of a call."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return 1e3 * statistics.median(times)


def measure(job: Job, *, replay: bool) -> dict:
    """Numbers of a finished run."""
    rows = read(job.folder)
    _, train = read_rows(job.folder / "train.csv")
    scores = [row["score"] for row in rows]
    offline = [row["score"] for row in rows if row["phase"] == "offline"]
    found = {
        "best": max(scores),
        "last_3": float(np.mean(scores[-3:])),
        "success": float(np.mean([row["success"] for row in rows[-3:]])),
        "last_3_offline": float(np.mean(offline[-3:])),
        "energy_score": float(train[-1]["energy_score"]),
        "spread_ratio": float(train[-1]["spread_ratio"]),
    }
    if (
        replay
        and "act_samples"
        in json.loads((job.folder / "config.json").read_text())["settings"]["agent"]
    ):
        agent, settings, _ = load_agent(job.folder, act_samples=16)
        found["densest_of_16"] = play(agent, settings)
    return {"rows": rows, **found}


def clock(job: Job) -> dict[str, float]:
    """Median processor milliseconds of an update and of acting in one state."""
    agent, settings, _ = load_agent(job.folder)
    obs, generator = torch.zeros(1, agent.obs_dim), torch.Generator().manual_seed(0)
    _, parts = profile.parts(settings)
    return {
        "update_ms": milliseconds(parts["update"]),
        "act_ms": milliseconds(lambda: agent.act(obs, generator), 200),
    }


def table(runs: dict[str, list[dict]]) -> str:
    """Markdown, one row per variant: means over seeds with bootstrap intervals of the score."""
    lines = []
    for variant, seeds in runs.items():
        mean = {
            name: np.mean([run[name] for run in seeds if name in run])
            for name in ("best", "success", "energy_score", "spread_ratio", "update_ms", "act_ms")
            if name in seeds[0]
        }
        last = np.array([run["last_3"] for run in seeds])
        low, high = bootstrap(last)
        cells = [variant, str(len(seeds)), f"{mean['best']:.3f}"]
        cells += [f"{last.mean():.3f} [{low:.3f}, {high:.3f}]", f"{mean['success']:.2f}"]
        known = [run["densest_of_16"]["score"] for run in seeds if "densest_of_16" in run]
        cells.append(f"{np.mean(known):.3f}" if known else "")
        cells += [f"{mean['energy_score']:.3f}", f"{mean['spread_ratio']:.2f}"]
        cells += [f"{mean[name]:.1f}" if name in mean else "" for name in ("update_ms", "act_ms")]
        lines.append(cells)
    header = (
        "variant | seeds | best | mean of the last 3 [95 % bootstrap over seeds] | success | densest of 16 | "
        "energy score | spread ratio | ms per update | ms to act"
    )
    return "\n".join(markdown(header, lines)) + "\n"


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--runs", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--read", action="store_true", help="train nothing")
    parser.add_argument("--list", action="store_true", help="print the runs' folders and flags")
    ask = parser.parse_args()
    study = STUDIES[ask.study]
    jobs = jobs_of(study, ask.runs)
    if ask.list:
        print(*(f"{job.folder} {' '.join(job.flags)}" for job in by_seed(jobs)), sep="\n")
        return
    if not ask.read:
        train(jobs)
    torch.set_num_threads(1)
    done = finished(jobs)
    runs = {
        name: [measure(job, replay=ask.study == "best") for job in each]
        for name, each in done.items()
    }
    if ask.study in ("table", "best"):
        for name, each in done.items():
            runs[name][0] |= clock(each[0])
    configs = [
        json.loads((job.folder / "config.json").read_text())
        for each in done.values()
        for job in each
    ]
    out = RESULTS / f"pusht-{ask.study}"
    record = {
        "command": f"python benchmarks/pusht.py {ask.study}",
        **provenance(),
        "variants": {name: " ".join(job[0].flags) for name, job in done.items()},
        "commits": sorted({str(config["commit"]) for config in configs}),
        "runs": {
            name: [{k: v for k, v in run.items() if k != "rows"} for run in each]
            for name, each in runs.items()
        },
        "evaluations": [
            {"variant": name, "seed": seed}
            | {k: row[k] for k in ("step", "score", "score_low", "score_high", "success", "wall_s")}
            for name, each in runs.items()
            for seed, run in enumerate(each)
            for row in run["rows"]
        ],
    }
    write_results(out.with_suffix(".json"), record)
    out.with_suffix(".md").write_text(table(runs))
    if ask.study == "online":
        rows = {name: [run["rows"] for run in each] for name, each in runs.items()}
        columns = {"score": "score", "success": "success rate"}
        draw(rows, out.with_suffix(".png"), "PushT, 3 seeds, 50 starts per evaluation", columns)
    print(table(runs))


if __name__ == "__main__":
    main()
