"""Laws of the training loop, read from whole runs of a few steps: what happens when, at which rate, what is kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from tests.runs import FLAGS, outcome, resume, saved, stop_after, tiny_world, walks
from tests.walk import WalkHome
from wgflow_rl import data
from wgflow_rl.agents.dfp import DFP
from wgflow_rl.data.replay import Replay
from wgflow_rl.envs.guard import Guard
from wgflow_rl.training import checkpoint, evaluators, loop
from wgflow_rl.training.csv_table import read_rows
from wgflow_rl.training.rollout import Collector, Evaluation
from wgflow_rl.training.settings import Settings, from_command_line
from wgflow_rl.training.state import HELD_OUT, TrainingState
from wgflow_rl.training.trained import load_agent
from wgflow_rl.training.updates import TrainingDiverged

OFFLINE, ONLINE, START = 5, 7, 1  # steps of FLAGS


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    tiny_world(monkeypatch.setattr)


def settings(folder, *, agent=(), schedule=(), **changes):
    usual = from_command_line([*FLAGS.split(), "--run-dir", str(folder)])
    agent, schedule = (
        replace(part, **dict(new))
        for part, new in ((usual.agent, agent), (usual.schedule, schedule))
    )
    return replace(usual, agent=agent, schedule=schedule, **changes)


def run(folder, *, resume=False, **changes):
    loop.run(settings(folder, **changes), resume=resume, progress=False)


def state_of(folder, **changes):
    """The state of a run before its first step."""
    return TrainingState(
        settings(folder, **changes), envs=[WalkHome()], guard=Guard("walk"), progress=False
    )


# ---- what happens when -----------------------------------------------------------------------------------------------


def test_offline_updates_then_one_switch_then_environment_steps_with_an_annealed_update_each(
    tmp_path, monkeypatch
):
    """Algorithm 1 with the rate lr (1 - k/K (1 - lr_end)) that the optimiser has in online step k of K."""
    seen, update, step, start = [], loop.checked_update, Collector.step, DFP.start_online

    def updated(agent, batch, noise, *, online, at):
        seen.append(("update", online, pytest.approx(agent.optimiser.param_groups[0]["lr"])))
        return update(agent, batch, noise, online=online, at=at)

    monkeypatch.setattr(loop, "checked_update", updated)
    monkeypatch.setattr(Collector, "step", lambda *args: seen.append("environment") or step(*args))
    monkeypatch.setattr(DFP, "start_online", lambda agent: seen.append("switch") or start(agent))
    run(tmp_path / "run", agent={"lr": 1e-3, "lr_end": 0.2})
    rates = [1e-3 * (1 - 0.8 * k / ONLINE) for k in range(1, ONLINE + 1)]
    online = [event for rate in rates for event in ("environment", ("update", True, rate))]
    assert seen == [("update", False, 1e-3)] * OFFLINE + ["switch", online[0]] + online[2 * START :]


def test_evaluations_play_their_own_episodes_and_the_latest_of_the_best_is_kept(
    tmp_path, monkeypatch
):
    asked, successes = [], {4: 1, 8: 1, 12: 0}  # of two episodes

    def played(act, envs, *, episodes, seed, first_episode, guard, eval_seed):
        asked.append((first_episode, seed, episodes))
        success = np.arange(episodes) < successes[first_episode]
        return Evaluation(success, np.array([-1.0, -3.0]), np.array([2, 6]))

    monkeypatch.setattr(evaluators, "evaluate", played)
    run(tmp_path / "run", seed=3)
    assert asked == [(step, 3, 2) for step in successes]
    rows = read_rows(tmp_path / "run" / "eval.csv")[1]
    assert [(int(r["step"]), r["phase"]) for r in rows] == [
        (4, "offline"),
        (8, "online"),
        (12, "online"),
    ]
    interval = binomtest(1, 2).proportion_ci(0.95, method="wilson")
    expected = (0.5, interval.low, interval.high, -2, 4)
    columns = ("success", "success_low", "success_high", "return", "length")
    assert [float(rows[0][name]) for name in columns] == pytest.approx(expected)
    assert checkpoint.load(tmp_path / "run" / "checkpoints").state["best"] == [8, 0.5]
    assert saved(tmp_path / "run") == [8, 9, 12]


@pytest.mark.parametrize("made", [0, 1, 2])
def test_an_environment_that_cannot_be_made_leaves_no_other_open_and_no_folder(
    tmp_path, monkeypatch, made
):
    opened, closed, make = [], [], Settings.make_env

    def broken(self, **options):
        if len(opened) == made:
            raise OSError("no simulator")
        env = make(self, **options)
        opened.append(env)
        env.close = lambda: closed.append(env)
        return env

    monkeypatch.setattr(Settings, "make_env", broken)
    with pytest.raises(OSError, match="no simulator"):
        run(tmp_path / "run")
    assert len(opened) == made
    assert sorted(map(id, closed)) == sorted(map(id, opened))
    assert not (tmp_path / "run").exists()


def test_an_evaluation_that_ends_late_has_the_phase_of_its_step(tmp_path, monkeypatch):
    submit = loop.InlineEvaluator.submit

    def late(self, step):
        future = submit(self, step)
        future.done = lambda: False
        return future

    monkeypatch.setattr(loop.InlineEvaluator, "submit", late)
    run(tmp_path / "run", schedule={"checkpoint_every": 6})
    rows = read_rows(tmp_path / "run" / "eval.csv")[1]
    assert [row["phase"] for row in rows] == ["offline", "online", "online"]


def test_what_is_drawn_in_acting_changes_no_batch(tmp_path):
    """The updates' stream ends in the same state after runs that draw another number of samples in acting."""
    ends = []
    for number in (2, 3):
        run(tmp_path / str(number), agent={"act_samples": number})
        ends.append(checkpoint.load(tmp_path / str(number) / "checkpoints").tensors)
    assert torch.equal(*(end["random.training"] for end in ends))
    assert not torch.equal(*(end["random.acting"] for end in ends))


