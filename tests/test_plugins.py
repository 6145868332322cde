"""Methods, environments, readers and callbacks of other packages are known to every command and every process."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.wrappers import TimeLimit
from numpy.testing import assert_array_equal

from tests.children import python
from tests.runs import untrained
from wgflow_rl import data, envs, plugins
from wgflow_rl.agents import presets
from wgflow_rl.agents.cloning import BC, BCConfig
from wgflow_rl.agents.dfp import DFP, DFPConfig
from wgflow_rl.data import __main__ as data_command
from wgflow_rl.experiments import plan
from wgflow_rl.training import runlog
from wgflow_rl.training.csv_table import read_rows
from wgflow_rl.training.runlog import RunLog
from wgflow_rl.training.settings import Settings, as_json, from_command_line
from wgflow_rl.utils.cli import UserError

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


pytestmark = pytest.mark.usefixtures("own_registries")


# ---- the documented walk -----------------------------------------------------------------------------------------


def package(folder):
    """The package of docs/extending.md: drift_line.py and pyproject.toml."""
    folder.mkdir()
    part = PAGE[PAGE.index("## A package") : PAGE.index("**Minari**")]
    code = re.findall(r"```python\n(.*?)```", part, flags=re.DOTALL)
    (folder / "drift_line.py").write_text("\n\n".join(code), encoding="utf-8")
    (toml,) = re.findall(r"```toml\n(.*?)```", part, flags=re.DOTALL)
    (folder / "pyproject.toml").write_text(toml, encoding="utf-8")
    return folder


def commands():
    """The commands of the page, without that of pip."""
    part = PAGE[PAGE.index("## Every command") : PAGE.index("The same from Python")]
    (block,) = re.findall(r"```\n(.*?)```", part, flags=re.DOTALL)
    return [line.split() for line in block.splitlines() if not line.startswith("pip")]


def installed(folder):
    """Install this package and that of the page into a folder; return the environment of its commands."""
    places = [str(package(folder / "drift-line")), str(ROOT)]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    site = folder / "site"
    subprocess.run([*pip, "--no-index", "--target", str(site), *places], check=True)
    return os.environ | {"PYTHONPATH": str(site)}, site / "bin"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["entry point", "flag"])
def test_every_command_knows_a_users_agent_environment_and_data(way, tmp_path):
    pytest.importorskip("ray")
    pytest.importorskip("pip")
    if way == "entry point":
        pytest.importorskip("hatchling")
        environment, scripts = installed(tmp_path)
        work = tmp_path / "work"
        work.mkdir()
    else:
        environment, scripts, work = dict(os.environ), None, package(tmp_path / "work")

    def run(program, *args):
        name = program.removeprefix("wgflow-")
        start = [scripts / program] if scripts else [sys.executable, "-m", f"wgflow_rl.{name}"]
        if way == "flag" and (name in ("sweep", "data", "profile") or "--method" in args):
            args = (*args, "--plugin", "drift_line")
        done = subprocess.run(
            [*start, *args], cwd=work, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{program} {args}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    folder, seen = work / "runs" / "line", []
    for program, *args in commands():
        seen.append(program)
        if "--resume" in args:  # as after a kill: the last checkpoint is not there
            whole = read_rows(folder / "eval.csv")[1]
            for path in (folder / "checkpoints").glob("*240.safetensors"):
                path.unlink()
        elif "--method" in args:
            args = [*args, "--async-eval", "--threads", "1"]
        out = run(program, *args)
        if "--resume" in args:
            again = read_rows(folder / "eval.csv")[1]
            timeless = lambda rows: [{**row, "wall_s": 0} for row in rows]
            assert timeless(again) == timeless(whole)
            assert [int(row["step"]) for row in whole] == [120, 240]
        if program == "wgflow-evaluate":
            assert json.loads(out)["episodes"] == 20
        if program == "wgflow-sweep":
            assert "2 of 2 runs done" in out
    assert {f"wgflow-{name}" for name in ("train", "evaluate", "export", "sweep")} < set(seen)
    run("wgflow-profile", "--method", "drift-cloning", "--env", "line-v0")
    settings = json.loads((folder / "config.json").read_text())["settings"]
    assert settings["plugin"] == (["drift_line"] if way == "flag" else [])
    assert (folder / "policy.pt").exists() and (folder / "actions.png").exists()
    assert len(list((work / "runs" / "sweep").glob("*/checkpoints/*240*"))) == 2
    report = (work / "report" / "report.md").read_text()
    assert "drift-cloning" in report and "line-v0" in report


RUN = '["--method", "drift-cloning", "--env", "line-v0", "--plugin", "drift_line", "--async-eval"]'
SWEEP = (
    '["--methods", "drift-cloning", "--envs", "line-v0", "--seeds", "1", "--plugin", "drift_line"]'
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "call",
    [
        'data.load("pointmaze-medium-navigate-singletask-task1-v0", rows=2000, workers=2)',
        f"train.main({RUN})",
        f"sweep.main({SWEEP})",
    ],
    ids=lambda call: call.partition("(")[0],
)
def test_a_script_without_a_main_guard_may_start_processes(call, tmp_path):
    if "sweep" in call:
        pytest.importorskip("ray")
    work = package(tmp_path / "work")
    (work / "script.py").write_text(
        f"from wgflow_rl import data, sweep, train\n{call}\nprint('end')"
    )
    environment = os.environ | {"WGFLOW_DATA": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=work, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines().count("end") == 1


def test_every_command_has_a_console_script():
    tomllib = pytest.importorskip("tomllib")
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    package = ROOT / "wgflow_rl"
    modules = {p.stem for p in package.glob("*.py") if "__main__" in p.read_text()} | {"data"}
    assert {name.removeprefix("wgflow-") for name in scripts} == modules
    for target in scripts.values():
        module, _, function = target.partition(":")
        assert callable(getattr(__import__(module, fromlist=[function]), function))


@pytest.mark.parametrize("command", ["train", "data", "sweep"])
def test_without_the_extra_a_command_says_what_to_install(command):
    """-S: without site-packages, as in an environment that has none of the extra's packages."""
    done = python("-S", "-m", f"wgflow_rl.{command}", cwd=ROOT)
    assert done.returncode and "pip install 'wgflow[rl]'" in done.stderr
    assert done.stderr.count("\n") == 1


