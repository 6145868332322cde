"""A run folder has one writer, loses nothing to a kill, and resumed reads as if it had never been stopped."""

import json
import math
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from tests.children import python
from wgflow_rl.training import provenance, runlog
from wgflow_rl.training.csv_table import read_rows
from wgflow_rl.training.curve import draw_curve
from wgflow_rl.training.runlog import RunLog, wilson


def write(log, steps):
    """The rows a run of this seed writes at these steps; from step 30 on it is online and logs one more number."""
    for step in steps:
        phase = "offline" if step < 30 else "online"
        log.train(
            step,
            phase,
            {"loss/bc": 1 / (step + 1), "q": -step} | ({"loss/top_k": 0.5} if step >= 30 else {}),
        )
        if step % 20 == 0:
            log.evaluation(
                step,
                phase,
                successes=step // 20,
                episodes=20,
                episode_return=-step,
                length=500.0 - step,
            )


def without_clock(path):
    columns, rows = read_rows(path)
    return columns, [{k: v for k, v in row.items() if k != "wall_s"} for row in rows]


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_wilsons(counts):
    expected = binomtest(*counts).proportion_ci(method="wilson")
    assert wilson(*counts) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_interval_of_no_and_of_all_successes_ends_exactly_at_0_and_1():
    for n in range(1, 200):
        assert wilson(0, n)[0] == 0
        assert wilson(n, n)[1] == 1


@pytest.mark.parametrize("counts", [(0, 0), (-1, 5), (6, 5)])
def test_no_proportion_has_no_interval(counts):
    with pytest.raises(ValueError, match="successes"):
        wilson(*counts)


def test_eval_csv_has_exactly_its_columns(tmp_path):
    with RunLog(tmp_path, tensorboard=False) as log:
        write(log, range(0, 50, 10))
    columns, rows = read_rows(tmp_path / "eval.csv")
    assert ",".join(columns) == "step,phase,success,success_low,success_high,return,length,wall_s"
    assert [row["step"] for row in rows] == ["0", "20", "40"]
    assert float(rows[2]["success"]) == 0.1


def test_a_late_key_becomes_a_column_and_a_missing_one_an_empty_cell(tmp_path):
    with RunLog(tmp_path, tensorboard=False) as log:
        log.train(0, "offline", {"a": 1})
        log.train(1, "online", {"b": 2.5})
    assert (tmp_path / "train.csv").read_text().splitlines()[0] == "step,phase,wall_s,a,b"
    _, rows = read_rows(tmp_path / "train.csv")
    assert [(row["a"], row["b"]) for row in rows] == [("1", ""), ("", "2.5")]


@pytest.mark.parametrize("killed_at", [0, 10, 30, 40, 60])
def test_killed_and_resumed_ends_like_never_killed(tmp_path, killed_at):
    with RunLog(tmp_path / "whole", tensorboard=False) as log:
        write(log, range(0, 80, 10))
    with RunLog(tmp_path / "killed", tensorboard=False) as log:
        write(log, range(0, killed_at + 20, 10))  # ran on after its last checkpoint
    with RunLog(tmp_path / "killed", resume_step=killed_at, tensorboard=False) as log:
        write(log, range(killed_at + 10, 80, 10))
    for name in ("train.csv", "eval.csv"):
        assert without_clock(tmp_path / "killed" / name) == without_clock(tmp_path / "whole" / name)


@given(st.integers(1, 400))
def test_a_row_cut_anywhere_costs_that_row_only(tmp_path_factory, length):
    folder = tmp_path_factory.mktemp("cut")
    with RunLog(folder, tensorboard=False) as log:
        write(log, range(0, 30, 10))
    whole = (folder / "train.csv").read_bytes()
    kept = whole[: min(length, len(whole))]
    (folder / "train.csv").write_bytes(kept)
    with RunLog(folder, resume_step=100, tensorboard=False):
        pass
    left = (folder / "train.csv").read_bytes()
    complete = kept.count(b"\n")
    header = b"step,phase,wall_s\n"  # when even the header was cut the table starts again
    assert left == (b"".join(whole.splitlines(keepends=True)[:complete]) or header)


