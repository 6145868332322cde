"""A report prints what was published and what the runs say, each in its place."""

import csv
import json
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from tests.children import python
from wgflow_rl import report
from wgflow_rl.agents import presets
from wgflow_rl.experiments import comparison, peers, plan, reading, results, verify
from wgflow_rl.experiments.results import RunGroup, summary
from wgflow_rl.experiments.tables import FIGURES, FOLDER, LISTS, NUMBERS, TABLES, VARIANTS, records

TRIPLE = "cube-triple-play-singletask-task2-v0"
QUADRUPLE = "cube-quadruple-play-singletask-task2-v0"
SCENE = "scene-play-singletask-task2-v0"
MAZE = "pointmaze-medium-navigate-singletask-task1-v0"


def write_run(root, method, env, seed, success, *extra, preset="paper", upto=None):
    """A run whose evaluations were `success`, spread evenly over its schedule; stopped after `upto` of them."""
    (kind,) = plan.from_methods([method], [env], preset=preset, extra=extra).kinds
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


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """DFP with three seeds, MVP with one, an unfinished run on cube-triple; another lambda; three seeds in the maze."""
    root = tmp_path_factory.mktemp("report") / "runs"
    for seed, end in enumerate((0.9, 0.96, 0.99)):
        write_run(root, "dfp", TRIPLE, seed, [0.0, 0.1, 0.5, end])
    write_run(root, "mvp", TRIPLE, 0, [0.0, 0.2, 0.5, 0.8])
    write_run(root, "dfp", QUADRUPLE, 0, [0.0, 0.1, 0.5, 0.7], "--lam", "0.1")
    write_run(root, "qc-fql", TRIPLE, 0, [0.0, 0.3, 0.5, 0.7], upto=3)
    for seed in range(3):
        write_run(root, "dfp", MAZE, seed, [0.5, 1.0, 1.0, 0.8 + 0.1 * seed], preset="laptop")
    return root


@pytest.fixture(scope="module")
def written(runs):
    out = runs.parent / "out"
    report.main([str(runs), "--out", str(out)])
    return out


def section(text, title):
    return text[text.index(title) :].split("\n## ", 1)[0]


def table(text, number):
    """The section of a table as {(first cell, source): {column: cell}}; an empty first cell repeats the one above."""
    found, header, label = {}, None, ""
    for line in section(text, f"## Table {number}. ").splitlines():
        if not line.startswith("|"):
            header = None
        elif header is None:
            header = [cell.strip() for cell in line[1:-1].split("|")]
        elif not line.startswith("| ---"):
            row = dict(zip(header, (c.strip() for c in line[1:-1].split("|")), strict=True))
            label = row.pop(header[0]) or label
            source = row.pop("source", "paper").partition(" (")[0]
            found.setdefault((label, source), {}).update(row)
    return found


# ---- published numbers -----------------------------------------------------------------------------------------------


def test_a_report_without_runs_prints_every_published_cell(tmp_path, capsys):
    for place in (tmp_path, tmp_path / "nowhere"):
        report.main([str(place), "--out", str(tmp_path / "out")])
        assert f"No runs were found in {place}" in capsys.readouterr().out
    text = (tmp_path / "out" / "report.md").read_text()
    for number in TABLES:
        printed, phases = table(text, number), TABLES[number].phases
        for key, wanted in verify.cells(number, FOLDER).items():
            cell = printed[key[0], "paper"][key[1]]
            assert (cell.split(" → ")[phases.index(key[2])] if key[2:] else cell) == wanted
    for number in LISTS:
        part = section(text, f"## Table {number}. ").splitlines()
        lines = [
            [cell.strip() for cell in line[1:-1].split("|")] for line in part if line[:1] == "|"
        ]
        for (row, name), wanted in verify.cells(number, FOLDER).items():
            line = lines[int(row.removeprefix("row ")) + 1]  # below the header and its rule
            assert dict(zip(lines[0], line, strict=True))[name] == wanted