# ---- modules -----------------------------------------------------------------------------------------------------


def write_module(folder, name, text, monkeypatch):
    (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)


METHOD = """
from wgflow_rl.agents import presets
from wgflow_rl.agents.cloning import BC, BCConfig
from dataclasses import dataclass

@dataclass(frozen=True)
class OwnConfig(BCConfig):
    width: float = 3.0

presets.register("own", OwnConfig(hidden=(8, 8)), BC)
"""


def test_a_run_is_read_with_the_plugins_it_was_trained_with(tmp_path, monkeypatch):
    write_module(tmp_path, "own_method", METHOD, monkeypatch)
    with pytest.raises(ValueError, match="known methods.*--plugin"):
        from_command_line(["--method", "own"])
    settings = from_command_line(["--method", "own", "--plugin", "own_method", "--width", "2"])
    assert settings.agent.hidden == (8, 8) and settings.agent.width == 2.0
    assert settings.plugin == ("own_method",)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"settings": as_json(settings)}))
    code = (
        "from pathlib import Path; from wgflow_rl.training.settings import Settings; "
        "print(Settings.read(Path('run')).agent.width)"
    )
    assert python("-c", code, cwd=tmp_path).stdout == "2.0\n"


def test_the_protocol_of_a_task_changes_no_registered_method(own_registries, tmp_path, monkeypatch):
    write_module(tmp_path, "own_method", METHOD, monkeypatch)
    plugins.load(["own_method"])
    for name in presets.PRESETS:
        assert presets.preset(name, "own", "pusht")[0] == presets.ROWS["own"]


def test_results_do_not_depend_on_how_a_plugin_is_found(tmp_path, monkeypatch):
    write_module(tmp_path, "nothing", "", monkeypatch)
    plain, named = from_command_line([]), from_command_line(["--plugin", "nothing"])
    assert plan.digest(plain) == plan.digest(named)
    sweep = plan.from_methods(["dfp"], [plain.env], preset="laptop", extra=["--plugin", "nothing"])
    assert sweep.kinds[0].flags[-2:] == ("--plugin", "nothing")


