"""A sweep runs each configuration once and brings it to its end, whatever is killed, filled up or not a number."""

import csv
import fcntl
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from wgflow_rl import sweep
from wgflow_rl.experiments import cluster, job, plan, stopwatch
from wgflow_rl.experiments.job import Job, Outcome, execute
from wgflow_rl.experiments.tables import TABLES, VARIANTS
from wgflow_rl.training.settings import DEFAULT_ENV, Machine, from_command_line

ROOT = Path(__file__).resolve().parent.parent

# Trains like train does, without learning: a checkpoint and a line in steps.txt for every step. Its flags say what
# befalls it; resumed, it reads them from config.json.
FAKE = """
import json, os, pathlib, resource, signal, sys, time
args = sys.argv[1:]
resumed = "--resume" in args
folder = pathlib.Path(args[args.index("--resume" if resumed else "--run-dir") + 1])
if resumed:
    args = json.loads((folder / "config.json").read_text())["argv"]
else:
    (folder / "config.json").write_text(json.dumps({"argv": args}))
asked = lambda name, default: args[args.index(name) + 1] if name in args else default
checkpoints = folder / "checkpoints"
checkpoints.mkdir(exist_ok=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
step = max((int(p.name[5:]) for p in checkpoints.glob("step-*")), default=0)
while step < int(asked("--offline-steps", 10)) + int(asked("--online-steps", 0)):
    time.sleep(float(asked("--pace", 0)))
    if step == int(asked("--nan-at", -1)):
        sys.exit("error: critic_loss is not finite at step 3 (offline). Checkpoints are from before it")
    if asked("--full-disk", "") and os.path.exists(asked("--full-disk", "")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            with open(folder / "big", "w") as file:
                file.write("x" * 1000)
        except OSError as error:
            sys.exit(f"error: {error}")
    step += 1
    with open(folder / "steps.txt", "a") as file:
        file.write(f"{step} {os.getpid()}\\n")
    (checkpoints / f"step-{step:012d}").touch()
    if step == int(asked("--killed-at", -1)):
        os.kill(os.getpid(), signal.SIGKILL)
    if asked("--hopeless", "") and step == 2:
        (checkpoints / f"step-{step:012d}").unlink()
        sys.exit("error: cannot go on")
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    program = tmp_path / "fake.py"
    program.write_text(FAKE)
    monkeypatch.setattr(job, "TRAIN", (str(program),))
    return program


@pytest.fixture
def folder(tmp_path, fake):
    return tmp_path / "runs" / "one"


def trained(folder):
    """(steps in the order they were taken, processes that took them)."""
    rows = [line.split() for line in (folder / "steps.txt").read_text().splitlines()]
    return [int(step) for step, _ in rows], len({pid for _, pid in rows})


def end(folder, *flags, retries=2):
    return execute(Job(folder, flags, 10), retries=retries, pause=0)


# ---- one run ---------------------------------------------------------------------------------------------------------


def test_a_run_is_done_once(folder):
    assert end(folder) == Outcome("done", attempts=1)
    assert end(folder) == Outcome("done", attempts=1)
    assert trained(folder) == (list(range(1, 11)), 1)


def test_a_killed_training_goes_on_from_its_last_checkpoint(folder):
    assert end(folder, "--killed-at", "4") == Outcome("done", attempts=2)
    assert trained(folder) == (list(range(1, 11)), 2)


def test_a_resumed_run_keeps_its_threads_whatever_the_sweep_reserves(folder, tmp_path):
    """Sums are rounded by the number of threads: a run resumed with another would end with other numbers."""
    folder.mkdir(parents=True)
    stored = {"argv": [], "settings": {"machine": {"threads": 1}}}
    (folder / "config.json").write_text(json.dumps(stored))
    program = tmp_path / "says.py"
    program.write_text("import os, sys\nprint(sys.argv[1:], os.environ['OMP_NUM_THREADS'])")
    execute(Job(folder, (), 10, threads=2, program=(str(program),)), retries=0)
    log = (folder / "train.log").read_text()
    assert f"{['--resume', str(folder), '--threads', '1']} 1" in log
    assert "began with 1 threads and keeps them" in log
    stored["settings"]["machine"]["threads"] = None
    (folder / "config.json").write_text(json.dumps(stored))
    (folder / "sweep.json").unlink()
    execute(Job(folder, (), 10, threads=2, program=(str(program),)), retries=0)
    assert f"{['--resume', str(folder), '--threads', '2']} 2" in (folder / "train.log").read_text()


def test_a_diverged_run_is_reported_and_not_repeated(folder):
    outcome = end(folder, "--nan-at", "3")
    assert outcome.state == "diverged"
    assert outcome.attempts == 1
    assert outcome.error.startswith("critic_loss is not finite at step 3")
    assert end(folder) == outcome
    assert job.state(folder) == outcome
    assert trained(folder) == ([1, 2, 3], 1)


def test_a_real_training_that_diverges_is_known_as_such(tmp_path, monkeypatch):
    monkeypatch.setenv("WGFLOW_DATA", str(tmp_path / "data"))
    small = "--offline-steps 12 --online-steps 0 --data-rows 2000 --hidden 8 8 --batch 8 --lr 1e30"
    (kind,) = kinds(*small.split())
    outcome = execute(kind.job(tmp_path, 0), retries=2)
    assert outcome.state == "diverged", outcome.error
    assert outcome.attempts == 1


def test_retries_count_failures_without_progress(folder):
    outcome = end(folder, "--hopeless", "yes", retries=1)
    # the first attempt made a checkpoint, the next two none
    assert outcome == Outcome("failed", "cannot go on", 3)


def test_a_full_disk_is_a_failure_with_its_reason_and_is_tried_again(folder, tmp_path):
    disk_is_full = tmp_path / "full"
    disk_is_full.touch()
    outcome = end(folder, "--full-disk", str(disk_is_full), retries=0)
    assert outcome.state == "failed"
    assert "File too large" in outcome.error
    disk_is_full.unlink()
    assert end(folder, retries=0) == Outcome("done", attempts=1)
    assert trained(folder)[0] == list(range(1, 11))


def test_a_disk_too_full_for_the_sweeps_own_files_is_an_outcome_too(folder, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(job, "write_whole", full)
        outcome = end(folder)
    assert outcome.state == "failed"
    assert "No space left on device" in outcome.error
    assert job.state(folder).state == "started"
    assert end(folder).state == "done"
    assert trained(folder) == (list(range(1, 11)), 1)


def test_a_training_left_behind_keeps_its_folder_until_it_ends(folder, fake):
    code = textwrap.dedent(f"""
        from pathlib import Path
        from wgflow_rl.experiments import job
        job.TRAIN = ({str(fake)!r},)
        job.execute(job.Job(Path({str(folder)!r}), ("--pace", "0.1"), 10), retries=0)
    """)
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as worker:
        wait_for(lambda: (folder / "steps.txt").exists())
        worker.kill()
    assert len(trained(folder)[0]) < 10  # its training lives on, and the next waits for it
    assert end(folder).state == "done"
    assert trained(folder) == (list(range(1, 11)), 1)


def test_two_workers_never_share_a_folder(folder):
    workers = [threading.Thread(target=end, args=(folder, "--pace", "0.02")) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert trained(folder) == (list(range(1, 11)), 1)
    with (folder / ".sweep.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def wait_for(happened, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


# ---- which runs ------------------------------------------------------------------------------------------------------


def kinds(*extra, methods=("dfp",), environments=(DEFAULT_ENV,)):
    return plan.from_methods(methods, environments, preset="laptop", extra=extra).kinds


def test_a_folder_is_a_function_of_the_settings_alone(tmp_path):
    (plain,), (spelled,), (other,) = kinds(), kinds("--lam", "0.5"), kinds("--lam", "0.25")
    assert plain.job(tmp_path, 0).folder == spelled.job(tmp_path, 0, threads=2).folder
    assert (
        len({each.job(tmp_path, seed).folder for each in (plain, other) for seed in range(3)}) == 6
    )


@pytest.mark.parametrize("flags", [(), ("--offline-steps", "7")], ids=["preset", "flags"])
def test_a_run_is_what_its_folder_says(flags, tmp_path):
    (kind,) = kinds(*flags)
    made = kind.job(tmp_path, 3)
    settings = from_command_line(made.flags)
    assert settings.seed == 3
    assert made.folder.name.endswith(plan.digest(settings))
    assert made.steps == settings.schedule.offline_steps + settings.schedule.online_steps


@pytest.mark.parametrize("number", TABLES)
def test_a_table_expands_to_its_rows_and_columns(number):
    planned = plan.from_table(number)
    table = TABLES[number]
    cells = [(kind.row.label, kind.env) for kind in planned.kinds]
    assert cells == [(row.label, env) for row in table.rows for env in table.envs]
    assert planned.skipped == ()
    for kind in planned.kinds:
        assert kind.settings.preset == table.preset
    more = plan.from_table(number, variants=True).kinds
    assert {kind.row.method for kind in more} == {row.method for row in table.rows} | set(VARIANTS)


@pytest.mark.parametrize("number", TABLES)
def test_the_settings_of_a_kind_are_those_its_flags_give_train(number):
    planned = plan.from_table(number, variants=True).kinds
    for kind in (planned[0], planned[-1]):
        assert from_command_line(kind.flags) == kind.settings


def test_the_settings_of_a_table_are_printed_for_every_row_and_task(capsys):
    sweep.main(["--table", "3", "--settings"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["row"], row["env"]) for row in rows] == [
        (row.label, env) for row in TABLES[3].rows for env in TABLES[3].envs
    ]
    assert {row["method"] for row in rows} == {"dfp"}
    assert all(float(row["row"]) == float(row["lam"]) for row in rows)
    assert {row["offline_steps"] for row in rows} == {"1000000"}


def test_first_seeds_come_first_and_no_configuration_comes_twice(tmp_path):
    args = sweep.Args(methods=("dfp",), envs=(DEFAULT_ENV,), seeds=2, runs=tmp_path)
    jobs = sweep.jobs_of(args, [*kinds(), *kinds("--lam", "0.25"), *kinds("--lam", "0.5")])
    assert [each.flags[-1] for each in jobs] == ["0", "0", "1", "1"]
    assert len(jobs) == 4


def test_runs_that_differ_online_only_share_their_offline_phase(tmp_path):
    args = sweep.Args(methods=("dfp",), envs=(DEFAULT_ENV,), seeds=2, runs=tmp_path)
    variants = [*kinds(), *kinds("--lam", "0.25"), *kinds("--candidates", "5")]
    jobs = sweep.jobs_of(args, variants)
    (a, b, other), (c, d, _) = list(jobs)[:3], list(jobs)[3:]
    assert a.offline == b.offline is not None
    assert c.offline == d.offline != a.offline
    assert other.offline is None
    assert list(jobs.values()) == 2 * variants
    settings = from_command_line(a.offline.flags)
    schedule = replace(variants[0].settings.schedule, online_steps=0)
    assert settings == replace(variants[0].settings, schedule=schedule)
    assert all(each.offline is None for each in sweep.jobs_of(args, kinds()))
    unequal = [kind for lam in ("0.25", "0.5") for kind in kinds("--lam", lam, "--eval-every", "7")]
    assert all(each.offline is None for each in sweep.jobs_of(args, unequal))
    b.folder.mkdir()
    (b.folder / "config.json").touch()  # has begun without it
    assert [each.offline for each in sweep.jobs_of(args, variants)][:3] == [None] * 3
    a.offline.folder.mkdir(parents=True)
    (a.offline.folder / "config.json").touch()
    assert [each.offline for each in sweep.jobs_of(args, variants)][:3] == [a.offline, None, None]


def test_a_shared_offline_phase_is_taken_over_once_it_is_done(folder, tmp_path):
    phase = Job(tmp_path / "phase", (), 10)
    execute(Job(folder, (), 10, offline=phase), retries=0, pause=0)  # there is none yet
    execute(phase, retries=0, pause=0)
    execute(Job(tmp_path / "after", (), 10, offline=phase), retries=0, pause=0)
    argv = [
        json.loads((f / "config.json").read_text())["argv"] for f in (folder, tmp_path / "after")
    ]
    assert ["--offline-run" in each for each in argv] == [False, True]
    assert argv[1][argv[1].index("--offline-run") + 1] == str(phase.folder)


def test_runs_whose_shared_offline_phase_diverged_diverge_without_training(folder, tmp_path):
    phase = Job(tmp_path / "phase", ("--nan-at", "3"), 10)
    diverged = execute(phase, retries=0, pause=0)
    assert diverged.state == "diverged"
    assert execute(Job(folder, (), 10, offline=phase), retries=0, pause=0) == diverged
    assert job.state(folder) == diverged
    assert not (folder / "steps.txt").exists()
    each = Job(folder, (), 10, offline=phase)
    assert f"(see {phase.folder / 'train.log'})" in cluster.line(each, diverged)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("--seeds 2", "wanted either --table N, or --methods and --envs"),
        ("--table 1 --methods dfp --envs x", "wanted either --table N, or --methods and --envs"),
        ("--methods dfp", "--methods and --envs go together"),
        (
            "--table 5",
            "--table is 5, which has no success rates (Hyper-parameters); tables of runs: 1",
        ),
        ("--table 8", "--table is 8, which has no success rates (Task-specific hyper-parameters"),
        ("--table 9", "--table is 9, which has no success rates (Cost in milliseconds"),
        ("--table 10", "--table is 10, which has no success rates (GPU-hours"),
        ("--table 11", "--table is 11; the paper has Tables 1 to 10"),
        ("--table 1 --time", "--time estimates without running; wanted --dry-run with it"),
        (f"--methods dfp --envs {DEFAULT_ENV} --variants", "--variants adds rows to a table"),
        (f"--methods dfp --envs {DEFAULT_ENV} --seed 3", "--seed is set by the sweep"),
        (f"--methods dfp --envs {DEFAULT_ENV} --run_dir here", "--run_dir is set by the sweep"),
        ("--table 3 --lam 1", "--lam is what the rows of the table vary"),
        (f"--methods nothing --envs {DEFAULT_ENV}", "method is 'nothing'"),
        ("--methods dfp --envs cube-single", "env is 'cube-single'"),
        (f"--methods dfp --envs {DEFAULT_ENV} --seeds 0", "--seeds is 0; wanted at least 1"),
        (
            f"--methods dfp --envs {DEFAULT_ENV} --cpus 1 --cpus-per-run 2",
            "--cpus-per-run is 2; wanted at most",
        ),
        (f"--methods dfp --envs {DEFAULT_ENV} --lr -1", "--lr is -1"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(asked, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        sweep.main(asked.split())
    assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.parametrize("number", [3, 4])
def test_flags_whose_values_look_like_flags_of_a_row_are_taken(number):
    """Only the names of what the rows vary are refused: a value may be equal to one of theirs."""
    row = TABLES[number].rows[0]
    for value in row.flags[1::2]:
        kind = plan.kind(row, TABLES[number].envs[0], preset="paper", extra=("--data", value))
        assert kind.settings.data.endswith(f"/{value}")


def test_the_cores_are_those_that_the_process_may_use(fake, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    asked = f"--methods dfp --envs {DEFAULT_ENV} --cpus-per-run 2 --runs {tmp_path}"
    with pytest.raises(SystemExit, match="2"):
        sweep.main(asked.split())
    assert "--cpus-per-run is 2; wanted at most 1" in capsys.readouterr().err


def test_when_ray_cannot_start_the_reason_is_said(fake, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit, match="2"):
        sweep.main(f"--methods dfp --envs {DEFAULT_ENV} --seeds 1 --runs {tmp_path}".split())
    assert capsys.readouterr().err.startswith("error: Ray could not start (ModuleNotFoundError")


# ---- hours -----------------------------------------------------------------------------------------------------------


def write_run(folder, settings, *, offline=2.0, online=4.0, evaluation=8.0):
    """A finished run of 40 + 20 steps by the clock given, seconds a step and an evaluation of one wave."""
    folder.mkdir(parents=True)
    schedule = {"offline_steps": 40, "online_steps": 20, "eval_episodes": 8}
    stored = {**json.loads(json.dumps(plan.as_json(settings))), "schedule": schedule}
    (folder / "config.json").write_text(json.dumps({"settings": stored}))
    clock, train, evals = 0.0, ["step,phase,wall_s"], ["step,phase,success,wall_s"]
    for step in range(10, 61, 10):
        phase = "offline" if step <= 40 else "online"
        clock += 10 * (offline if phase == "offline" else online)
        train.append(f"{step},{phase},{clock}")
        if step in (40, 60):
            clock += evaluation
            evals.append(f"{step},{phase},0.5,{clock}")
    (folder / "train.csv").write_text("\n".join(train) + "\n")
    (folder / "eval.csv").write_text("\n".join(evals) + "\n")


def test_hours_come_from_the_clock_of_an_earlier_run(tmp_path):
    (kind,) = kinds(
        "--offline-steps",
        "900",
        "--online-steps",
        "600",
        "--eval-every",
        "500",
        "--eval-episodes",
        "9",
    )
    assert stopwatch.from_earlier_run(tmp_path, kind) is None
    write_run(tmp_path / "other", kinds("--lam", "0.25")[0].settings)
    assert stopwatch.from_earlier_run(tmp_path, kind) is None
    for name, contents in (("a list", "[]"), ("a number", '{"settings": 3}'), ("no JSON", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(contents)
    write_run(tmp_path / "same", kind.settings)
    pace = stopwatch.from_earlier_run(tmp_path, kind)
    assert pace is not None
    assert (pace.offline_step, pace.online_step, pace.evaluation) == (2, 4, 8)
    assert pace.hours(kind.settings) == pytest.approx((900 * 2 + 600 * 4 + 3 * 2 * 8) / 3600)
    beside = replace(kind.settings, machine=Machine(async_eval=True))
    assert pace.hours(beside) == pytest.approx((900 * 2 + 600 * 4) / 3600)
    assert replace(pace, evaluation=800).hours(beside) == pytest.approx(3 * 2 * 800 / 3600)


def test_the_clock_of_a_run_that_shares_an_offline_phase_has_times_of_the_online_phase(tmp_path):
    (kind,) = kinds()
    run = tmp_path / "after"
    write_run(run, kind.settings)
    header, *rows = (run / "train.csv").read_text().splitlines()
    online = [row for row in rows if "online" in row]
    (run / "train.csv").write_text("\n".join([header, *online]) + "\n")
    pace = stopwatch.from_logs(run, "")
    assert (pace.online_step, pace.evaluation) == (4, 8)
    assert math.isnan(pace.offline_step)
    assert stopwatch.from_earlier_run(tmp_path, kind) is None


def test_a_dry_run_lists_the_runs_and_times_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stopwatch, "measure", None)
    monkeypatch.setattr(stopwatch, "from_earlier_run", None)
    sweep.main(f"--table 7 --runs {tmp_path} --dry-run".split())
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{8 * 55} runs. --time estimates their hours."
    assert {line.split()[0] for line in lines[:-1]} == {"new"}
    assert len(lines) == 8 * 55 + 1
    assert not list(tmp_path.iterdir())


def test_a_dry_run_lists_a_shared_offline_phase_before_the_runs_that_need_it(tmp_path, capsys):
    sweep.main(
        f"--methods dfp dfp-no-topk --envs {DEFAULT_ENV} --seeds 2 --runs {tmp_path} --dry-run".split()
    )
    *lines, total = capsys.readouterr().out.splitlines()
    shared = [line.split()[1].startswith(DEFAULT_ENV) for line in lines]
    assert shared == [True, False, False] * 2
    assert total.startswith("4 runs.")


def test_a_dry_run_with_time_prints_hours_and_starts_nothing(tmp_path, capsys):
    (kind,) = kinds()
    write_run(tmp_path / "same", kind.settings)
    sweep.main(
        f"--methods dfp --envs {DEFAULT_ENV} --seeds 3 --runs {tmp_path} --cpus 2 --dry-run --time".split()
    )
    lines = capsys.readouterr().out.splitlines()
    hours = stopwatch.Pace(2, 4, 8, "").hours(kind.settings)
    assert [line.split()[:2] for line in lines[:3]] == [["new", f"{hours:.2f}"]] * 3
    assert lines[3].startswith(
        f"3 runs, {3 * hours:.2f} hours of training; {1.5 * hours:.2f} with 2 at a time"
    )
    assert lines[4] == "Step times: earlier run same (1)."
    assert {path.name for path in tmp_path.iterdir()} == {"same"}


# ---- on Ray ----------------------------------------------------------------------------------------------------------

DRIVER = """
import sys
from wgflow_rl import sweep
from wgflow_rl.experiments import job
job.TRAIN = (sys.argv[1],)
sweep.main(sys.argv[2:])
"""


def drive(fake, root, *flags):
    """A sweep of three seeds, started like a shell's background job: SIGINT is ignored."""
    asked = f"--methods dfp --envs {DEFAULT_ENV} --seeds 3 --cpus 2 --runs {root}".split()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DRIVER, str(fake), *asked, *flags]
    return subprocess.Popen(
        command,
        cwd=root.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )


