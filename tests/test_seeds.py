"""Seeds trained together are runs of their own: the same learning, the same folders, killed and resumed as one."""

import json
import signal

import pytest
import torch
from test_train import (  # noqa: F401
    assert_same_run,
    cache,
    contents,
    fast,
    flags,
    refused,
    saved,
    send,
    short_episodes,
)

from wgflow_rl import data, envs, evaluate, train
from wgflow_rl.training import checkpoint, seeds

SHORT = {
    "offline_steps": 16,
    "online_steps": 12,
    "online_start": 2,
    "eval_every": 14,
    "eval_episodes": 1,
}
SEEDS = (0, 2, 3)


def flags_of(folder, **changes):
    return flags(folder, **SHORT | changes)


def folders(folder):
    return [folder.parent / f"{folder.name}-s{seed}" for seed in SEEDS]


@pytest.fixture(scope="module")
def together(cache, tmp_path_factory):  # noqa: F811
    """Three seeds in one process that nothing happened to."""
    folder = tmp_path_factory.mktemp("together") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envs, "make", short_episodes())
        train.main([*flags_of(folder), "--seeds", "0,2-3"])
    return folders(folder)


def test_a_seed_trained_with_others_is_the_run_of_that_seed_to_rounding(together, tmp_path):
    seed, one = SEEDS[1], together[1]
    train.main([*flags_of(tmp_path / "alone"), "--seed", str(seed)])
    alone = tmp_path / "alone"
    for name in ("train.csv", "eval.csv"):
        (columns, rows), (others, theirs) = contents(one, name), contents(alone, name)
        assert columns == others
        assert [row["step"] for row in rows] == [row["step"] for row in theirs]
    for row, other in zip(
        *(contents(folder, "train.csv")[1] for folder in (one, alone)), strict=True
    ):
        for column in ("critic_loss", "bc_loss", "q", "energy_score"):
            assert float(row[column]) == pytest.approx(float(other[column]), rel=1e-3, abs=1e-4)
    a, b = (checkpoint.load(folder / "checkpoints") for folder in (one, alone))
    assert a.tensors.keys() == b.tensors.keys()
    assert torch.equal(a.tensors["random.training"], b.tensors["random.training"])
    torch.testing.assert_close(
        a.tensors["agent.policy.net.first.weight"],
        b.tensors["agent.policy.net.first.weight"],
        rtol=0,
        atol=1e-4,
    )


def test_each_folder_is_a_run_of_its_own_seed(together, capsys):
    told = [json.loads((folder / "config.json").read_text())["settings"] for folder in together]
    assert [settings["seed"] for settings in told] == list(SEEDS)
    assert len({(folder / "train.csv").read_text() for folder in together}) == len(SEEDS)
    assert [saved(folder) for folder in together] == [saved(together[0])] * len(SEEDS)
    evaluate.main([str(together[2]), "--episodes", "1"])
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{") :])["step"] == 28


@pytest.mark.parametrize("step", [5, 22], ids=["offline", "online"])
def test_seeds_stopped_together_go_on_together_exactly(step, together, tmp_path, monkeypatch):
    own = folders(tmp_path / "run")
    with monkeypatch.context() as patch:
        send(patch, "learned", step, signal.SIGTERM)
        with pytest.raises(SystemExit, match="130"):
            train.main([*flags_of(tmp_path / "run"), "--seeds", "0,2-3"])
    assert [saved(folder)[-1] for folder in own] == [step] * len(SEEDS)
    train.main(["--resume", *map(str, own)])
    for folder, whole in zip(own, together, strict=True):
        assert_same_run(folder, whole)


def test_a_kill_between_the_checkpoints_of_two_seeds_costs_nothing(together, tmp_path, monkeypatch):
    own, save = folders(tmp_path / "run"), train.Trainer.save

    def killed(self, folder, **options):
        if self.step == 21 and self.settings.seed == SEEDS[1]:
            raise KeyboardInterrupt  # the first has saved this step, the others have not
        save(self, folder, **options)

    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "save", killed)
        with pytest.raises(SystemExit, match="130"):
            train.main([*flags_of(tmp_path / "run"), "--seeds", "0,2-3"])
    assert saved(own[0])[-1] == 21
    assert len({saved(folder)[-1] for folder in own}) == 2
    # Killed again at once: rows and checkpoints end together in every folder.
    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "draw", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(SystemExit, match="130"):
            train.main(["--resume", *map(str, own)])
    assert len({saved(folder)[-1] for folder in own}) == 1
    train.main(["--resume", *map(str, own)])
    for folder, whole in zip(own, together, strict=True):
        assert_same_run(folder, whole)