def test_the_last_step_is_logged_evaluated_and_saved(tmp_path):
    run(tmp_path / "run", schedule={"log_every": 5, "eval_every": 5, "checkpoint_every": 5})
    for name in ("train.csv", "eval.csv"):
        rows = read_rows(tmp_path / "run" / name)[1]
        found = [(int(row["step"]), row["phase"]) for row in rows]
        assert found == [(5, "offline"), (10, "online"), (12, "online")]
    last = checkpoint.load(tmp_path / "run" / "checkpoints")
    assert last.step == 12
    assert sum(len(part["rewards"]) for part in last.rows) == ONLINE


# ---- resuming ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["online", "in an evaluation"])
def test_a_run_that_was_stopped_goes_on_as_the_one_that_was_not(moment, tmp_path, monkeypatch):
    run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        if moment == "online":
            stop_after(patch, 10)
        else:
            submit = loop.InlineEvaluator.submit
            broken = lambda self, step: submit(self, step) if step != 8 else 1 / 0
            patch.setattr(loop.InlineEvaluator, "submit", broken)
        with pytest.raises((SystemExit, ZeroDivisionError)):
            run(tmp_path / "run")
    run(tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_a_run_goes_on_that_began_before_a_setting_was_added(tmp_path, monkeypatch):
    run(tmp_path / "whole")
    original = TrainingState.result_settings
    older = lambda self: {k: v for k, v in original(self).items() if k != "q_weight"}
    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "result_settings", older)
        stop_after(patch, 6)
        with pytest.raises(SystemExit):
            run(tmp_path / "run")
    run(tmp_path / "run", resume=True)
    assert saved(tmp_path / "run") == saved(tmp_path / "whole")


@pytest.mark.parametrize("which", [0, 1], ids=["training", "validation"])
def test_a_run_does_not_go_on_with_other_data_or_settings(which, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(SystemExit):
            run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"gamma is 0.5, but the run in .* began with 0.99"):
        run(tmp_path / "run", resume=True, agent={"gamma": 0.5})
    others = list(walks())
    others[which] = replace(others[which], actions=-others[which].actions)
    monkeypatch.setattr(data, "load", lambda *_, **__: tuple(others))
    with pytest.raises(ValueError, match="the data read now are not those"):
        run(tmp_path / "run", resume=True)