def test_a_cell_that_differs_is_named(tmp_path, capsys):
    copy = shutil.copytree(FOLDER, tmp_path / "copy")
    report.main(["--check", str(copy)])
    assert capsys.readouterr().out.endswith(" 0 differences\n")
    six = copy / "table6.csv"
    six.write_text(six.read_text().replace("offline,0.2,0.4,", "offline,20,0.4,", 1))
    ten = copy / "table10.csv"
    ten.write_text(ten.read_text().replace("900", "901"))
    with pytest.raises(SystemExit, match="1"):
        report.main(["--check", str(copy)])
    out = capsys.readouterr().out
    assert "printed '0.2 ± 0.4'" in out and "has '20 ± 0.4'" in out
    assert "printed '900'" in out and " 2 differences" in out


def test_a_file_that_is_no_table_is_refused_by_its_columns(tmp_path, capsys):
    copy = shutil.copytree(FOLDER, tmp_path / "copy")
    one = copy / "table1.csv"
    header, *rows = one.read_text().splitlines()
    one.write_text("\n".join([header.replace("method", "x"), *rows]) + "\n")
    with pytest.raises(SystemExit, match="2"):
        report.main(["--check", str(copy)])
    assert "wanted one of" in capsys.readouterr().err


def test_a_folder_without_a_table_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        report.main(["--check", str(tmp_path)])
    assert "has no table1.csv" in capsys.readouterr().err


@pytest.mark.parametrize("number", [1, 2, 6])
def test_a_printed_average_is_the_mean_over_tasks(number):
    paper = TABLES[number]
    *tasks, mean = paper.columns
    assert mean.envs == tuple(task.envs[0] for task in tasks)
    for row in paper.rows:
        for phase in paper.phases:
            values = [float(paper.numbers[row.label, task.label, phase].mean) for task in tasks]
            printed = float(paper.numbers[row.label, mean.label, phase].mean)
            assert np.mean(values) == pytest.approx(printed, abs=0.0501)


def test_tables_that_print_the_same_runs_agree():
    def means(number, row, phase="online"):
        paper = TABLES[number]
        return {c.envs: float(paper.numbers[row, c.label, phase].mean) for c in paper.columns}

    for number in (1, 2):
        for row in TABLES[number].rows:
            assert means(number, row.label) == means(6, row.label)
    assert means(3, "0.5").items() <= means(1, "DFP").items()
    for envs, mean in means(4, "4").items():  # K = 4 is DFP on OGBench; Robomimic has K = 2
        if all(env.startswith("cube") for env in envs):
            values = [means(1, "DFP")[env,] for env in envs]
            assert np.mean(values) == pytest.approx(mean, abs=0.0501)


def test_the_gpu_hours_sum_to_their_total():
    hours = {row["experiment"]: int(row["gpu_hours_rtx3090"]) for row in records(10)}
    assert hours.pop("Total") == sum(hours.values())


@pytest.mark.parametrize("number", NUMBERS)
def test_every_published_row_says_where_it_stands(number):
    for row in records(number):
        assert row["table"] == str(number)
        assert re.fullmatch(r"[1-6A-E](\.\d)?(, \d\.\d)?", row["section"])


def test_the_rows_are_methods_of_this_package():
    rows = [row for paper in TABLES.values() for row in paper.rows + paper.variants]
    assert {row.method for row in rows} <= set(presets.METHODS)
    assert {figure.table for figure in FIGURES} <= TABLES.keys()
    assert not TABLES.keys() & LISTS.keys()


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


def test_the_bootstrap_interval_of_many_runs_is_that_of_the_normal_law():
    """mean ± 1.96 s / sqrt(n); a 90 % interval would be narrower by a sixth."""
    values = np.random.default_rng(0).exponential(size=400)
    half = 1.96 * values.std() / 20
    assert results.bootstrap(values) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.08 * half
    )


def group(steps, success, offline, total):
    return RunGroup(
        "dfp", TRIPLE, pd.DataFrame({"seed": 0, "step": steps, "success": success}), offline, total
    )


def test_the_numbers_of_a_phase_are_those_of_its_last_evaluation():
    def ends(*args):
        return tuple(group(*args).at_end(phase).tolist() for phase in ("offline", "online"))

    assert ends([10, 20, 30, 40], [0.1, 0.2, 0.3, 0.4], 25, 40) == ([0.2], [0.4])
    assert ends([10, 20, 30], [0.1, 0.2, 0.3], 25, 40) == ([0.2], [])
    assert ends([10, 20], [0.1, 0.2], 25, 40) == ([], [])
    assert ends([10, 20], [0.1, 0.2], 20, 20) == ([0.2], [])