def test_a_run_goes_on_without_a_plugin_it_does_not_need(tmp_path):
    folder = untrained(tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["settings"]["plugin"] = ["gone_callback"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.warns(RuntimeWarning, match="gone_callback.*going on without it"):
        assert Settings.read(folder).method == presets.DEFAULT
    for invalid in ("line", [3], {"a": 1}):
        config["settings"]["plugin"] = invalid
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="plugin is"):
            Settings.read(folder)


def test_no_code_is_imported_from_the_folder_of_a_run(tmp_path, monkeypatch):
    folder = untrained(tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    write_module(folder, "sent_along", "raise SystemExit('it ran')", monkeypatch)
    (folder / "sent_package").mkdir()
    (folder / "sent_package" / "__init__.py").write_text("raise SystemExit('it ran')")
    for name in ("sent_along", "sent_package", "sent_package.part"):
        config["settings"]["plugin"] = [name]
        (folder / "config.json").write_text(json.dumps(config))
        for place in (folder, Path(".")):
            with pytest.raises(UserError, match="runs bring no"):
                Settings.read(place)


@pytest.mark.parametrize("where", ["above", "inside"])
def test_the_current_folder_is_no_way_to_the_code_of_a_run(where, tmp_path, monkeypatch):
    """results/one/sent_along.py is the module results.one.sent_along; in results/one it comes before installed ones."""
    folder = untrained(tmp_path / "results" / "one")
    config = json.loads((folder / "config.json").read_text())
    name = {"above": "results.one.sent_along", "inside": "sent_along"}[where]
    config["settings"]["plugin"] = [name]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "sent_along.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "sent_along.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "installed"), *sys.path])
    monkeypatch.chdir(tmp_path if where == "above" else folder)
    with pytest.raises(UserError, match="runs bring no"):
        Settings.read(folder)


def test_a_plugin_that_cannot_be_imported_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="'no_such_module'.*Install its package"):
        plugins.load(["no_such_module"])
    for name in ("./line.py", "line-1", "", "a..b"):
        with pytest.raises(UserError, match="wanted the name of a module"):
            plugins.load([name])
    write_module(tmp_path, "broken_plugin", "1 / 0", monkeypatch)
    for optional in (False, True):
        with pytest.raises(UserError, match="'broken_plugin' failed on import: ZeroDivisionError"):
            plugins.load(["broken_plugin"], optional=optional)


def test_an_entry_point_that_fails_names_its_package(tmp_path, monkeypatch):
    about = tmp_path / "broken_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[wgflow_rl.plugins]\nx = broken_entry\n")
    write_module(tmp_path, "broken_entry", "1 / 0", monkeypatch)
    sys.path.insert(0, str(tmp_path))
    monkeypatch.setattr(plugins, "_found", False)
    with pytest.raises(UserError, match="pip uninstall broken-package"):
        envs.names()


# ---- methods -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Own(DFPConfig):
    pass


class OwnDFP(DFP):
    pass


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_a_registered_method_keeps_its_settings_in_every_preset(preset):
    env, short = "pointmaze-medium-navigate-singletask-v0", presets.LIFT_SCHEDULE
    presets.register("own", Own(lr=0.5, field="energy"), OwnDFP, schedule=short)
    if preset.endswith("-offline"):
        short = dataclasses.replace(short, online_steps=0, online_start=0)
    assert presets.preset(preset, "own", env) == (Own(lr=0.5, field="energy"), short)
    presets.register("own", Own(lr=0.25), OwnDFP)  # a notebook's cell, run again
    agent, schedule = presets.preset(preset, "own", env)
    assert agent == Own(lr=0.25) and schedule != short
    small = dataclasses.replace(agent, hidden=(8, 8))
    assert type(presets.build(small, obs_dim=2, action_dim=2)) is OwnDFP


def test_a_method_of_the_library_cannot_be_replaced():
    with pytest.raises(ValueError, match="'dfp' is one of wgflow's"):
        presets.register("dfp", Own(), OwnDFP)
    with pytest.raises(ValueError, match="DFPConfig holds the settings of 'dfp'"):
        presets.register("own", DFPConfig(), OwnDFP)
    with pytest.raises(ValueError, match="letters, digits"):
        presets.register("own/1", Own(), OwnDFP)
    presets.register("bc-wide", BCConfig(hidden=(1024,)), BC)  # another row of the same agent
    with pytest.raises(ValueError, match="no method has settings of the class Own"):
        presets.build(Own(), obs_dim=2, action_dim=2)


