"""A run multiplies as it was decided when it began; nobody else's torch is changed by it."""

import contextlib
import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from tests.runs import untrained
from tests.small_batches import make_batch, noise_for
from tests.tiny_runs import FLAGS, outcome, small_world
from wgflow_rl import train
from wgflow_rl.agents import methods, networks
from wgflow_rl.experiments import plan
from wgflow_rl.training import routing
from wgflow_rl.training.settings import Settings, as_json, from_command_line
from wgflow_rl.training.updates import update

HIDDEN = (32, 32, 16)


def state() -> dict[str, object]:
    """Everything of torch that a route or a precision could change."""
    slots = {
        name: getattr(getattr(torch.backends, name), "matmul", None) for name in ("mkldnn", "cuda")
    }
    return {name: getattr(slot, "fp32_precision", None) for name, slot in slots.items()} | {
        "name": torch.get_float32_matmul_precision(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "autocast": torch.is_autocast_enabled("cpu"),
        "dtype": torch.get_default_dtype(),
    }


def test_importing_changes_nothing_of_torch():
    code = (
        "import torch\n"
        "def state():\n"
        "    slots = [getattr(torch.backends.mkldnn, 'matmul', 0), torch.backends.cuda.matmul]\n"
        "    slots = [getattr(slot, 'fp32_precision', 0) for slot in slots]\n"
        "    return slots, torch.get_float32_matmul_precision(), torch.get_num_threads(), torch.get_default_dtype()\n"
        "before = state()\nimport wgflow, wgflow_rl.train, wgflow_rl.profile, wgflow_rl.export\n"
        "assert state() == before, (before, state())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("callers", ["highest", "high", "medium", None])
@pytest.mark.parametrize(
    ("route", "precision", "device", "inside"),
    [
        ("default", "f32", "cpu", "highest"),
        ("onednn", "f32", "cpu", "medium"),
        ("default", "mixed", "cpu", "highest"),
        ("onednn", "f32", "cuda", "highest"),
        ("default", "tf32", "cuda", "high"),
        ("default", "mixed", "cuda", "high"),
    ],
)
def test_torch_is_after_a_run_as_before_it(callers, route, precision, device, inside, monkeypatch):
    monkeypatch.setattr(routing, "worst_error", lambda *_: 0.0)  # on processors of any kind
    if callers is not None:
        torch.set_float32_matmul_precision(callers)
    try:
        before = state()
        with routing.applied(route, precision=precision, device=device):
            assert torch.get_float32_matmul_precision() == inside
        assert state() == before
        with (
            pytest.raises(KeyError, match="of the run"),
            routing.applied(route, precision=precision, device=device),
            networks.reduced(),
        ):
            raise KeyError("of the run")
        assert state() == before
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9"
)
def test_a_caller_who_set_a_place_of_his_own_finds_it_again():
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        with routing.applied("default"):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


# ---- the choice --------------------------------------------------------------------------------------------------


def test_float32_is_within_the_bound_and_what_has_fewer_bits_is_not():
    pairs = routing.factors(HIDDEN)
    assert len(pairs) == 6
    assert routing.worst_error(routing.multiplied(pairs, "default"), pairs) < routing.ERROR
    for bits in (8, 11):  # bfloat16, TF32
        step = 2.0 ** (1 - bits)
        rounded = [[t * (1 + step * torch.rand_like(t)) for t in pair] for pair in pairs]
        assert routing.worst_error([a @ b for a, b in rounded], pairs) > 10 * routing.ERROR


def routes(monkeypatch, *, off: float, seconds: dict[str, float]) -> None:
    """A processor whose oneDNN products are off by a relative `off`, and that takes so long on each route."""
    multiplied = routing.multiplied

    def other(pairs, route):
        return [p * (1 + off * (route == "onednn")) for p in multiplied(pairs, "default")]

    monkeypatch.setattr(routing, "multiplied", other)
    monkeypatch.setattr(routing, "fastest", lambda calls: {name: seconds[name] for name in calls})


@pytest.mark.parametrize(
    ("off", "onednn", "chosen"),
    [
        (0.0, 0.5, "default"),  # the same bits: one route, whatever the clock says
        (2e-7, 0.5, "onednn"),
        (2e-7, 0.97, "default"),  # not worth leaving the default for
        (2e-7, 1.5, "default"),
        (1e-3, 0.5, "default"),  # fast because it is not float32
    ],
)
def test_a_route_is_taken_where_it_is_float32_and_faster(off, onednn, chosen, monkeypatch):
    routes(monkeypatch, off=off, seconds={"default": 1.0, "onednn": onednn})
    assert routing.choose(HIDDEN)[0] == chosen


def test_a_route_without_float32_is_refused_with_its_error(monkeypatch):
    routes(monkeypatch, off=1e-3, seconds={})
    before = state()
    with (
        pytest.raises(ValueError, match=r"onednn, but .* wrong by \de-0\d.*allowed: 1e-06"),
        routing.applied("onednn"),
    ):
        pass
    assert state() == before


def test_the_choice_is_made_once_a_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("WGFLOW_DATA", str(tmp_path))
    routes(monkeypatch, off=2e-7, seconds={"default": 1.0, "onednn": 0.5})
    assert routing.settle("auto", HIDDEN) == "onednn"
    routes(monkeypatch, off=2e-7, seconds={"default": 0.5, "onednn": 1.0})
    assert routing.settle("auto", HIDDEN) == "onednn"
    assert routing.settle("auto", (32, 32)) == "default"  # other sizes
    monkeypatch.setattr(routing, "processor", lambda: "another")
    assert routing.settle("auto", HIDDEN) == "default"
    assert len(list((tmp_path / "routes").iterdir())) == 3


@pytest.mark.parametrize(
    "contents", [b"", b"\xff", b"[]", b"{}", b'{"route": "onednn"}', b"[" * 100_000, None]
)
def test_a_damaged_choice_is_made_again(contents, monkeypatch, tmp_path):
    monkeypatch.setenv("WGFLOW_DATA", str(tmp_path))
    routes(monkeypatch, off=2e-7, seconds={"default": 1.0, "onednn": 1.5})
    assert routing.settle("auto", HIDDEN) == "default"
    (path,) = (tmp_path / "routes").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"default"', b'"quick"') if contents is None else contents)
    assert routing.settle("auto", HIDDEN) == "default"
    assert json.loads(path.read_bytes()) == json.loads(whole)


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("WGFLOW_DATA", str(tmp_path / "file"))
    routes(monkeypatch, off=2e-7, seconds={"default": 1.0, "onednn": 1.5})
    assert routing.settle("auto", HIDDEN) == "default"


@pytest.mark.parametrize("route", ["default", "onednn"])
def test_a_route_that_was_asked_for_is_not_measured(route, monkeypatch):
    monkeypatch.setattr(routing, "choose", None)
    assert routing.settle(route, HIDDEN) == route
    assert routing.settle("auto", HIDDEN, device="cuda") == "default"


# ---- a run -------------------------------------------------------------------------------------------------------


def test_a_run_records_its_route_keeps_it_when_resumed_and_one_without_took_the_default(tmp_path):
    folder = untrained(tmp_path / "run", "--route", "onednn")
    assert Settings.resumed(["--resume", str(folder)]).route == "onednn"
    config = json.loads((folder / "config.json").read_text())
    del config["settings"]["route"], config["settings"]["precision"]
    (folder / "config.json").write_text(json.dumps(config))
    old = Settings.resumed(["--resume", str(folder)])
    assert (old.route, old.precision) == ("default", "f32")


def test_training_settles_the_route_before_anything_else_and_puts_torch_back(monkeypatch, tmp_path):
    seen = []

    def trainer(settings, **_):
        seen.append((settings.route, torch.get_float32_matmul_precision()))
        raise KeyError("seen")

    monkeypatch.setattr(train, "Trainer", trainer)
    monkeypatch.setattr(routing, "settle", lambda route, hidden, device: "onednn")
    monkeypatch.setattr(routing, "worst_error", lambda *_: 0.0)  # on processors of any kind
    before = state()
    with pytest.raises(KeyError, match="seen"):
        train.run(from_command_line(["--run-dir", str(tmp_path / "run")]))
    assert seen == [("onednn", "medium")]
    assert state() == before


# ---- bfloat16 ----------------------------------------------------------------------------------------------------


def test_only_passes_without_gradient_are_reduced():
    net = networks.TwinCritic(3, 4, (32, 32), generator=torch.Generator().manual_seed(0))
    obs, chunks = torch.randn(5, 3), torch.randn(5, 7, 4)
    plain = net(obs, chunks)
    with networks.reduced():
        torch.testing.assert_close(net(obs, chunks), plain, rtol=0, atol=0)
        with torch.no_grad():
            low = net(obs, chunks)
    with torch.no_grad():
        torch.testing.assert_close(net(obs, chunks), plain, rtol=0, atol=0)
    assert low.dtype == plain.dtype
    assert 0 < (low - plain).abs().max() < 0.05


@pytest.mark.parametrize("on", [False, True])
def test_a_network_is_traced_as_one_graph(on):
    net = networks.Policy(3, 4, (32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), networks.reduced(on):
        whole = torch.compile(net, backend="eager", fullgraph=True)
        given = torch.randn(5, 3), torch.randn(5, 7, 4)
        torch.testing.assert_close(whole(*given), net(*given), rtol=0, atol=0)


def test_values_of_candidates_keep_steps_finer_than_bfloat16s():
    """Q = -30 in bfloat16 comes in steps of 1/8: the last layer must not be in it."""
    net = networks.TwinCritic(3, 4, (32, 32), generator=torch.Generator().manual_seed(0))
    for q in net.nets:
        q.rest[-1].bias.data -= 30
    with networks.reduced(), torch.no_grad():
        values = net(torch.randn(5, 3), torch.randn(5, 64, 4))
    assert values.unique().numel() > values.numel() / 2


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_updates_in_mixed_precision_near_its_update_in_float32(method):
    cfg = dataclasses.replace(methods.ROWS[method], hidden=(16, 16), chunk=2)
    losses = []
    for on in (False, True):
        agent = methods.build(cfg, obs_dim=3, action_dim=2)
        batch, noise = make_batch(b=8), agent.draw_noise(8, torch.Generator().manual_seed(1))
        with networks.reduced(on):
            log = update(agent, batch, noise, online=False)
        assert all(p.dtype == torch.float32 for m in agent.modules.values() for p in m.parameters())
        losses.append(torch.stack([v for k, v in log.items() if k.endswith("_loss")]))
    torch.testing.assert_close(*losses, rtol=0.05, atol=0.02)


def test_candidates_of_a_trained_critic_are_chosen_alike():
    """Same weights, batch and noise, after 150 updates: which K of N, their values, the critic's loss."""
    cfg = dataclasses.replace(
        methods.ROWS["dfp"], hidden=(64, 64), chunk=2, candidates=16, top_k=4, lr=1e-3
    )
    agent = methods.build(cfg, obs_dim=3, action_dim=2)
    for i in range(150):
        update(agent, make_batch(b=16, seed=i), noise_for(agent, seed=i, b=16), online=True)
    batch, noise = make_batch(b=256, seed=1000), noise_for(agent, seed=1000, b=256)
    chosen, values, losses = [], [], []
    for on in (False, True):
        with torch.no_grad(), networks.reduced(on):
            pool = agent.old_policy(batch.obs, noise.candidates).clamp(-1, 1)
            score = agent.critic.mean(batch.obs, pool)
        chosen.append(score.topk(cfg.top_k).indices)
        values.append(score)
        with networks.reduced(on):
            losses.append(agent.critic_loss(batch, batch.obs, batch.next_obs, noise)[0].detach())
    agreement = (chosen[0][:, :, None] == chosen[1][:, None]).any(-1).float().mean()
    spread = values[0].std(1).mean()
    assert agreement > 0.9
    assert (values[0] - values[1]).abs().mean() < 0.1 * spread
    torch.testing.assert_close(*losses, rtol=0.02, atol=0)


def test_mixed_where_it_is_slower_says_by_how_much(monkeypatch):
    monkeypatch.setattr(routing, "fastest", lambda calls: {"f32": 1.0, "bf16": 5.0})
    with pytest.warns(RuntimeWarning, match=r"bfloat16 products take 5\.0 times as long"):
        routing.warn_if_slow(HIDDEN)
    routing.warn_if_slow(HIDDEN, device="cuda")
    monkeypatch.setattr(routing, "fastest", lambda calls: {"f32": 1.0, "bf16": 0.5})
    routing.warn_if_slow(HIDDEN)


def test_a_run_in_mixed_precision_says_that_it_is_slow_here_and_repeats_bit_for_bit(
    monkeypatch, tmp_path
):
    small_world(monkeypatch.setattr)
    monkeypatch.setattr(routing, "fastest", lambda calls: {"f32": 1.0, "bf16": 5.0})
    flags = [*FLAGS.split(), "--hidden", "8", "8", "--route", "default"]
    ends = []
    for name, precision in (("a", "mixed"), ("b", "mixed"), ("c", "f32")):
        folder = tmp_path / name
        says = (
            pytest.warns(RuntimeWarning, match="5.0 times")
            if precision == "mixed"
            else contextlib.nullcontext()
        )
        with says:
            train.run(
                from_command_line([*flags, "--precision", precision, "--run-dir", str(folder)]),
                progress=False,
            )
        ends.append(outcome(folder))
    assert ends[0] == ends[1]
    assert ends[0] != ends[2]


def test_tf32_on_a_cpu_and_an_unknown_route_are_refused(capsys):
    with pytest.raises(ValueError, match="--precision is 'tf32'"):
        from_command_line(["--precision", "tf32"])
    with pytest.raises(SystemExit, match="2"):
        from_command_line(["--route", "scenic"])
    assert "scenic" in capsys.readouterr().err


def test_mixed_is_another_configuration_and_f32_keeps_the_names_of_folders():
    plain = from_command_line([])
    assert plan.digest(plain) == plan.digest(dataclasses.replace(plain, route="onednn"))
    assert plan.digest(plain) != plan.digest(dataclasses.replace(plain, precision="mixed"))
    assert as_json(plain)["precision"] == "f32"
