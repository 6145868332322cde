"""A report prints what the runs say and what was published, each in its place, and nothing that is neither."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wgflow_rl import report
from wgflow_rl.agents import methods
from wgflow_rl.experiments import comparison, plan, results
from wgflow_rl.experiments.published import FIGURES, TABLES, Number
from wgflow_rl.experiments.results import Arm, Run, summary

TRIPLE = "cube-triple-play-singletask-task2-v0"
MAZE = "pointmaze-medium-navigate-singletask-task1-v0"


def write_run(root, method, env, seed, success, *extra, preset="paper", upto=None):
    """A run whose evaluations were `success`, spread evenly over its schedule; stopped after `upto` of them."""
    (kind,) = plan.of_names([method], [env], preset=preset, extra=extra).kinds
    made, schedule = kind.job(root, seed), kind.settings.schedule
    steps = np.linspace(0, made.steps, len(success) + 1)[1:].astype(int)
    phase = ["offline" if step <= schedule.offline_steps else "online" for step in steps]
    made.folder.mkdir(parents=True)
    settings = json.loads(json.dumps(plan.as_json(kind.settings))) | {"seed": seed}
    (made.folder / "config.json").write_text(json.dumps({"settings": settings}))
    rows = [
        f"{t},{p},{s},{10.0 * i}"
        for i, (t, p, s) in enumerate(zip(steps, phase, success, strict=True))
    ]
    (made.folder / "eval.csv").write_text(
        "\n".join(["step,phase,success,wall_s", *rows[:upto]]) + "\n"
    )
    (made.folder / "train.csv").write_text("step,phase,wall_s\n")
    return made.folder


@pytest.fixture
def runs(tmp_path):
    """DFP with three seeds and MVP with one on cube-triple task 2; a variant, an unfinished run; three in the maze."""
    root = tmp_path / "runs"
    for seed, end in enumerate((0.9, 0.96, 0.99)):
        write_run(root, "dfp", TRIPLE, seed, [0.0, 0.1, 0.5, end])
    write_run(root, "mvp", TRIPLE, 0, [0.0, 0.2, 0.5, 0.8])
    write_run(root, "dfp", TRIPLE, 0, [0.0, 0.1, 0.5, 0.7], "--lam", "0.25")
    write_run(root, "qc-fql", TRIPLE, 0, [0.0, 0.3, 0.5, 0.7], upto=3)
    for seed in range(3):
        write_run(root, "dfp", MAZE, seed, [0.5, 1.0, 1.0, 0.8 + 0.1 * seed], preset="laptop")
    return root


@pytest.fixture
def written(runs, tmp_path):
    out = tmp_path / "out"
    report.main([str(runs), "--out", str(out)])
    return out


def section(text, title):
    return text[text.index(title) :].split("\n## ", 1)[0]


def line(text, *cells):
    """The table row that begins with these cells, as its cells."""
    found = [row for row in text.splitlines() if row.startswith("| " + " | ".join(cells) + " |")]
    assert len(found) == 1, f"{cells}: {found}"
    return [cell.strip() for cell in found[0].strip("|").split("|")]


# ---- published numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.number)
def test_every_published_number_has_its_source_and_its_place(table):
    places = {
        (row.label, column.env, phase)
        for row in table.rows
        for column in table.columns
        for phase in table.phases
    }
    assert table.cells.keys() <= places
    for number in table.cells.values():
        assert isinstance(number, Number)
        assert re.match(r"https://\S+, ", number.source)
        assert 0 <= number.mean <= 100
        assert number.std is None or 0 <= number.std <= 50


def test_the_averages_of_table_1_are_the_published_ones():
    """The page prints them in a column of their own, so a number mistyped in a row would show."""
    printed = {"BFN": 38.4, "QC-BFN": 83.8, "FQL": 30.3, "QC-FQL": 86.8, "MVP": 80.3, "DFP": 95.8}
    for row in TABLES[1].rows:
        numbers = [TABLES[1].published(row, column, "online") for column in TABLES[1].columns]
        assert np.mean([number.mean for number in numbers if number]) == pytest.approx(
            printed[row.label], abs=0.06
        )


def test_the_rows_are_methods_of_this_package():
    assert {row.method for table in TABLES.values() for row in table.rows} <= set(methods.METHODS)
    assert {figure.table for figure in FIGURES} <= TABLES.keys()


# ---- statistics ------------------------------------------------------------------------------------------------------


def test_the_interval_is_that_of_the_mean_over_seeds():
    values = np.array([90.0, 96.0, 99.0])
    found = summary(values)
    assert found is not None and found.interval is not None
    assert (found.mean, found.std, found.seeds) == (95.0, pytest.approx(np.std(values, ddof=1)), 3)
    low, high = found.interval
    assert 90 <= low < 95 < high <= 99
    assert results.bootstrap(values) == found.interval
    assert results.bootstrap(np.full(4, 7.0)) == (7, 7)


def test_one_seed_has_no_interval_and_none_no_number():
    alone = summary(np.array([5.0]))
    assert alone is not None and alone.interval is None and np.isnan(alone.std)
    assert summary(np.array([])) is None


def arm(steps, success, offline, total):
    run = Run(0, np.array(steps), np.array(success), Path())
    return Arm("dfp", TRIPLE, "paper", {}, {}, offline, total, (run,))


def test_the_numbers_of_a_phase_are_those_of_its_last_evaluation():
    whole = arm([10, 20, 30, 40], [0.1, 0.2, 0.3, 0.4], 25, 40)
    assert (whole.at_end("offline").tolist(), whole.at_end("online").tolist()) == ([0.2], [0.4])
    half = arm([10, 20, 30], [0.1, 0.2, 0.3], 25, 40)
    assert (half.at_end("offline").tolist(), half.at_end("online").tolist()) == ([0.2], [])
    early = arm([10, 20], [0.1, 0.2], 25, 40)
    assert early.at_end("offline").tolist() == []
    offline_only = arm([10, 20], [0.1, 0.2], 20, 20)
    assert (offline_only.at_end("offline").tolist(), offline_only.at_end("online").tolist()) == (
        [0.2],
        [],
    )


# ---- the report ------------------------------------------------------------------------------------------------------


def test_ours_stands_beside_the_papers(written):
    one = section((written / "report.md").read_text(), "## Table 1")
    triple = one[one.index("**Cube-triple**") : one.index("**Cube-quadruple")]
    assert line(triple, "DFP", "paper")[2:] == ["98.4 ± 1", "91.6 ± 2", "81.2 ± 6"]
    after = triple[triple.index("| DFP | paper") :].splitlines()[1]
    assert re.match(
        r"\|  \| ours: paper preset, 1M \+ 1M steps \| 95\.0 ± 4\.6 \[9.*\] \(3\) \| — \| — \|",
        after,
    )
    after = triple[triple.index("| MVP | paper") :].splitlines()[1]
    assert "| 80.0 (1) | — | — |" in after


def test_a_run_that_has_not_ended_fills_only_the_phase_it_ended(written):
    text = (written / "report.md").read_text()
    assert line(section(text, "## All runs"), TRIPLE, "qc-fql")[3:] == [
        "30.0 (1)",
        "—",
        "1 unfinished",
    ]


def test_a_changed_setting_is_a_row_of_its_own(written):
    text = (written / "report.md").read_text()
    assert line(section(text, "## All runs"), TRIPLE, "dfp lam=0.25")[4] == "70.0 (1)"
    assert "70.0" not in section(text, "## Table 1")
    three = section(text, "## Table 3")
    assert "70.0 (1)" in three[three.index("weight 0.25") :].splitlines()[1]
    assert "95.0 ±" in three[three.index("weight 0.5 ") :].splitlines()[1]


def test_runs_evaluated_or_fed_otherwise_are_told_apart(tmp_path):
    write_run(tmp_path, "dfp", MAZE, 0, [1.0], preset="laptop")
    write_run(tmp_path, "dfp", MAZE, 0, [0.9], "--eval-episodes", "50", preset="laptop")
    write_run(tmp_path, "dfp", MAZE, 0, [0.8], "--data", str(tmp_path / "mine"), preset="laptop")
    write_run(
        tmp_path, "dfp", MAZE, 0, [0.7], "--envs", "4", "--noise-on", "device", preset="laptop"
    )
    arms = results.read([tmp_path])
    assert {arm.name for arm in arms} == {"dfp"}
    told = {arm.protocol.partition("steps")[2] for arm in arms}
    assert told == {"", ", eval_episodes=50", ", data=mine", ", envs=4, noise_on=device"}


def test_how_often_a_run_is_logged_makes_it_no_other_run(tmp_path):
    write_run(tmp_path, "dfp", MAZE, 0, [1.0], preset="laptop")
    often = ("--log-every", "7", "--checkpoint-every", "9")
    (kind,) = plan.of_names(["dfp"], [MAZE], preset="laptop", extra=often).kinds
    assert kind.job(tmp_path, 0).folder.exists()
    write_run(tmp_path, "dfp", MAZE, 1, [0.5], *often, preset="laptop")
    (arm,) = results.read([tmp_path])
    assert len(arm.runs) == 2


def test_settings_of_shards_make_no_other_run_where_there_are_none(tmp_path):
    write_run(tmp_path, "dfp", MAZE, 0, [1.0], preset="laptop")
    (kind,) = plan.of_names(["dfp"], [MAZE], preset="laptop", extra=("--memory-gb", "8")).kinds
    assert kind.job(tmp_path, 0).folder.exists()
    older = (
        write_run(tmp_path, "dfp", MAZE, 1, [0.5], preset="laptop") / "config.json"
    )  # of a version without shards
    told = json.loads(older.read_text())
    del told["settings"]["memory_gb"], told["settings"]["swap_every"]
    older.write_text(json.dumps(told))
    (arm,) = results.read([tmp_path])
    assert len(arm.runs) == 2
    for memory in ("2", "8"):
        write_run(
            tmp_path / "s",
            "dfp",
            MAZE,
            0,
            [1.0],
            "--data",
            str(tmp_path),
            "--memory-gb",
            memory,
            preset="laptop",
        )
    assert len({arm.protocol for arm in results.read([tmp_path / "s"])}) == 2


def test_a_run_without_train_csv_still_has_its_evaluations(tmp_path):
    (write_run(tmp_path / "runs", "dfp", MAZE, 0, [1.0], preset="laptop") / "train.csv").unlink()
    report.main([str(tmp_path / "runs"), "--out", str(tmp_path)])
    assert "100.0 (1)" in (tmp_path / "report.md").read_text()


def test_what_was_not_found_and_what_is_missing_is_said(written):
    text = (written / "report.md").read_text()
    assert line(section(text, "## Table 7"), "IQL", "paper")[2:] == ["not found"] * 5
    one = section(text, "## Table 1")
    assert "Missing: 70 of 72 cells" in one
    commands = re.findall(r"python -m wgflow_rl.sweep (.*)", text)
    for command in commands:
        words = command.split()
        if "--table" in words:
            continue
        names = words[words.index("--methods") + 1 : words.index("--envs")]
        places = [word for word in words[words.index("--envs") + 1 :] if word.endswith("-v0")]
        assert plan.of_names(names, places, preset="paper").kinds
        assert (
            ("dfp" not in names or TRIPLE not in places) or "--lam" in words or "--top-k" in words
        )


def test_the_numbers_are_in_tables_csv_with_their_sources(written):
    with (written / "tables.csv").open() as file:
        rows = list(csv.DictReader(file))
    cells = {(row["table"], row["row"], row["env"], row["phase"], row["by"]): row for row in rows}
    paper = cells["1", "DFP", TRIPLE, "online", "paper"]
    assert (paper["mean"], paper["std"]) == ("98.4", "1.0")
    assert paper["source"].startswith("https://driftingpolicy.github.io/")
    ours = cells["1", "DFP", TRIPLE, "online", "ours"]
    assert (ours["mean"], ours["seeds"], ours["values"]) == ("95.0", "3", "90 96 99")
    assert cells["7", "IQL", "scene-play-singletask-task2-v0", "offline", "paper"]["mean"] == ""
    for row in rows:
        assert (row["by"] == "paper" and bool(row["mean"])) == bool(row["source"])


def test_the_figures_named_in_the_report_are_there(written):
    text = (written / "report.md").read_text()
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert f"curves-{MAZE}-laptop-4k+1.5k.png" in pictures
    assert "figure-3-paper-1M+1M.png" in pictures
    for name in pictures:
        assert (written / name).read_bytes().startswith(b"\x89PNG")
    assert not list(written.glob(".*"))


@pytest.mark.parametrize("longer", ["a", "b"])
def test_of_a_seed_run_twice_the_run_that_came_further_counts(longer, tmp_path):
    for place in ("a", "b"):
        write_run(tmp_path / place, "dfp", TRIPLE, 0, [0.1, 0.9], upto=2 if place == longer else 1)
    (arm,) = results.read([tmp_path / "a", tmp_path / "b"])
    assert arm.at_end("online").tolist() == [0.9]


def test_an_offline_row_is_not_filled_by_runs_of_chunks(tmp_path):
    write_run(tmp_path / "runs", "dfp", "scene-play-singletask-task2-v0", 0, [0.1, 0.2, 0.3, 0.4])
    write_run(
        tmp_path / "runs", "dfp", "scene-play-singletask-task2-v0", 0, [0.5], preset="paper-offline"
    )
    (row,) = [row for row in TABLES[7].rows if row.method == "dfp"]
    found = [
        arm for arm in results.read([tmp_path / "runs"]) if comparison.fits(TABLES[7], row, arm)
    ]
    assert [arm.preset for arm in found] == ["paper-offline"]


# ---- logs of other code bases ----------------------------------------------------------------------------------------


def write_log(root, text, name="their-dfp", env=TRIPLE):
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name / f"{env}.csv").write_text(text)


def test_a_peer_stands_in_the_same_tables_and_figures(runs, tmp_path):
    write_log(
        tmp_path / "peers",
        "step,seed,success\n500000,0,0.1\n2000000,0,0.5\n500000,1,0.2\n2000000,1,0.7\n",
    )
    out = tmp_path / "out"
    report.main(
        [str(runs), str(tmp_path / "peers"), "--out", str(out), "--peer-offline-steps", "1000000"]
    )
    text = (out / "report.md").read_text()
    one = section(text, "## Table 1")
    triple = one[one.index("**Cube-triple**") : one.index("**Cube-quadruple")]
    assert line(triple, "their-dfp", "its own code")[2].startswith("60.0 ± 14.1 [50.0, 70.0] (2)")
    assert line(section(text, "## All runs"), TRIPLE, "their-dfp")[3].startswith("15.0 ± 7.1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step,seed,success\n1,0,50\n", "line 2: success is 50; wanted a fraction between 0 and 1"),
        ("step,seed,success\n1,0\n", "line 2: '1,0'; wanted three numbers"),
        ("step,seed,success\n1,0,0.5\n2,0,nan\n", "line 3: success is nan; wanted a fraction"),
        ("step,seed,success\n", "has a header and no rows"),
    ],
)
def test_a_log_that_cannot_be_read_is_refused_by_its_line(text, message, tmp_path, capsys):
    write_log(tmp_path, text)
    with pytest.raises(SystemExit, match="2"):
        report.main([str(tmp_path), "--out", str(tmp_path / "out")])
    assert message in capsys.readouterr().err


def test_where_there_is_nothing_the_report_says_what_it_wanted(tmp_path, capsys):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SystemExit, match="2"):
            report.main([str(place)])
        assert "wanted" in capsys.readouterr().err


def test_one_seed_and_no_warning(tmp_path):
    write_run(tmp_path / "runs", "dfp", TRIPLE, 0, [0.0, 0.1, 0.5, 0.9])
    command = [sys.executable, "-W", "error", "-m", "wgflow_rl.report", "runs"]
    root = Path(report.__file__).resolve().parent.parent
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "report/report.md\n"