# ---- environments ------------------------------------------------------------------------------------------------


class Plain(gymnasium.Env):
    """Observes its last action."""

    def __init__(self, low=(-1.0, 0.0), high=(3.0, 10.0), seen=None, actions=None):
        self.action_space = actions or Box(np.float32(low), np.float32(high))
        self.observation_space = seen or Box(-np.inf, np.inf, (2,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.normal(size=2), {}

    def step(self, action):
        return np.asarray(action, np.float64), 1.0, False, False, {}


def register(make, **options):
    envs.register("own", ["own-v0"], lambda env, **given: make(), **options)
    return envs.make("own-v0")


def test_actions_are_scaled_to_the_box_of_the_environment():
    env = register(Plain, limit=5, success=lambda obs, reward, terminated, info: obs[1] == 10)
    env.reset(seed=0)
    assert_array_equal(env.step([-1, -1])[0], [-1, 0])
    assert_array_equal(env.step([0, 0.5])[0], [1, 7.5])
    observation, _, _, truncated, info = env.step([2, 9])  # clipped to [-1, 1]
    assert_array_equal(observation, [3, 10])
    assert info["success"] is True and not truncated
    assert env.step([0, 0])[4]["success"] is False
    assert env.step([0, 0])[3]
    assert env.reset(seed=3)[0].dtype == np.float32
    assert_array_equal(env.reset(seed=4)[0], env.reset(seed=4)[0])


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Plain, {}, "no time limit.*limit=STEPS"),
        (lambda: TimeLimit(Plain(actions=Discrete(3)), 5), {}, "action space of own-v0"),
        (lambda: Plain(high=(np.inf, 1)), {"limit": 5}, "finite bounds"),
        (lambda: Plain(seen=Dict(x=Box(0, 1, (2,)))), {"limit": 5}, "FlattenObservation"),
        (lambda: Plain(seen=Box(0, 1, (2, 2))), {"limit": 5}, "Box of one axis"),
    ],
)
def test_an_environment_that_cannot_be_used_is_refused_with_a_way_out(make, options, message):
    with pytest.raises(ValueError, match=message):
        register(make, **options)


def test_success_has_to_be_defined():
    env = register(Plain, limit=5)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="no 'success'.*success="):
        env.step([0, 0])


def test_a_score_is_that_of_the_registration_and_never_one_of_the_environment():
    class Game(Plain):
        def step(self, action):
            *seen, _ = super().step(action)
            return *seen, {"success": False, "score": 1500}

    env = register(Game, limit=5)
    env.reset(seed=0)
    assert "score" not in env.step([0, 0])[4]
    env = register(Game, limit=5, score=lambda obs, reward, terminated, info: info["score"] / 2000)
    env.reset(seed=0)
    assert env.step([0, 0])[4]["score"] == 0.75
    env = register(Game, limit=5, score=lambda obs, reward, terminated, info: info["score"])
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"score returned 1500.0; wanted a number in \[0, 1\]"):
        env.step([0, 0])


def test_names_of_environments_belong_to_one_source():
    envs.register("own", ["own-v0"], Plain)
    for source, names, message in (
        ("ogbench", ["x"], "one of wgflow's"),
        ("other", ["own-v0"], "belongs to the source 'own'"),
        ("other", ["lift-mh-low_dim"], "belongs to the source 'robomimic'"),
        ("other", ["a/b"], "letters, digits"),
        ("other", "own-v0", "wanted a list of names"),
    ):
        with pytest.raises(ValueError, match=message):
            envs.register(source, names, Plain)
    envs.register("own", ["own-v0", "own-v1"], Plain)
    assert {"own-v0", "own-v1"} < set(envs.names())


def test_videos_ask_for_pictures_alone():
    asked = []
    envs.register("own", ["own-v0"], lambda env, **given: asked.append(given) or Plain(), limit=3)
    envs.make("own-v0", render_mode="rgb_array", width=320, height=320)
    envs.make("own-v0")
    assert asked == [{"render_mode": "rgb_array"}, {}]


# ---- data --------------------------------------------------------------------------------------------------------