def test_rounding_errors_are_printed_as_zero():
    assert str(comparison.rounded(-1.4e-17)) == "0.0"
    assert comparison.rounded(33.333333333) == 33.3333


# ---- the report ------------------------------------------------------------------------------------------------------


def test_ours_stands_beside_the_papers_with_its_conditions(written):
    text = (written / "report.md").read_text()
    one = table(text, 1)
    assert one["DFP", "paper"]["cube-triple-task2"] == "98.4 ± 1"
    assert one["DFP", "ours"]["cube-triple-task2"] == "95.0 ± 4.6 (3)"
    assert one["DFP", "ours"]["cube-triple-task3"] == "—"
    assert one["DFP", "ours"]["Avg."] == "—"
    assert one["MVP", "ours"]["cube-triple-task2"] == "80.0 (1)"
    assert table(text, 6)["DFP", "ours"]["cube-triple-task2"] == "10.0 ± 0.0 (3) → 95.0 ± 4.6 (3)"
    conditions = "paper preset, 1M + 1M steps, 100 episodes per evaluation, generated data"
    assert f"- (a) {conditions}" in section(text, "## Table 1. ")


def test_only_tables_with_runs_are_printed_unless_asked_for(runs, tmp_path):
    def printed(*flags):
        report.main([str(runs), "--out", str(tmp_path / "out"), "--no-figures", *flags])
        text = (tmp_path / "out" / "report.md").read_text()
        return [int(n) for n in re.findall(r"^## Table (\d+)\.", text, flags=re.MULTILINE)]

    assert printed() == [1, 2, 3, 4, 6]  # K = 4 on cube-triple is DFP's own
    assert printed("--all") == list(NUMBERS)
    assert printed("--tables", "7", "9") == [7, 9]


def test_a_table_that_the_paper_has_not_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        report.main(["--tables", "11", "--out", str(tmp_path)])
    assert "--tables has 11; the paper has Tables 1 to 10" in capsys.readouterr().err


def test_a_run_that_has_not_ended_fills_only_the_phase_it_ended(written):
    text = (written / "report.md").read_text()
    assert re.search(rf"\| {TRIPLE} \| qc-fql \| .* \| 30\.0 \(1\) \| — \| 1 unfinished \|", text)
    assert table(text, 6)["QC-FQL", "ours"]["cube-triple-task2"] == "30.0 (1) → —"


def test_a_changed_setting_is_a_row_of_its_own(written):
    text = (written / "report.md").read_text()
    assert f"| {QUADRUPLE} | dfp lam=0.1 |" in section(text, "## All runs")
    assert table(text, 3)["0.1", "ours"]["cube-quadruple-task2"] == "70.0 (1)"
    assert "70.0" not in section(text, "## Table 1. ")
    assert ("0.5", "ours") not in table(text, 3)


@pytest.mark.parametrize("method", VARIANTS)
@pytest.mark.parametrize("preset", ["paper", "laptop"])
def test_another_field_is_never_printed_in_the_row_of_the_published_method(
    method, preset, tmp_path
):
    write_run(tmp_path / "runs", method, TRIPLE, 0, [0.1, 0.2, 0.5, 0.77], preset=preset)
    report.main([str(tmp_path / "runs"), "--out", str(tmp_path), "--no-figures"])
    text = (tmp_path / "report.md").read_text()
    for number in (1, 2, 6):
        found = table(text, number)
        assert {source for _, source in found} == {"paper", "ours"}
        assert [label for label, source in found if source == "ours"] == [VARIANTS[method]]
        assert "77.0 (1)" in found[VARIANTS[method], "ours"]["cube-triple-task2"]
        part = section(text, f"## Table {number}. ")
        assert part.index("**Not in the paper**") < part.index("77.0")


def test_a_mean_over_tasks_needs_a_run_of_each(tmp_path):
    triple = [f"cube-triple-play-singletask-task{task}-v0" for task in (2, 3, 4)]
    for env, success in zip(triple, (0.3, 0.6, 0.9), strict=True):
        assert table_4_cell(tmp_path) == "—"
        for seed in (0, 1):
            change = 0.1 if seed else -0.1
            write_run(tmp_path / "runs", "dfp", env, seed, [0.1, success + change], "--top-k", "2")
    assert table_4_cell(tmp_path) == "60.0"