def processes(root):
    return sum(trained(path.parent)[1] for path in root.glob("*/steps.txt"))


def counts(root):
    return [len(path.read_text().splitlines()) for path in root.glob("*/steps.txt")]


@pytest.mark.slow
def test_a_sweep_killed_stopped_and_restarted_loses_nothing_and_runs_nothing_twice(fake, tmp_path):
    fake.write_text(FAKE.replace('asked("--pace", 0)', "0.15"))  # slow enough to be met at work
    root = tmp_path / "runs"
    steps = ("--offline-steps", "40", "--online-steps", "20", "--online-start", "0")
    with drive(fake, root, *steps) as driver:
        wait_for(lambda: max(counts(root), default=0) > 3)
        driver.kill()
    with drive(fake, root, *steps) as driver:
        # once what the killed sweep has left behind has ended
        wait_for(lambda: processes(root) > 2)
        driver.send_signal(signal.SIGTERM)
        out, err = driver.communicate(timeout=120)
    assert driver.returncode == 130, err
    assert "every run writes a checkpoint" in out + err
    fake.write_text(
        FAKE.replace('asked("--nan-at", -1)', "59 if asked('--seed', '') == '2' else -1")
    )
    with drive(fake, root, *steps) as driver:
        out, err = driver.communicate(timeout=120)
    assert driver.returncode == 1, err
    assert "2 of 3 runs done" in out
    assert re.search(
        r"^diverged dfp-.*-s2-\w+: critic_loss is not finite at step 3", out, flags=re.MULTILINE
    )
    runs = sorted(root.iterdir())
    assert len(runs) == 3
    for seed, run in enumerate(runs):
        assert f"-s{seed}-" in run.name
        assert trained(run)[0] == list(range(1, 60 + (seed != 2)))
        assert job.state(run).state == ("diverged" if seed == 2 else "done")
    assert processes(root) <= 8