def test_what_diverges_in_one_seed_is_named_with_its_batch(tmp_path, monkeypatch, capsys):
    draw = train.Trainer.draw

    def poisoned(self):
        work = draw(self)
        if self.step == 9 and self.settings.seed == 2:
            work.batch.returns[0] = torch.nan
        return work

    monkeypatch.setattr(train.Trainer, "draw", poisoned)
    message = refused([*flags_of(tmp_path / "run"), "--seeds", "0,2-3"], capsys)
    assert message.startswith("error: critic_loss is not finite at step 9 (offline)")
    assert f"The last batch drawn is in {folders(tmp_path / 'run')[1]}" in message
    for folder in folders(tmp_path / "run"):
        last = checkpoint.load(folder / "checkpoints")
        assert last.step == 7
        assert all(t.isfinite().all() for t in last.tensors.values())


def test_offline_data_are_loaded_once(tmp_path, monkeypatch):
    loaded, load = [], data.load
    monkeypatch.setattr(data, "load", lambda *a, **k: loaded.append(a) or load(*a, **k))
    train.main(
        [
            *flags_of(tmp_path / "run", offline_steps=2, online_steps=0, online_start=0),
            "--seeds",
            "0-1",
        ]
    )
    assert len(loaded) == 1


# ---- what is asked for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("0-4", [0, 1, 2, 3, 4]), ("0,2,5", [0, 2, 5]), ("7", [7]), ("0-1, 4", [0, 1, 4])],
)
def test_seeds_are_read_as_they_are_written(text, wanted):
    assert seeds.parse(text) == wanted


@pytest.mark.parametrize("text", ["", "a", "0-", "-1", "3-1", "0,0", "0-2,1", "1.5"])
def test_seeds_that_are_none_are_refused(text, capsys):
    assert "--seeds is" in refused([f"--seeds={text}"], capsys)


def test_runs_that_cannot_be_one_are_refused(together, tmp_path, capsys):
    one, other, _ = together
    message = refused([*flags_of(tmp_path / "run"), "--method", "rebrac", "--seeds", "0-1"], capsys)
    assert "--method rebrac counts its own updates" in message
    assert "python -m wgflow_rl.sweep" in message
    assert not list(tmp_path.iterdir())
    assert "--seeds came with --seed" in refused(
        [*flags_of("x"), "--seed", "1", "--seeds", "0-1"], capsys
    )
    assert "--seeds came with --resume" in refused(["--resume", one, "--seeds", "0-1"], capsys)
    assert "hold the same seed twice" in refused(["--resume", one, one], capsys)
    config = json.loads((other / "config.json").read_text())
    text = json.dumps(config | {"settings": config["settings"] | {"env_timeout": 5.0}})
    (tmp_path / "changed").mkdir()
    (tmp_path / "changed" / "config.json").write_text(text)
    assert "differ in env_timeout" in refused(["--resume", one, tmp_path / "changed"], capsys)


def test_runs_too_far_apart_do_not_go_on_together(together, tmp_path, capsys):
    config = json.loads((together[0] / "config.json").read_text())
    for seed, steps in ((0, (7, 14, 21)), (1, (7,))):
        folder = tmp_path / f"s{seed}"
        settings = config["settings"] | {"seed": seed, "run_dir": str(folder)}
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config | {"settings": settings}))
        for step in steps:
            checkpoint.save(folder / "checkpoints", step=step, tensors={}, state={})
    message = refused(["--resume", tmp_path / "s0", tmp_path / "s1"], capsys)
    assert "stand at steps too far apart to go on together" in message
    assert f"{tmp_path / 's0' / 'checkpoints'}: 21" in message