def table_4_cell(root):
    report.main([str(root / "runs"), "--out", str(root), "--tables", "4", "--no-figures"])
    found = table((root / "report.md").read_text(), 4)
    return found.get(("2", "ours"), {}).get("Cube-3.", "—")


def test_table_7_takes_runs_with_the_numbers_of_table_8_whatever_their_preset(tmp_path):
    (row,) = [row for row in TABLES[7].rows if row.method == "dfp"]
    agent, _ = presets.preset("paper-offline", "dfp", SCENE)
    as_table_8 = ["--online-steps", "0", "--online-start", "0"]
    for name in ("chunk", "lam", "lam_offline", "candidates", "top_k", "act_samples"):
        as_table_8 += [f"--{name.replace('_', '-')}", str(getattr(agent, name))]
    for name in ("field", "improve_field"):
        as_table_8 += [f"--{name.replace('_', '-')}", getattr(agent, name)]
    write_run(tmp_path, "dfp", SCENE, 0, [0.5], preset="paper-offline")
    write_run(tmp_path, "dfp", SCENE, 1, [0.6], *as_table_8)
    write_run(tmp_path, "dfp", SCENE, 2, [0.1, 0.2, 0.3, 0.4])  # chunks, with an online phase
    write_run(tmp_path, "dfp", SCENE, 3, [0.7], "--top-k", "4", preset="paper-offline")
    found = [g for g in reading.read([tmp_path]) if comparison.matches(TABLES[7], row, g)]
    assert sorted(g.at_end("offline").index.item() for g in found) == [0, 1]


def test_table_7_at_laptop_size_is_pure_offline_rl(tmp_path):
    """And takes no run without the top-K term, or with best-of-N' acting, for DFP's."""
    (row,) = [row for row in TABLES[7].rows if row.method == "dfp"]
    kinds = plan.from_table(7, preset="laptop").kinds
    assert {kind.settings.preset for kind in kinds} == {"laptop-offline"}
    assert {(k.settings.agent.chunk, k.settings.schedule.online_steps) for k in kinds} == {(1, 0)}
    write_run(tmp_path, "dfp", SCENE, 0, [0.5], preset="laptop-offline")
    alone = ("--chunk", "1", "--online-steps", "0", "--online-start", "0")
    write_run(tmp_path, "dfp", SCENE, 1, [0.6], *alone, preset="laptop")
    found = [g for g in reading.read([tmp_path]) if comparison.matches(TABLES[7], row, g)]
    assert [g.at_end("offline").index.item() for g in found] == [0]
    agent = found[0].agent
    assert (agent["lam_offline"], agent["act_samples"]) == (agent["lam"], 1)


def test_seeds_of_before_and_after_a_setting_was_added_are_one_group(tmp_path):
    write_run(tmp_path, "dfp", MAZE, 0, [0.5], preset="laptop")
    old = write_run(tmp_path, "dfp", MAZE, 1, [0.7], preset="laptop") / "config.json"
    stored = json.loads(old.read_text())
    del stored["settings"]["agent"]["q_weight"], stored["settings"]["schedule"]["eval_seed"]
    old.write_text(json.dumps(stored))
    (found,) = reading.read([tmp_path])
    assert list(found.curve().columns) == [0, 1]


def test_groups_that_look_alike_are_told_apart_and_none_is_dropped(tmp_path):
    """Data in folders of one name: every table and comparison has rows of both."""
    for seed, place in enumerate(("a", "b")):
        folder = str(tmp_path / place / "mine")
        write_run(tmp_path, "dfp", TRIPLE, seed, [0.5, 0.5 + 0.4 * seed], "--data", folder)
    found = reading.read([tmp_path])
    assert len({(g.env, g.name, g.protocol) for g in found}) == len(found) == 2
    report.main([str(tmp_path), "--out", str(tmp_path / "out"), "--tables", "1", "--no-figures"])
    text = (tmp_path / "out" / "report.md").read_text()
    assert "50.0 (1)" in text and "90.0 (1)" in text