# ---- the state of a run --------------------------------------------------------------------------------------------


def test_a_seed_decides_weights_batches_actions_and_start_states(tmp_path):
    def draws(seed):
        state = state_of(tmp_path, seed=seed)
        return (
            next(state.agent.parameters()),
            state.sample().obs,
            torch.rand(3, generator=state.acting),
            torch.as_tensor(state.collector.players[0].obs),
        )

    for one, same, other in zip(draws(0), draws(0), draws(1), strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


def test_states_are_normalised_by_the_training_data_even_where_they_are_constant(
    tmp_path, monkeypatch
):
    train, validation = walks()
    train.observations[:, 1] = 4.0
    monkeypatch.setattr(data, "load", lambda *_, **__: (train, validation))
    normalise = state_of(tmp_path, agent={"standardise": True}).agent.normalise
    x = torch.as_tensor(train.observations)
    torch.testing.assert_close(normalise.mean, x.mean(0))
    torch.testing.assert_close(normalise.std, torch.stack([x[:, 0].std(), torch.tensor(1e-3)]))


def test_measures_are_of_the_validation_data_repeat_and_take_nothing_from_the_run(
    tmp_path, monkeypatch
):
    def measures(train=1, validation=1):
        signs = zip(walks(), (train, validation), strict=True)
        both = [replace(part, actions=sign * part.actions) for part, sign in signs]
        monkeypatch.setattr(data, "load", lambda *_, **__: tuple(both))
        state = state_of(tmp_path)
        before, found = state.generator.get_state(), state.diagnose()
        state.step += 3
        torch.testing.assert_close(state.diagnose(), found)
        assert torch.equal(state.generator.get_state(), before)
        return found["energy_score"]

    assert measures(train=-1) == measures() != measures(validation=-1)


def test_batches_have_the_discount_and_the_share_of_the_settings(tmp_path):
    state = state_of(tmp_path, agent={"gamma": 0.5, "batch": 64}, schedule={"online_share": 0.5})
    assert state.replay.capacity == 60 + ONLINE
    row = {"obs": [77.0, 0.0], "next_obs": [77.0, 0.0], "actions": [0.0]}
    for _ in range(ONLINE):
        state.replay.add(**row, rewards=0.0, masks=1.0, terminals=False)
    batch = state.sample()
    assert set(batch.discount.tolist()) <= {0.0, 0.5**2}
    online = (batch.obs[:, 0] == 77).sum()
    # the other half comes from the whole ring, a tenth of which is online
    assert 32 <= online <= 32 + 12


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    state = state_of(tmp_path)
    next(state.agent.parameters()).data[0] = torch.inf
    with pytest.raises(TrainingDiverged, match="is not finite at step 0"):
        state.save(tmp_path / "checkpoints")
    assert not (tmp_path / "checkpoints").exists()


# ---- the offline phase of another run --------------------------------------------------------------------------------

PHASE = [
    "--offline-steps",
    "6",
    "--online-steps",
    "6",
    "--eval-every",
    "3",
]  # it ends with an evaluation
ALONE = ("--online-steps", "0", "--online-start", "0")


def train_small(folder, method, *flags):
    usual = FLAGS if method == "dfp" else FLAGS.replace("--generated 2 ", "")
    given = ("--method", method, *usual.split(), *PHASE, "--run-dir", str(folder), *flags)
    loop.run(from_command_line(given), progress=False)


def after_the_switch(folder):
    """What a run leaves, without the offline rows of train.csv."""
    tables, step, state, tensors, rows = outcome(folder)
    (_, train), evaluations = tables
    train = [
        {k: v for k, v in row.items() if v}  # a column that only the online phase has
        for row in train
        if row["phase"] == "online"
    ]
    return train, evaluations, step, state, tensors, rows, saved(folder)


@pytest.mark.parametrize(
    ("method", "flags"),
    [
        ("dfp", "--lam 0"),
        ("dfp", "--lam 2 --top-k 1 --positives matched --old-rate 0.5 --lr-end 0.1"),
        ("dfp", "--improve-field energy:0.5 --repulsion 0.5 --top-k 1 --q-weight 0.3"),
        ("dfp", "--positives boltzmann --temperature 3 --online-start 3 --online-share 0.5"),
        ("dfp", "--lam 0 --envs 3"),
        ("mvp", "--lam 0.5 --old-rate 0.5"),
    ],
)
def test_a_run_after_the_offline_phase_of_another_ends_as_one_with_its_own(method, flags, tmp_path):
    flags = flags.split()
    train_small(tmp_path / "whole", method, *flags)
    train_small(tmp_path / "phase", method, *ALONE)
    train_small(tmp_path / "after", method, *flags, "--offline-run", str(tmp_path / "phase"))
    assert after_the_switch(tmp_path / "after") == after_the_switch(tmp_path / "whole")


def succeeding(shares):
    """Evaluations with these shares of successes, by step; elsewhere without any."""

    def played(act, envs, *, episodes, first_episode, **_):
        success = np.arange(episodes) < shares.get(first_episode, 0.0) * episodes
        return Evaluation(success, np.zeros(episodes), np.ones(episodes))

    return played


def test_the_best_checkpoint_may_be_one_of_the_offline_phase_of_another(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluators, "evaluate", succeeding({3: 1.0}))
    train_small(tmp_path / "whole", "dfp")
    train_small(tmp_path / "phase", "dfp", *ALONE)
    train_small(tmp_path / "after", "dfp", "--offline-run", str(tmp_path / "phase"))
    assert 3 in saved(tmp_path / "after")
    assert after_the_switch(tmp_path / "after") == after_the_switch(tmp_path / "whole")


def test_the_best_checkpoint_is_that_of_the_best_score_where_there_is_one(tmp_path, monkeypatch):
    """In training, on resume and to the commands; all its evaluations have the seed of the protocol."""
    scores, seeds = {3: 0.2, 6: 0.9, 9: 0.4, 12: 0.3}, []

    def played(act, envs, *, episodes, first_episode, eval_seed, **_):
        seeds.append(eval_seed)
        success = np.full(episodes, first_episode == 12)
        score = np.full(episodes, scores[first_episode])
        return Evaluation(success, np.zeros(episodes), np.ones(episodes), score)

    monkeypatch.setattr(evaluators, "evaluate", played)
    train_small(tmp_path / "run", "dfp", "--eval-seed", "7")
    assert saved(tmp_path / "run") == [6, 9, 12] and seeds == [7] * 4
    assert load_agent(tmp_path / "run", best=True)[2] == 6
    assert load_agent(tmp_path / "run")[2] == 12


def test_the_offline_phase_may_be_that_of_a_run_that_went_on(tmp_path, monkeypatch):
    """The checkpoint of its end then names an earlier best one, removed since the end was better."""
    monkeypatch.setattr(evaluators, "evaluate", succeeding({3: 0.5, 6: 1.0}))
    train_small(tmp_path / "whole", "dfp")
    assert 3 not in saved(tmp_path / "whole")
    train_small(tmp_path / "after", "dfp", "--offline-run", str(tmp_path / "whole"))
    assert after_the_switch(tmp_path / "after") == after_the_switch(tmp_path / "whole")


def test_a_phase_whose_best_checkpoint_gave_way_to_one_online_is_refused(tmp_path, monkeypatch):
    """The end of the phase is not its best, so another run would end with a best checkpoint of its own."""
    monkeypatch.setattr(evaluators, "evaluate", succeeding({3: 0.5, 9: 1.0}))
    train_small(tmp_path / "whole", "dfp", "--online-steps", "3", "--online-start", "0")
    assert saved(tmp_path / "whole") == [6, 9]
    with pytest.raises(FileNotFoundError, match="best offline checkpoint, of step 3, was removed"):
        train_small(tmp_path / "after", "dfp", "--offline-run", str(tmp_path / "whole"))
    assert not (tmp_path / "after" / "config.json").exists()


def test_shards_are_those_of_as_many_updates_as_were_made(tmp_path, monkeypatch):
    steps, real = [], Replay.sample

    def sampled(self, batch, *, step=0, **options):
        if batch != HELD_OUT:
            steps.append(step)
        return real(self, batch, step=step, **options)

    monkeypatch.setattr(Replay, "sample", sampled)
    train_small(tmp_path / "run", "dfp")
    assert steps[:6] == list(range(6)) and set(steps[6:]) == {6}


def test_a_chunk_longer_than_the_held_out_trajectories_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--chunk or --horizon asks for 99 actions"):
        train_small(tmp_path / "run", "dfp", "--chunk", "99")


def test_an_evaluation_after_the_offline_phase_of_another_has_its_checkpoint(tmp_path, monkeypatch):
    """Another process may evaluate it, and read it from there."""
    submit, evaluated = loop.InlineEvaluator.submit, []

    def submitted(self, step):
        assert step in saved(self.state.settings.folder)
        evaluated.append(step)
        return submit(self, step)

    monkeypatch.setattr(loop.InlineEvaluator, "submit", submitted)
    train_small(tmp_path / "phase", "dfp", *ALONE)
    train_small(tmp_path / "after", "dfp", "--offline-run", str(tmp_path / "phase"))
    assert evaluated == [3, 6, 6, 9, 12]


@pytest.mark.parametrize("flags", ["", "--envs 3"])
@pytest.mark.parametrize("step", [None, 7, 8])
def test_a_run_after_the_offline_phase_of_another_goes_on_after_a_kill(
    step, flags, tmp_path, monkeypatch
):
    """Also a kill between the checkpoint of the best evaluation that it inherits and its own first one."""
    monkeypatch.setattr(evaluators, "evaluate", succeeding({3: 1.0}))
    train_small(tmp_path / "phase", "dfp", *ALONE)
    flags = ("--offline-run", str(tmp_path / "phase"), *flags.split())
    train_small(tmp_path / "whole", "dfp", *flags)
    with monkeypatch.context() as patch:
        if step:
            stop_after(patch, step)
        else:
            patch.setattr(TrainingState, "save", interrupted)
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            train_small(tmp_path / "after", "dfp", *flags)
    assert (saved(tmp_path / "after") == [3]) == (step is None)
    resume(tmp_path / "after")
    assert after_the_switch(tmp_path / "after") == after_the_switch(tmp_path / "whole")


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("phase", "flags", "message"),
    [
        ("--seed 1", "", "--seed 1; that of this run has 0"),
        ("--lr 0.5", "", "--lr 0.5"),
        ("--lam-offline 1", "", "--lam-offline 1.0"),
        ("--lam-offline 1 --top-k 1", "--lam-offline 1", "--top-k 1"),
        ("--candidates 4", "", "--candidates 4"),
        ("--offline-steps 9", "", "--offline-steps 9"),
        ("--method mvp", "", "--method wgflow_rl.agents.mvp.MVPConfig"),
        ("--online-steps 20", "", "holds no checkpoint of step 6"),
        ("", "--offline-steps 0", "--offline-run came with --offline-steps 0 and"),
        ("", "--online-steps 0 --online-start 0", "wanted a run of both phases"),
        ("", "--eval-every 4", "wanted an evaluation at the end of the offline phase"),
    ],
)
def test_an_offline_phase_that_does_not_fit_is_refused(phase, flags, message, tmp_path):
    method, phase = ("mvp", "") if "mvp" in phase else ("dfp", phase)
    alone = () if "online" in phase else ALONE
    train_small(tmp_path / "phase", method, *phase.split(), *alone)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train_small(
            tmp_path / "run", "dfp", *flags.split(), "--offline-run", str(tmp_path / "phase")
        )
    assert not (tmp_path / "run" / "config.json").exists()


def test_an_offline_phase_of_other_data_is_refused(tmp_path, monkeypatch):
    train_small(tmp_path / "phase", "dfp", *ALONE)
    train, validation = walks()
    other = replace(train, rewards=train.rewards - 1)
    monkeypatch.setattr(data, "load", lambda *_, **__: (other, validation))
    with pytest.raises(ValueError, match="was trained on other data"):
        train_small(tmp_path / "run", "dfp", "--offline-run", str(tmp_path / "phase"))