def trajectories(lengths, seed=0):
    """Random trajectories, some of which end with their task."""
    rng = np.random.default_rng(seed)
    return [
        types.SimpleNamespace(
            observations=rng.normal(size=(n + 1, 3)),
            actions=rng.uniform(-1, 1, (n, 2)),
            rewards=rng.normal(size=n),
            terminations=(np.arange(n) == n - 1) & bool(k % 2),
        )
        for k, n in enumerate(lengths)
    ]


def arrays(paths, **more):
    """The rows of trajectories laid end to end."""
    joined = {
        name: np.concatenate([getattr(path, name) for path in paths])
        for name in ("actions", "rewards")
    }
    joined["observations"] = np.concatenate([path.observations[:-1] for path in paths])
    done = np.concatenate([path.terminations for path in paths])
    last = np.concatenate([np.arange(len(p.actions)) == len(p.actions) - 1 for p in paths])
    after = np.concatenate([path.observations[1:] for path in paths])
    return joined, done, last, after


def same(one, other):
    for name, array in vars(one).items():
        if isinstance(array, np.ndarray):
            assert_array_equal(array, getattr(other, name), err_msg=name)


def test_three_layouts_of_the_same_data_are_the_same_episodes():
    paths = trajectories([4, 1, 5, 2])
    rows, done, last, after = arrays(paths)
    ours = data.from_trajectories(paths, "x")
    d4rl = rows | {"terminals": done, "timeouts": last & ~done, "next_observations": after}
    ogbench = rows | {"terminals": last, "masks": 1.0 - done, "next_observations": after}
    same(data.from_rows(d4rl, "x"), ours)
    same(data.from_rows(ogbench, "x"), ours)
    assert ours.trajectories == 4 and ours.successes == 2


def test_without_successors_the_last_row_of_an_unfinished_trajectory_is_dropped():
    paths = trajectories([4, 1, 5, 2, 1, 3])
    rows, done, last, _ = arrays(paths)
    short = data.from_rows(rows | {"terminals": done, "timeouts": last & ~done}, "x")
    cut = [
        types.SimpleNamespace(
            observations=path.observations[:-1] if k % 2 == 0 else path.observations,
            actions=path.actions[: None if k % 2 else -1],
            rewards=path.rewards[: None if k % 2 else -1],
            terminations=path.terminations[: None if k % 2 else -1],
        )
        for k, path in enumerate(paths)
    ]
    wanted = data.from_trajectories([path for path in cut if len(path.actions)], "x")
    live = wanted.masks == 1  # the successor of a row that ends the task is not used
    assert_array_equal(short.next_observations[live], wanted.next_observations[live])
    successors = {"next_observations": wanted.next_observations}
    same(dataclasses.replace(short, **successors), wanted)


def test_split_divides_the_trajectories():
    whole = data.from_trajectories(trajectories([3, 4, 2, 5, 1]), "x")
    train, held_out = data.split(whole, 0.4)
    assert (train.trajectories, held_out.trajectories) == (3, 2)
    for name, array in vars(whole).items():
        if isinstance(array, np.ndarray):
            parts = [getattr(train, name), getattr(held_out, name)]
            assert_array_equal(np.concatenate(parts), array)
    with pytest.raises(ValueError, match="at least two"):
        data.split(data.from_trajectories(trajectories([3]), "x"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": None}, "no rewards"),
        ({"timeouts": None}, "no timeouts or masks, which tell the end of a task"),
        ({"actions": np.zeros((2, 2))}, "actions has 2 rows, but observations has 9"),
        ({"actions": np.full((9, 2), 7.0)}, "actions leave"),
        ({"rewards": np.zeros((9, 2))}, r"rewards has shape \(9, 2\); wanted one number per row"),
        ({"terminals": np.zeros((9, 3), bool)}, r"terminals has shape \(9, 3\)"),
        ({"rewards": np.float32(0)}, "rewards has no rows, but observations has 9"),
        ({"observations": np.float32(0)}, "observations hold no rows"),
        ({"observations": np.zeros((0, 2))}, "observations hold no rows"),
    ],
)
def test_arrays_that_cannot_be_read_are_named(change, message):
    rows, done, last, _ = arrays(trajectories([4, 5]))
    changed = rows | {"terminals": done, "timeouts": last & ~done} | change
    present = {name: array for name, array in changed.items() if array is not None}
    with pytest.raises(ValueError, match=message):
        data.from_rows(present, "x", source="file.npz")