def test_runs_evaluated_or_fed_otherwise_are_told_apart(tmp_path):
    write_run(tmp_path, "dfp", MAZE, 0, [1.0], preset="laptop")
    write_run(tmp_path, "dfp", MAZE, 0, [0.9], "--eval-episodes", "50", preset="laptop")
    write_run(tmp_path, "dfp", MAZE, 0, [0.8], "--data", str(tmp_path / "mine"), preset="laptop")
    write_run(
        tmp_path, "dfp", MAZE, 0, [0.7], "--envs", "4", "--noise-on", "device", preset="laptop"
    )
    found = reading.read([tmp_path])
    assert {each.name for each in found} == {"dfp"}
    assert {each.conditions[2:] for each in found} == {
        ("20 episodes per evaluation", "generated data"),
        ("50 episodes per evaluation", "generated data"),
        ("20 episodes per evaluation", "data=mine"),
        ("20 episodes per evaluation", "generated data", "envs=4", "noise_on=device"),
    }


def test_how_often_a_run_is_logged_makes_it_no_other_run(tmp_path):
    write_run(tmp_path, "dfp", MAZE, 0, [1.0], preset="laptop")
    often = ("--log-every", "7", "--checkpoint-every", "9")
    (kind,) = plan.from_methods(["dfp"], [MAZE], preset="laptop", extra=often).kinds
    assert kind.job(tmp_path, 0).folder.exists()
    write_run(tmp_path, "dfp", MAZE, 1, [0.5], *often, preset="laptop")
    (found,) = reading.read([tmp_path])
    assert list(found.curve().columns) == [0, 1]


def test_settings_of_shards_make_no_other_run_where_there_are_none(tmp_path):
    write_run(tmp_path, "dfp", MAZE, 0, [1.0], preset="laptop")
    (kind,) = plan.from_methods(["dfp"], [MAZE], preset="laptop", extra=("--memory-gb", "8")).kinds
    assert kind.job(tmp_path, 0).folder.exists()
    older = write_run(tmp_path, "dfp", MAZE, 1, [0.5], preset="laptop") / "config.json"
    stored = json.loads(older.read_text())  # of a version without shards
    del stored["settings"]["memory_gb"], stored["settings"]["swap_every"]
    older.write_text(json.dumps(stored))
    (found,) = reading.read([tmp_path])
    assert list(found.curve().columns) == [0, 1]
    for memory in ("2", "8"):
        flags = ("--data", str(tmp_path), "--memory-gb", memory)
        write_run(tmp_path / "s", "dfp", MAZE, 0, [1.0], *flags, preset="laptop")
    assert len({found.protocol for found in reading.read([tmp_path / "s"])}) == 2


def test_a_run_without_train_csv_still_has_its_evaluations(tmp_path):
    (write_run(tmp_path / "runs", "dfp", MAZE, 0, [1.0], preset="laptop") / "train.csv").unlink()
    report.main([str(tmp_path / "runs"), "--out", str(tmp_path), "--no-figures"])
    assert "100.0 (1)" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("longer", ["a", "b"])
def test_of_a_seed_run_twice_the_run_that_came_further_counts(longer, tmp_path):
    for place in ("a", "b"):
        write_run(tmp_path / place, "dfp", TRIPLE, 0, [0.1, 0.9], upto=2 if place == longer else 1)
    (found,) = reading.read([tmp_path / "a", tmp_path / "b"])
    assert found.at_end("online").tolist() == [0.9]


def test_what_is_missing_is_counted_and_the_command_runs_it(written):
    one = section((written / "report.md").read_text(), "## Table 1. ")
    assert "2 of 72 combinations of row and task have finished runs" in one
    assert "`python -m wgflow_rl.sweep --table 1` runs the others" in one


def test_tables_csv_holds_every_number_of_the_tables(written):
    with (written / "tables.csv").open() as file:
        rows = list(csv.DictReader(file))
    cells = {
        (row["table"], row["row"], row["column"], row["phase"], row["by"]): row for row in rows
    }
    paper = cells["1", "DFP", "cube-triple-task2", "online", "paper"]
    assert (paper["mean"], paper["std"], paper["env"]) == ("98.4", "1", TRIPLE)
    ours = cells["1", "DFP", "cube-triple-task2", "online", "ours"]
    assert (ours["mean"], ours["seeds"], ours["values"]) == ("95.0", "3", "90 96 99")
    assert cells["4", "4", "Cube-3.", "online", "paper"]["mean"] == "90.4"
    assert {row["by"] for row in rows} == {"paper", "ours"}


