"""How often does each scripted operator solve each task of robomimic, and in how many steps?

    python benchmarks/operators.py                       # some minutes; a second call goes on where the first stopped

Every operator gets the same start states. Rows go to results/operators.json, the table to results/operators.md.
"""

import numpy as np
from _cli import script_parser
from _provenance import provenance
from _results import RESULTS, markdown, rows_of, write_results

from wgflow_rl import envs
from wgflow_rl.data.generated.controllers import OPERATORS, PLANS, Operator
from wgflow_rl.data.generated.demonstrations import attempt
from wgflow_rl.training.runlog import wilson


def measure(suite: str, operator: Operator, episodes: int) -> dict:
    """Attempts from the start states of seeds 0, 1, ...: which succeeded, after how many steps."""
    simulator = envs.robomimic.Robosuite(suite)
    attempts = [attempt(simulator, suite, operator, seed=seed) for seed in range(episodes)]
    steps = [len(demo["rewards"]) for demo in attempts if demo["rewards"][-1] > 0]
    return {
        "suite": suite,
        "operator": operator.name,
        "episodes": episodes,
        "steps_to_success": steps,
    }


def table(rows: list[dict]) -> str:
    lines = []
    for row in rows:
        steps = row["steps_to_success"]
        low, high = wilson(len(steps), row["episodes"])
        spread = f"{np.median(steps):.0f}, {min(steps)}, {max(steps)}" if steps else "—"
        success = f"{len(steps)} of {row['episodes']} [{low:.2f}, {high:.2f}]"
        lines.append([row["suite"], row["operator"], success, spread])
    header = "task | operator | success [95 % Wilson] | steps to success: median, least, most"
    return "\n".join(markdown(header, lines)) + "\n"


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--episodes", type=int, default=20)
    ask = parser.parse_args()
    out = RESULTS / "operators.json"
    rows = rows_of(out)
    for suite in PLANS:
        for operator in OPERATORS:
            if any((row["suite"], row["operator"]) == (suite, operator.name) for row in rows):
                continue
            rows.append(measure(suite, operator, ask.episodes))
            write_results(out, {**provenance(), "rows": rows})
            out.with_suffix(".md").write_text(table(rows))
            print(table(rows[-1:]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
