"""The rows against the numbers of the papers, as far as those are public; presets that compare like with like."""

import dataclasses
import json

import pytest

from wgflow_rl.agents import presets
from wgflow_rl.training.settings import DEFAULT_ENV, Settings, as_json, from_command_line

CUBE = "cube-{}-play-singletask-task2-v0"
SCENE, PUZZLE = "scene-play-singletask-task2-v0", "puzzle-4x4-play-singletask-task4-v0"


def test_every_method_has_the_protocol_of_dfp():
    """Which is Table 5's: test_paper_settings.py."""
    env = CUBE.format("double")
    like, schedule = presets.preset("paper", "dfp", env)
    for method in presets.METHODS:
        cfg, own = presets.preset("paper", method, env)
        for name in ("gamma", "lr", "lr_end", "target_rate", "batch", "hidden", "standardise"):
            assert getattr(cfg, name) == getattr(like, name), (method, name)
        if method not in presets.ONLINE:
            own = dataclasses.replace(own, online_steps=1_000_000, online_start=5_000)
        assert own == schedule
    assert (schedule.online_share, schedule.eval_episodes, schedule.eval_every) == (0, 100, 100_000)


@pytest.mark.parametrize(
    ("method", "env", "name", "value"),
    [
        *((m, CUBE.format("triple"), "alpha", 100.0) for m in ("fql", "qc-fql")),
        *(("fql", CUBE.format(size), "alpha", 300.0) for size in ("single", "double")),
        ("fql", SCENE, "alpha", 300.0),
        ("fql", PUZZLE, "alpha", 1000.0),
        ("mvp", CUBE.format("triple"), "ivc", 0.0),
        ("mvp", CUBE.format("quadruple"), "ivc", 1.0),
        *(
            ("dfp", env, "top_k", 2)
            for env in ("lift-mh-low_dim", "can-mh-low_dim", "square-mh-low_dim")
        ),
        ("dfp", "lift-mh-low_dim", "field", "drifting:0.005+drifting:0.05"),
        ("dfp-ml-energy", "lift-mh-low_dim", "field", "likelihood+energy"),
        ("dfp-published", "can-mh-low_dim", "act_samples", 4),
    ],
)
def test_a_task_has_the_number_its_paper_sets_for_it(method, env, name, value):
    assert getattr(presets.paper(method, env), name) == value


def test_every_number_of_a_task_has_a_source():
    for names, beginnings, numbers, source in presets.TASKS + presets.OFFLINE_TASKS:
        assert set(names) <= set(presets.METHODS)
        assert beginnings
        assert source
        assert all(hasattr(presets.ROWS[name], number) for name in names for number in numbers)


def test_the_offline_table_takes_single_actions_and_no_online_phase():
    for method in presets.METHODS:
        cfg, schedule = presets.preset("paper-offline", method, CUBE.format("double"))
        assert (cfg.chunk, schedule.offline_steps, schedule.online_steps) == (1, 1_000_000, 0)


@pytest.mark.parametrize("env", [DEFAULT_ENV, CUBE.format("single")])
def test_laptop_rows_share_the_numbers_of_the_preset(env):
    like, schedule = presets.preset("laptop", "dfp", env)
    for method in presets.METHODS:
        cfg, own = presets.preset("laptop", method, env)
        for name in presets.ALIKE:
            chooses = name.endswith("_samples") or name == "act_temperature"
            kept = method in presets.CLONERS or (method == "bfn" and name != "act_temperature")
            if hasattr(cfg, name) and not (kept and chooses):
                assert getattr(cfg, name) == getattr(like, name), (method, name)
        assert cfg.chunk == presets.ROWS[method].chunk
        online = schedule.online_steps if method in presets.ONLINE else 0
        assert own == dataclasses.replace(
            schedule, online_steps=online, online_start=min(online, own.online_start)
        )


@pytest.mark.parametrize("preset", presets.PRESETS)
@pytest.mark.parametrize("env", [DEFAULT_ENV, CUBE.format("single"), "pusht", "lift-mh-low_dim"])
@pytest.mark.parametrize("method", sorted(presets.CLONING))
def test_a_cloned_policy_executes_a_single_sample(preset, env, method):
    """The densest of several is another policy; a temperature of values would not be one of log densities."""
    cfg, _ = presets.preset(preset, method, env)
    assert (cfg.act_samples, cfg.act_temperature) == (1, 0)