def test_the_figures_named_in_the_report_are_there(written):
    text = (written / "report.md").read_text()
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert {"figure-1.png", "figure-3.png", "figure-4.png", "figure-5.png"} <= set(pictures)
    assert f"curves-{MAZE}.png" in pictures
    for name in pictures:
        assert (written / name).read_bytes().startswith(b"\x89PNG")
    assert not list(written.glob(".*"))


# ---- logs of other code bases ----------------------------------------------------------------------------------------


def write_log(root, text, name="their-dfp", env=TRIPLE):
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name / f"{env}.csv").write_text(text)


def test_a_log_stands_apart_in_the_same_tables_and_figures(runs, tmp_path):
    write_log(
        tmp_path / "logs",
        "step,seed,success\n500000,0,0.1\n2000000,0,0.5\n500000,1,0.2\n2000000,1,0.7\n",
    )
    out = tmp_path / "out"
    report.main(
        [
            str(runs),
            str(tmp_path / "logs"),
            "--out",
            str(out),
            "--peer-offline-steps",
            "1000000",
            "--no-figures",
        ]
    )
    text = (out / "report.md").read_text()
    assert table(text, 1)["their-dfp", "log"]["cube-triple-task2"] == "60.0 ± 14.1 (2)"
    found = section(text, "## All runs")
    assert f"| {TRIPLE} | their-dfp | its own code | 15.0 ± 7.1 [10.0, 20.0] (2) |" in found


