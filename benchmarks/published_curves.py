"""Measured runs beside published curves of the same environment, from result files of `train_runs.py`.

    python benchmarks/published_curves.py lift --curves CURVES --out benchmarks/results

A result file has the settings of a run and all its evaluations. They are written as run folders, which
`python -m wgflow_rl.report` reads with the files in CURVES (docs/reproduce.md, "Results of other code bases"). The
section on the environment becomes published-NAME.md, its figure published-NAME.png.
"""

import csv
import json
import tempfile
from pathlib import Path

from _cli import script_parser
from _results import RESULTS

from wgflow_rl import report


def unpack(name: str, folder: Path) -> None:
    """Write every run of a result file as a folder with config.json and eval.csv."""
    record = json.loads((RESULTS / f"{name}.json").read_text())
    for variant, seeds in record["runs"].items():
        for seed, rows in enumerate(seeds):
            settings = record["settings"][variant] | {"seed": seed}
            run = folder / f"{settings['run_dir']}-{seed}"
            run.mkdir(parents=True)
            (run / "config.json").write_text(json.dumps({"settings": settings}))
            with (run / "eval.csv").open("w", newline="") as file:
                table = csv.DictWriter(file, rows[0].keys())
                table.writeheader()
                table.writerows(row | {"step": int(row["step"])} for row in rows)


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("name", help="result file of train_runs.py, such as lift")
    parser.add_argument("--curves", type=Path, required=True, help="folder of published curves")
    parser.add_argument("--offline-steps", type=int, default=1_000_000, help="of the curves")
    parser.add_argument("--methods", nargs="*", default=[], help="published curves to draw")
    parser.add_argument("--out", type=Path, default=RESULTS)
    ask = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        unpack(ask.name, Path(temporary) / "runs")
        out = Path(temporary) / "out"
        flags = ["--out", str(out), "--peer-offline-steps", str(ask.offline_steps)]
        flags += ["--methods", *ask.methods] * bool(ask.methods)
        report.main([str(Path(temporary) / "runs"), str(ask.curves), *flags])
        (picture,) = out.glob("published-*.png")
        text = (out / "report.md").read_text()
        picture_name = f"published-{ask.name}.png"
        (ask.out / picture_name).write_bytes(picture.read_bytes())
    section = text[text.index("## Published curves") :].partition("\n## ")[0]
    section = section.replace(picture.name, picture_name).replace("\n### ", "\n## ")
    (ask.out / f"published-{ask.name}.md").write_text(section.removeprefix("#").rstrip() + "\n")


if __name__ == "__main__":
    main()