@pytest.mark.parametrize("env", ["canoe-v0", "square_world", "cubes-v1", "my-robot"])
def test_an_environment_of_ones_own_is_acted_in_greedily(env):
    """A temperature is in the units of the reward, which the preset cannot know; a similar name is not enough."""
    cfg, schedule = presets.preset("laptop", "dfp", env)
    assert (cfg.act_temperature, schedule) == (0, presets.ARM_SCHEDULE)


def test_variants_of_dfp_differ_in_field_and_top_k_weight_alone():
    """`dfp-published` also has its own TD target, except where the laptop preset gives one to all."""
    for preset in presets.PRESETS:
        for env in (DEFAULT_ENV, CUBE.format("double"), "lift-mh-low_dim"):
            dfp, _ = presets.preset(preset, "dfp", env)
            for method in presets.DFPS:
                cfg, _ = presets.preset(preset, method, env)
                alike = ("field", "improve_field", "lam", "lam_offline") + (
                    ("target_samples",) if method == "dfp-published" else ()
                )
                same = dataclasses.replace(cfg, **{name: getattr(dfp, name) for name in alike})
                assert same == dfp, (preset, env, method)
                assert (cfg.field == dfp.field) == (method in presets.DRIFTING)
                assert (cfg.lam == 0) == method.endswith("-no-topk")
                assert cfg.lam > 0 or cfg.lam_offline == 0


@pytest.mark.parametrize("method", presets.METHODS)
@pytest.mark.parametrize("preset", presets.PRESETS)
def test_settings_hold_any_method(preset, method, tmp_path, capsys):
    """Flags are those of the method; config.json gives back what was asked for; what a number cannot be is refused."""
    settings = from_command_line(["--method", method, "--preset", preset, "--batch", "7"])
    assert type(settings.agent) is type(presets.ROWS[method])
    assert settings.agent.batch == 7
    (tmp_path / "config.json").write_text(json.dumps({"settings": as_json(settings)}))
    assert Settings.read(tmp_path) == settings
    with pytest.raises(ValueError, match="--chunk is 0; wanted at least 1"):
        from_command_line(["--method", method, "--chunk", "0"])


def test_help_shows_a_methods_own_numbers(capsys):
    for method, own, others in (("qc-fql", "--alpha", "--top-k"), ("dfp", "--top-k", "--alpha ")):
        with pytest.raises(SystemExit, match="0"):
            from_command_line(["--method", method, "--help"])
        out = capsys.readouterr().out
        assert own in out
        assert others not in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--method fql --alpha -1", "--alpha is -1.0; wanted at least 0"),
        ("--method mvp --candidates 3", "--candidates is 3; wanted at least 4"),
        ("--method iql --chunk 0", "--chunk is 0; wanted at least 1"),
        ("--method iql --expectile 1.2", "--expectile is 1.2; wanted a share"),
        ("--method srpo --beta 0", "--beta is 0.0; wanted a number above 0"),
        ("--method rebrac --policy-delay 0", "--policy-delay is 0; wanted at least 1"),
        ("--method cac --levels 1", "--levels is 1; wanted at least 2"),
        ("--method cac --sigma-max 0.001", "--sigma-max is 0.001; wanted a number above 0.002"),
        ("--method idql --diffusion-steps 0", "--diffusion-steps is 0"),
        (
            "--method dfp --positives best",
            "--positives is 'best'; wanted topk, boltzmann or matched",
        ),
        ("--method dfp-ml-energy --repulsion 1", "--repulsion needs a field with negatives"),
        ("--method dfp --repulsion 1 --candidates 7", "wanted topk and at least 2 K candidates"),
        ("--method dfp --repulsion 1 --lam 0", "--repulsion is 1.0 and --lam is 0"),
        ("--method dfp --q-weight-offline -1", "--q-weight-offline is -1.0; wanted at least 0"),
        ("--method meanflow-bc --same-times 1.5", "--same-times is 1.5; wanted a share"),
        ("--method dfp --temperature 0", "--temperature is 0.0; wanted a number above 0"),
    ],
)
def test_a_number_that_cannot_be_used_is_named(flags, message):
    with pytest.raises(ValueError, match=message):
        from_command_line([*flags.split(), "--preset", "paper"])