@pytest.mark.parametrize("name", ["dfp", "DFP", "their-dfp"])
def test_a_log_named_like_our_runs_or_another_log_is_drawn_beside_them(name, tmp_path, monkeypatch):
    """Every group of the report is a line of some figure, and a row of the tables of its environment."""
    from matplotlib.figure import Figure

    for env, preset in ((TRIPLE, "paper"), (MAZE, "laptop")):
        write_run(tmp_path / "runs", "dfp", env, 0, [0.3, 0.4], preset=preset)
        for place, success in (("a", 0.5), ("b", 0.6)):
            text = f"step,seed,success\n1000000,0,{success}\n2000000,0,{success}\n"
            write_log(tmp_path / place, text, name=name, env=env)
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: drawn.append(figure))
    places = [str(tmp_path / place) for place in ("runs", "a", "b")]
    report.main([*places, "--out", str(tmp_path / "out"), "--peer-offline-steps", "1000000"])
    ends = {
        round(float(line.get_ydata()[-1]), 3)
        for figure in drawn
        for axes in figure.axes
        for line in axes.lines
    }
    assert {0.4, 0.5, 0.6} <= ends
    for figure in drawn:
        for axes in figure.axes:
            labels = [line.get_label() for line in axes.lines]
            assert len(labels) == len(set(labels))
    text = (tmp_path / "out" / "report.md").read_text()
    assert "50.0" in section(text, "## Table 1.") and "60.0" in section(text, "## Table 1.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "step,seed,success\n1,0,50\n",
            "line 2, column success: '50'; wanted a fraction between 0 and 1",
        ),
        (
            "step,seed,success\n1,0\n",
            "line 2, column success: ''; wanted a fraction between 0 and 1",
        ),
        (
            "step,seed,success\n1,0,0.5\n2,0,nan\n",
            "line 3, column success: 'nan'; wanted a fraction between 0 and 1",
        ),
        ("step,seed,success\n", "has a header and no rows"),
    ],
)
def test_a_log_that_cannot_be_read_is_named_with_its_line(text, message, tmp_path, capsys):
    write_log(tmp_path, text)
    report.main([str(tmp_path), "--out", str(tmp_path / "out"), "--tables", "10"])
    assert message in capsys.readouterr().err
    assert message.replace("'", "") in (tmp_path / "out" / "report.md").read_text().replace("'", "")
    with pytest.raises(ValueError, match=re.escape(message)):
        reading.read([tmp_path])


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffstep,seed,success\n10,0,0.5\n20,0,0.75\n",
        "step;seed;success\n10;0;0,5\n20;0;0.75\n",
        "Step,SEED,Success\n10,0,0.5\n20,0,0.75\n",
        "wall,success, seed ,step,note\n1.5,0.5,0,10,\n2.5,0.75,0,20,good\n",
        "step\tseed\tsuccess\r\n10\t0\t0.5\r\n20.0\t0\t0.75\r\n\r\n",
    ],
    ids=["byte-order mark", "semicolons", "capital letters", "other columns", "tabs"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_logs_of_every_spelling_are_read(text, encoding, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / f"{TRIPLE}.csv").write_bytes(text.encode(encoding))
    (found,) = reading.read([tmp_path])
    assert found.evaluations.to_numpy().tolist() == [[0, 10, 0.5], [0, 20, 0.75]]


def test_tables_that_are_no_logs_are_left_alone(tmp_path):
    write_log(tmp_path, "step,phase,success,wall_s\n1,offline,0.5,1\n", name="eval")
    write_log(tmp_path, "a,b\n1,2\n", name="other")
    write_log(tmp_path, "", name="empty")
    assert reading.read([tmp_path]) == []
    write_log(tmp_path, "step,success\n1,0.5\n", name="seedless")
    with pytest.raises(ValueError, match="has no column seed"):
        reading.read([tmp_path])


def test_a_seed_of_a_log_that_ended_early_is_unfinished(tmp_path):
    """Two seeds end at 90 %; one stopped at the end of its offline phase, at 10 %."""
    rows = [
        f"{t},{seed},{0.9 if t > 500 else 0.1}" for seed in (0, 1) for t in range(100, 1001, 100)
    ]
    rows += [f"{t},2,0.1" for t in range(100, 501, 100)]
    rows += [f"{t},3,0.9" for t in range(50, 960, 100)]  # less than an interval before the others
    write_log(tmp_path, "\n".join(["step,seed,success", *rows]))
    for offline in (500, None):
        (found,) = reading.read([tmp_path], peer_offline=offline)
        assert found.at_end("online").to_dict() == {0: 0.9, 1: 0.9, 3: 0.9}
        assert found.unfinished == 1
    assert found.curve().empty
    assert "no step has an evaluation of each of its 4 seeds" in found.curve_is_cut


def test_a_curve_that_is_cut_says_so(tmp_path):
    write_run(tmp_path / "runs", "dfp", MAZE, 0, [0.0, 0.1, 0.5, 0.9], preset="laptop")
    write_run(tmp_path / "runs", "dfp", MAZE, 1, [0.0, 0.1, 0.5, 0.9], preset="laptop", upto=2)
    (found,) = reading.read([tmp_path / "runs"])
    assert len(found.curve()) == 2
    report.main([str(tmp_path / "runs"), "--out", str(tmp_path)])
    assert "dfp: the curve ends at step" in (tmp_path / "report.md").read_text()
    write_run(
        tmp_path / "runs", "dfp", MAZE, 1, [0.0, 0.1, 0.5, 0.9], "--lam", "1", preset="laptop"
    )
    assert [group.curve_is_cut for group in reading.read([tmp_path / "runs"])][1] == ""


def test_runs_whose_long_names_begin_alike_have_a_line_each(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    field = "drifting:0.005+drifting:0.05"
    alike = ("--field", field, "--improve-field", field, "--lam")
    for lam in ("0.1", "0.5", "1"):
        write_run(tmp_path / "runs", "dfp", MAZE, 0, [0.0, 0.5], *alike, lam, preset="laptop")
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: drawn.append(figure))
    report.main([str(tmp_path / "runs"), "--out", str(tmp_path)])
    labels = [[line.get_label() for line in f.axes[0].lines] for f in drawn]
    assert any(len({*each}) == 3 for each in labels)


# ---- runs of other people --------------------------------------------------------------------------------------------

FORMULA = '=HYPERLINK("http://example.org","x")'


def rename(run, **settings):
    path = run / "config.json"
    stored = json.loads(path.read_text())
    stored["settings"] |= settings
    path.write_text(json.dumps(stored))


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("../../../escaped", True),
        ("/absolute", False),
        ("<script>alert(1)</script>", False),
        ("a | b\n# heading\n![x](http://example.org/x.png)", False),
        (FORMULA, False),
        ("$\\frac{$", True),
        ("x" * 5000, True),
        ("\x00", False),
    ],
    ids=["traversal", "absolute", "html", "markdown", "formula", "mathematics", "long", "null"],
)
def test_names_in_received_runs_are_text_everywhere(name, drawn, tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "deep" / "out"
    for seed in (0, 1):
        run = write_run(runs, "dfp", MAZE, seed, [0.5, 1.0], preset="laptop")
        rename(run, env=name, method=name, preset=name, data=name)
    before = set(tmp_path.rglob("*"))
    report.main([str(runs), "--out", str(out), *([] if drawn else ["--no-figures"])])
    made = set(tmp_path.rglob("*")) - before - {out, out.parent}
    assert all(path.parent == out for path in made)
    text = (out / "report.md").read_text()
    assert "<script" not in text and "![x]" not in text and "\n# heading" not in text
    for line in section(text, "## All runs").splitlines():
        assert not line.startswith("|") or len(re.findall(r"(?<!\\)\|", line)) == 7
    with (out / "runs.csv").open() as file:
        for row in csv.DictReader(file):
            assert not any(cell[:1] in ("=", "+", "-", "@") for cell in row.values() if cell)


def broken(run, kind):
    config, evaluations = run / "config.json", run / "eval.csv"
    if kind.startswith("pipe"):
        path = run / kind.removeprefix("pipe ")
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    elif kind == "device":
        evaluations.unlink()
        evaluations.symlink_to("/dev/zero")
    elif kind == "huge":
        with evaluations.open("r+b") as file:
            file.truncate(1 << 40)  # sparse
    elif kind == "not JSON":
        config.write_text("{")
    elif kind == "nested":
        config.write_text("[" * 10**5)
    elif kind == "not text":
        config.write_bytes(b"\xff\xfe\xff")
    elif kind == "no numbers":
        evaluations.write_text("step,phase,success\nx,offline,y\n")
    elif kind == "percent":
        evaluations.write_text("step,phase,success\n100,offline,97.5\n")
    elif kind == "no columns":
        evaluations.write_text("a,b\n1,2\n")
    else:
        rename(run, **{kind: {"agent": 3}})


@pytest.mark.parametrize(
    "kind",
    [
        *("pipe config.json", "pipe eval.csv", "device", "huge", "not JSON", "nested", "not text"),
        *(
            "no numbers",
            "percent",
            "no columns",
            "seed",
            "env",
            "method",
            "preset",
            "schedule",
            "data",
        ),
    ],
)
def test_one_bad_run_does_not_stop_the_report(kind, tmp_path, capsys):
    good = write_run(tmp_path / "runs", "dfp", MAZE, 0, [0.5, 1.0], preset="laptop")
    bad = write_run(tmp_path / "runs", "mvp", MAZE, 1, [0.5, 1.0], preset="laptop")
    broken(bad, kind)
    args = ["--out", str(tmp_path / "out"), "--no-figures"]
    report.main([str(tmp_path / "runs"), *args])
    err = capsys.readouterr().err
    assert err.count("skipped: ") == 1 and str(bad) in err and str(good) not in err
    text = (tmp_path / "out" / "report.md").read_text()
    assert "100.0 (1)" in section(text, "## All runs")
    assert str(bad) in section(text, "## Skipped")


@pytest.mark.parametrize("kind", ["pipe train.csv", "pipe other.csv", "pipe checkpoints.csv"])
def test_a_pipe_does_not_stop_the_report(kind, tmp_path):
    broken(write_run(tmp_path / "runs", "dfp", MAZE, 0, [0.5, 1.0], preset="laptop"), kind)
    report.main(
        [str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--no-figures", "--tables", "9"]
    )
    assert "100.0 (1)" in (tmp_path / "out" / "report.md").read_text()


def test_a_log_of_very_many_seeds_is_refused(tmp_path):
    rows = (f"1,{seed},0.5" for seed in range(peers.MANY + 1))
    write_log(tmp_path, "\n".join(["step,seed,success", *rows]))
    with pytest.raises(ValueError, match="has 1,001 seeds"):
        reading.read([tmp_path])


def test_one_seed_and_no_warning(tmp_path):
    write_run(tmp_path / "runs", "dfp", MAZE, 0, [0.0, 0.1, 0.5, 0.9], preset="laptop")
    done = python("-W", "error", "-m", "wgflow_rl.report", "runs", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "report/report.md\n"