@pytest.mark.parametrize("cell", ["x", '1.5"', "\x00", "nine,9", "1\r2"])
@pytest.mark.parametrize("column", [0, 2, 3])
def test_a_damaged_row_is_warned_about_and_dropped_with_those_below(tmp_path, cell, column):
    with RunLog(tmp_path, tensorboard=False) as log:
        write(log, range(0, 30, 10))
    lines = (tmp_path / "train.csv").read_text().splitlines()
    cells = lines[2].split(",")
    cells[column] = cell
    lines[2] = ",".join(cells)
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    with pytest.warns(RuntimeWarning, match="train.csv is damaged: line 3 "):
        RunLog(tmp_path, resume_step=100, tensorboard=False).close()
    assert (tmp_path / "train.csv").read_text().splitlines() == lines[:2]


def test_a_step_out_of_order_is_damage(tmp_path):
    with RunLog(tmp_path, tensorboard=False) as log:
        write(log, [0, 910, 20])  # 10, damaged
    with pytest.warns(RuntimeWarning, match="train.csv is damaged: line 4 "):
        RunLog(tmp_path, resume_step=100, tensorboard=False).close()


def test_a_table_with_another_header_is_refused(tmp_path):
    with RunLog(tmp_path, tensorboard=False) as log:
        write(log, [0])
    damaged = (tmp_path / "eval.csv").read_text().replace("success", "sucess")
    (tmp_path / "eval.csv").write_text(damaged)
    with pytest.raises(ValueError, match="eval.csv is damaged: it begins with 'step,phase,sucess"):
        RunLog(tmp_path, resume_step=0, tensorboard=False)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_a_table_a_damaged_one_or_refused(tmp_path_factory, contents, headed):
    folder = tmp_path_factory.mktemp("bytes")
    RunLog(folder, tensorboard=False).close()
    (folder / "train.csv").write_bytes(b"step,phase,wall_s\n" * headed + contents)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            log = RunLog(folder, resume_step=5, tensorboard=False)
        except ValueError as error:
            refused = str(error)
            log = None
    if log is None:
        assert "train.csv is damaged" in refused
        return
    log.train(6, "offline", {"x": 1})
    log.close()
    assert read_rows(folder / "train.csv")[1][-1]["step"] == "6"