def test_npz_files_need_no_reader(tmp_path):
    register(Plain, limit=9)
    rows, done, last, _ = arrays(trajectories([4] * 20))
    low, high = np.array([-1.0, 0.0]), np.array([3.0, 10.0])
    ours = data.from_rows(rows | {"terminals": done, "timeouts": last}, "own-v0")
    own = rows | {"actions": low + (rows["actions"] + 1) / 2 * (high - low)}
    np.savez(tmp_path / "own-v0.npz", **own, terminals=done, timeouts=last)
    train, held_out = data.load("own-v0", folder=tmp_path)
    assert (train.trajectories, held_out.trajectories) == (18, 2)
    np.testing.assert_allclose(
        np.concatenate([train.actions, held_out.actions]), ours.actions, atol=1e-6
    )
    shutil.copy(tmp_path / "own-v0.npz", tmp_path / "own-v0-val.npz")
    train, held_out = data.load("own-v0", folder=tmp_path)
    same(train, held_out)
    with pytest.raises(ValueError, match="needs --data DIR"):
        data.load("own-v0")
    with pytest.raises(FileNotFoundError, match="no own-v0.npz"):
        data.load("own-v0", folder=tmp_path / "empty")


def test_a_reader_receives_the_folder_and_the_name(tmp_path):
    register(Plain, limit=9)
    pair = data.split(data.from_trajectories(trajectories([3, 3]), "own-v0"))
    asked = []
    data.register("own", lambda folder, env: asked.append((folder, env)) or pair)
    for found in (data.load("own-v0"), data.load("own-v0", folder=tmp_path)):
        assert [id(part) for part in found] == [id(part) for part in pair]
    assert asked == [(None, "own-v0"), (tmp_path, "own-v0")]
    with pytest.raises(ValueError, match="one of wgflow's"):
        data.register("ogbench", lambda folder, env: pair)
    for wrong in (pair[0], None, (pair[0],), (1, 2)):
        data.register("own", lambda folder, env, wrong=wrong: wrong)
        with pytest.raises(ValueError, match="two Episodes.*data.split"):
            data.load("own-v0")


@pytest.mark.parametrize("width", [1, 2, 3])
def test_info_draws_data_of_any_width(width, tmp_path, capsys):
    paths = [
        types.SimpleNamespace(**(vars(path) | {"observations": path.observations[:, :width]}))
        for path in trajectories([3, 4])
    ]
    register(Plain, limit=9)
    data.register("own", lambda folder, env: data.split(data.from_trajectories(paths, env)))
    picture = tmp_path / "own.png"
    data_command.main(["info", "own-v0", "--picture", str(picture)])
    assert f"observations {width}, actions 2" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")


# ---- rows --------------------------------------------------------------------------------------------------------


def test_a_row_callback_sees_what_the_tables_hold(tmp_path):
    seen = []
    runlog.on_row(lambda folder, table, row: seen.append((folder, table, row)))
    with RunLog(tmp_path / "run", tensorboard=False) as log:
        log.train(10, "offline", {"loss": torch.tensor(0.5)})
        log.evaluation(20, "online", successes=1, episodes=2, episode_return=-3.0, length=4.0)
    for table in ("train", "eval"):
        _, (written,) = read_rows(tmp_path / "run" / f"{table}.csv")
        ((folder, _, row),) = [each for each in seen if each[1] == table]
        assert folder == tmp_path / "run"
        assert {
            k: f"{v:.8g}" if isinstance(v, float) else str(v) for k, v in row.items()
        } == written


def test_a_row_callback_that_fails_is_left_out(tmp_path):
    seen = []
    runlog.on_row(lambda folder, table, row: 1 / 0)
    runlog.on_row(lambda folder, table, row: seen.append(row["step"]))
    with RunLog(tmp_path / "run", tensorboard=False) as log:
        with pytest.warns(RuntimeWarning, match="not called again: ZeroDivisionError"):
            log.train(1, "offline", {"loss": 1.0})
        log.train(2, "offline", {"loss": 1.0})
    assert seen == [1, 2]