def test_where_nothing_can_be_written_no_run_begins(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is no folder.*--run-dir"):
        runlog.check_folder(tmp_path / "file" / "run", resume=False)
    (tmp_path / "shut").mkdir(mode=0o500)
    if os.access(tmp_path / "shut", os.W_OK):
        pytest.skip("this user may write anywhere")
    with pytest.raises(PermissionError, match="nothing can be written to .*shut.*--run-dir"):
        runlog.check_folder(tmp_path / "shut" / "run", resume=False)


def test_a_config_that_lost_its_resumes_is_refused(tmp_path):
    with RunLog(tmp_path, tensorboard=False) as log:
        log.config({})
        log.train(0, "offline", {"x": 1})
    (tmp_path / "config.json").write_text('{"settings": {}}')
    with (
        RunLog(tmp_path, resume_step=0, tensorboard=False) as log,
        pytest.raises(ValueError, match="config.json is damaged: it has no list of resumes"),
    ):
        log.config({})


def test_the_clock_goes_on(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(runlog.time, "monotonic", lambda: now[0])
    with RunLog(tmp_path, tensorboard=False) as log:
        for step in (0, 1, 2):
            now[0] += 50
            log.train(step, "offline", {"x": 0})
    now[0] = 7.0
    with RunLog(tmp_path, resume_step=1, tensorboard=False) as log:
        assert log.wall_s == 100.0
        now[0] += 5
        log.train(2, "offline", {"x": 0})
    assert [row["wall_s"] for row in read_rows(tmp_path / "train.csv")[1]] == ["50", "100", "105"]


def test_a_run_killed_before_its_settings_were_written_blocks_no_new_one(tmp_path):
    RunLog(tmp_path, tensorboard=False).close()
    with RunLog(tmp_path, tensorboard=False) as log:
        write(log, [0])
    assert len(read_rows(tmp_path / "eval.csv")[1]) == 1


def test_there_must_be_a_run_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        RunLog(tmp_path / "missing", resume_step=5)
    assert not (tmp_path / "missing").exists()


HOLD = """
    import sys
    from wgflow_rl.training.runlog import RunLog
    log = RunLog(sys.argv[1], tensorboard=False)
    log.train(3, "offline", {"x": 1})
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_processes_cannot_write_and_a_killed_one_lets_go(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(tmp_path / "run")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RuntimeError, match="another process"):
            RunLog(tmp_path / "run", resume_step=3, tensorboard=False)
        other.kill()
        other.wait()
    with RunLog(tmp_path / "run", resume_step=3, tensorboard=False) as log:
        log.train(4, "offline", {"x": 2})
    assert [row["x"] for row in read_rows(tmp_path / "run" / "train.csv")[1]] == ["1", "2"]


def test_config_says_what_ran_and_what_resumed_it(tmp_path):
    with RunLog(tmp_path, tensorboard=False) as log:
        log.config({"env": "pointmaze", "seed": 3})
        log.train(0, "offline", {"x": 1})
    with RunLog(tmp_path, resume_step=0, tensorboard=False) as log:
        log.config({"env": "another"})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["settings"] == {"env": "pointmaze", "seed": 3}
    assert config["versions"].keys() >= {"python", "torch", "numpy"}
    assert [entry["step"] for entry in config["resumed"]] == [0]


def test_the_commit_is_this_projects_or_none():
    commit, root = provenance.provenance()["commit"], Path(provenance.__file__).parents[2]
    assert (commit is not None) == (root / ".git").exists()
    assert commit is None or len(commit.removesuffix("-dirty")) == 40


def test_a_package_inside_another_checkout_has_no_commit(tmp_path, monkeypatch):
    package = tmp_path / "lib" / "site-packages" / "wgflow_rl"
    package.mkdir(parents=True)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance, "__file__", str(package / "training" / "provenance.py"))
    assert provenance.provenance()["commit"] is None


def test_tensorboard_shows_one_value_per_step_of_a_resumed_run(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path) as log:
        write(log, (0, 20, 30))
    with RunLog(tmp_path, resume_step=20, evaluate_again=True) as log:
        log.evaluation(20, "offline", successes=1, episodes=20, episode_return=-20, length=480.0)
        write(log, (30, 40))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = {
        name: sorted({(event.step, event.value) for event in events.Scalars(name)})
        for name in ("eval/success", "train/q")
    }
    assert shown["eval/success"] == [(0, 0), (20, pytest.approx(0.05)), (40, pytest.approx(0.1))]
    assert shown["train/q"] == [(0, 0), (20, -20), (30, -30), (40, -40)]


@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_full_disk_is_one_line_that_names_the_file(tmp_path, tensorboard):
    """The limit of the size of a file stands for a full disk; TensorBoard writes in a thread of its own."""
    code = """
    import resource, signal, sys
    from wgflow_rl.training.runlog import RunLog
    from wgflow_rl.utils.cli import one_line_errors
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with one_line_errors(), RunLog(sys.argv[1], tensorboard=bool(int(sys.argv[2]))) as log:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
        for step in range(10_000):
            log.train(step, "offline", {"loss": 1.0})
            if step % 20 == 0:
                log.evaluation(step, "offline", successes=1, episodes=2, episode_return=0.0, length=1.0)
    """
    done = python("-c", textwrap.dedent(code), tmp_path, int(tensorboard))
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: [Errno 27] File too large: ")
    assert str(tmp_path / ("tensorboard" if tensorboard else "train.csv")) in line


@pytest.mark.parametrize(
    "steps", [[0], range(0, 30, 10), range(0, 90, 10), range(40, 90, 10)], ids=str
)
def test_a_curve_can_be_drawn_at_any_time(tmp_path, steps):
    with RunLog(tmp_path, tensorboard=False) as log:
        write(log, steps)
        path = log.curve("title")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".curve*"))


def test_no_row_no_curve(tmp_path):
    with pytest.raises(ValueError, match="no evaluation"):
        draw_curve([], path=tmp_path / "curve.png")


def test_seeds_are_drawn_together(tmp_path):
    runs = []
    for seed in range(3):
        with RunLog(tmp_path / str(seed), tensorboard=False) as log:
            # of different lengths: the mean takes the steps they share
            write(log, range(0, 80 + 20 * seed, 10))
        runs.append(tmp_path / str(seed))
    curve = ("-W", "error", "-m", "wgflow_rl.curve")
    done = python(*curve, *runs, "--out", tmp_path / "all.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
    done = python(*curve, tmp_path)
    assert done.returncode != 0
    assert "no eval.csv" in done.stderr


def test_the_thick_line_is_the_mean_at_the_steps_that_all_runs_share(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    shown = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: shown.append(figure))
    runs = [
        [{"step": s, "phase": "online", "success": y, "length": 9 * y} for s, y in rows]
        for rows in (((1, 0.2), (2, 0.4)), ((2, 0.8), (3, 1.0)), ((1, 0.0), (2, 0.0)))
    ]
    draw_curve(*runs, path=tmp_path / "a.png")
    draw_curve(*runs[::2], path=tmp_path / "a.png")
    for figure, mean in zip(shown, ([[2, 0.4]], [[1, 0.1], [2, 0.2]]), strict=True):
        *thin, thick = figure.axes[0].lines
        assert thick.get_linewidth() > max(line.get_linewidth() for line in thin)
        np.testing.assert_allclose(thick.get_xydata(), mean)
    with pytest.raises(ValueError, match="no step has an evaluation of every run"):
        draw_curve(runs[0][:1], runs[1], path=tmp_path / "a.png")


def test_the_curve_of_one_run_lies_beside_it_that_of_several_where_one_is(
    tmp_path, monkeypatch, capsys
):
    from wgflow_rl import curve

    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        row = "step,phase,success,success_low,success_high,length\n10,offline,.5,.4,.6,100\n20,online,.6,.5,.7,90\n"
        (tmp_path / name / "eval.csv").write_text(row)
    for runs, written in (
        (["a"], "a/curve.png"),
        (["a", "b"], "curve.png"),
        (["a", "--out", "c.png"], "c.png"),
        (["a", "--out", "new/c.png"], "new/c.png"),
    ):
        curve.main(runs)
        assert capsys.readouterr().out == f"{written}\n"
        assert (tmp_path / written).exists()


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (None, "holds no eval.csv"),
        ("", "it has no step, phase, success"),
        ("step,loss\n1,2\n", "it has no phase, success"),
        ("step,phase,success,success_low,success_high,length\n", "no evaluation to draw"),
        ("step,phase,success,success_low,success_high,length\n1,online,x,0,1,9\n", "'x'"),
    ],
)
def test_a_folder_without_a_curve_is_refused_in_one_line(contents, says, tmp_path, capsys):
    from wgflow_rl import curve

    if contents is not None:
        (tmp_path / "eval.csv").write_text(contents)
    with pytest.raises(SystemExit, match="2"):
        curve.main([str(tmp_path), "--out", str(tmp_path / "new" / "curve.png")])
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and says in err


def test_a_curve_of_an_environment_with_scores_shows_them(tmp_path, monkeypatch):
    """And `curve RUN` keeps the title that training gives."""
    from matplotlib.figure import Figure

    from wgflow_rl import curve

    scores = np.array([0.2, 0.8])
    shown = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: shown.append(figure))
    with RunLog(tmp_path / "run", tensorboard=False) as log:
        log.config({"env": "pusht"})
        for step in (1, 2):
            numbers = {"successes": 0, "episodes": 2, "episode_return": 0.0, "length": 3.0}
            row = log.evaluation(step, "offline", **numbers, scores=scores * step / 2)
        half = 1.959963984540054 * scores.std(ddof=1) / 2**0.5
        assert (row["score_low"], row["score_high"]) == pytest.approx((0.5 - half, 0.5 + half))
        alone = log.evaluation(3, "offline", **numbers | {"episodes": 1}, scores=scores[:1])
        assert math.isnan(alone["score_low"]) and alone["score"] == 0.2
        log.curve("pusht")
    curve.main([str(tmp_path / "run")])
    for figure in shown:
        upper = figure.axes[0]
        assert upper.get_ylabel() == "score"
        np.testing.assert_allclose(upper.lines[0].get_ydata(), [0.25, 0.5, 0.2])
        assert figure.get_suptitle() == "pusht"
    assert len(shown) == 2
