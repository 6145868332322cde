"""What is captured is what is called: the same numbers, no value read and nothing made on the host. All on a CPU."""

import contextlib
import math
from types import SimpleNamespace

import pytest
import torch
from test_replay import as_episodes, make_row
from test_stacked import STACKABLE, build, seeds, weights, works
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from wgflow import capturable
from wgflow.arguments import values_available
from wgflow.reductions import api, dispatch
from wgflow_rl.agents import ops
from wgflow_rl.data.replay import Replay
from wgflow_rl.training import graphs, updates
from wgflow_rl.training.finite import are_finite
from wgflow_rl.training.graphs import Captured
from wgflow_rl.training.stacked import Stacked
from wgflow_rl.training.updates import Plain, Update

READS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero")
FROM_HOST = ("lift_fresh", "lift_fresh_copy")


class NothingOfTheHost(TorchDispatchMode):
    """Refuse every operation for which a graph's capture would have to wait, or take something from the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        assert name not in READS, f"{name} reads a value"
        assert name not in FROM_HOST, f"{name} takes numbers from the host"
        if name == "index":
            assert all(i is None or i.dtype != torch.bool for i in args[1]), (
                "a mask has as many rows as it has"
            )
        return func(*args, **(kwargs or {}))


@pytest.fixture
def capturing():
    """As inside a capture, where values cannot be read."""
    with capturable():
        yield


# ---- the same learning -------------------------------------------------------------------------------------------


def learn(update: Update, agents, count: int, stacked: bool):
    """Losses of updates in both phases, the learning rate falling in the second."""
    lost = []
    for i in range(count):
        each, together = works(agents, i)
        online = i >= count // 2
        if online:
            ops.anneal_(update.optimiser, 3e-4, 0.1, i / count)
        outcome = update(*(together if stacked else each[0]), online=online)
        assert outcome.finite.all()
        lost.append({name: value.clone() for name, value in outcome.log.items()})
    return lost


def assert_same(one, other, agents):
    assert all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        for a, b in zip(one, other, strict=True)
    )
    for a, b in agents:
        assert [
            name for name, t in weights(a).items() if not torch.equal(t, weights(b)[name])
        ] == []


def test_two_hundred_captured_updates_are_the_plain_ones_bit_for_bit():
    plain, captured = build(), build()
    lost = [
        learn(Plain(plain), [plain], 200, False),
        learn(Captured(Plain(captured)), [captured], 200, False),
    ]
    assert_same(*lost, [(plain, captured)])


def test_a_captured_stack_is_the_stack_bit_for_bit():
    one, other = Stacked(seeds()), Stacked(seeds())
    lost = [learn(one, one.agents, 10, True), learn(Captured(other), other.agents, 10, True)]
    assert_same(*lost, zip(one.agents, other.agents, strict=True))


def test_a_phase_is_recorded_once_from_buffers_that_stay(monkeypatch):
    agent, recordings, buffers = build(), [], []

    def recorded(function, device):
        recordings.append(agent.optimiser.param_groups[0]["params"][0].grad)
        return function

    def watched(batch, noise, *, online):
        buffers.append((online, batch.obs.data_ptr(), noise.generated.data_ptr()))
        return Plain(agent)(batch, noise, online=online)

    watched.optimiser = agent.optimiser
    monkeypatch.setattr(graphs, "recorded", recorded)
    learn(Captured(watched), [agent], 20, False)
    assert recordings == [None, None]  # no gradient of before: a graph's own live in its memory
    assert len(set(buffers)) == 2
    assert {online for online, *_ in buffers} == {False, True}


def test_what_was_finite_outlives_the_next_call_and_the_log_is_ones_own():
    agent = build()
    captured = Captured(Plain(agent))
    fixed = updates.Outcome({"actor_loss": torch.zeros(())}, ("actor_loss",), torch.tensor([False]))
    captured.update = lambda batch, noise, *, online: fixed
    captured.update.optimiser = agent.optimiser
    first = captured(*works([agent])[0][0], online=False)
    first.log["mine"] = torch.ones(())
    fixed.finite.fill_(True)
    second = captured(*works([agent])[0][0], online=False)
    assert not first.finite.any()
    assert second.finite.all()
    assert second.log.keys() == {"actor_loss"}


def test_the_learning_rate_of_a_captured_update_is_read_anew_each_time():
    agent = build()
    update = Captured(Plain(agent))
    update(*works([agent])[0][0], online=False)
    rate = agent.optimiser.param_groups[0]["lr"]
    ops.anneal_(agent.optimiser, 3e-4, 0.0, 1.0)
    before = {name: t.clone() for name, t in agent.policy.state_dict().items()}
    update(*works([agent])[0][0], online=False)
    assert agent.optimiser.param_groups[0]["lr"] is rate
    assert all(torch.equal(before[name], t) for name, t in agent.policy.state_dict().items())


def test_the_updates_before_a_recording_make_the_operations_that_are_recorded(monkeypatch):
    """Where values can be read, large sums take another backend, whose kernels and rounding are not the graph's."""
    monkeypatch.setattr(dispatch, "DENSE_IS_FASTEST", ((math.inf, 0),))
    chosen = []
    monkeypatch.setattr(
        api, "choose", lambda *args: chosen.append(dispatch.choose(*args)) or chosen[-1]
    )
    agent = build("dfp-ml")
    inputs, calls = works([agent])[0][0], []
    for update in (
        Captured(Plain(agent)),
        capturable()(Plain(agent)),
    ):  # both online: with all fields of it
        chosen.clear()
        update(*inputs, online=True)
        calls.append([(c.backend, c.dtype) for c in chosen])
    assert calls[0] == calls[1] != []


# ---- on which card -----------------------------------------------------------------------------------------------


class Cards:
    """Stands in for the parts of torch.cuda that `graphs` uses: which card is the current one, and its stream."""

    def __init__(self):
        self.current, self.streams, self.waits = 0, {}, []

    def Stream(self, device=None):
        index = self.current if device is None else torch.device(device).index
        stream = SimpleNamespace(device=torch.device("cuda", index))
        stream.wait_stream = lambda other: self.waits.append((stream, other))
        return stream

    def current_stream(self, device=None):
        index = self.current if device is None else torch.device(device).index
        return self.streams.setdefault(index, self.Stream(torch.device("cuda", index)))

    @contextlib.contextmanager
    def stream(self, stream):
        before, index = (self.current, dict(self.streams)), stream.device.index
        self.current, self.streams[index] = index, stream
        yield
        self.current, self.streams = before

    @contextlib.contextmanager
    def graph(self, graph, stream=None):
        with self.stream(stream or self.Stream()):
            yield

    def CUDAGraph(self):
        return SimpleNamespace(replay=lambda: None)


@pytest.fixture
def cards(monkeypatch):
    cards = Cards()
    for name in ("Stream", "current_stream", "stream", "graph", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, getattr(cards, name))
    return cards


def test_what_is_recorded_for_a_second_card_is_queued_there_and_in_order(cards):
    second, where = torch.device("cuda:1"), []

    def queue():
        where.append((cards.current, cards.current_stream(second)))
        return updates.Outcome({}, (), torch.zeros(0))

    own = cards.current_stream(second)
    graphs.aside(queue, second)
    graphs.recorded(queue, second)()
    assert [card for card, _ in where] == [1, 1]
    (_, aside), (_, recorded) = where
    assert own is not aside is not recorded is not own
    assert cards.waits == [(aside, own), (own, aside)]
    assert cards.current == 0


def test_an_update_that_cannot_be_recorded_says_what_to_do_instead(cards):
    def refused():
        raise torch.AcceleratorError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted") as caught:
        graphs.recorded(refused, torch.device("cuda:0"))
    assert "--no-graph, also with --resume" in caught.value.__notes__[0]


# ---- what can be captured ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*STACKABLE, "boltzmann", "best-of-16"])
@pytest.mark.parametrize("online", [False, True], ids=["offline", "online"])
def test_an_update_reads_no_value_and_takes_nothing_from_the_host(method, online, capturing):
    numbers = {"boltzmann": {"positives": "boltzmann"}, "best-of-16": {"target_samples": 16}}.get(
        method, {}
    )
    agent = build("dfp" if numbers else method, **numbers)
    update, inputs = Captured(Plain(agent)), works([agent])[0][0]
    update(*inputs, online=online)  # allocates the moments
    with NothingOfTheHost():
        outcome = Plain(agent)(*inputs, online=online)
    assert outcome.finite.all()


@pytest.mark.parametrize("method", ["dfp", "dfp-released", "mvp-topk", "cac"])
def test_nor_does_a_stack(method):
    agents = seeds(method)
    update, inputs = Stacked(agents), works(agents)[1]
    update(*inputs, online=True)
    with NothingOfTheHost():
        update(*inputs, online=True)


def to_meta(agent):
    for module in agent.modules.values():
        module.to("meta")
    agent.device = torch.device("meta")
    for name, value in vars(agent).items():
        if isinstance(value, torch.Tensor):
            setattr(agent, name, value.to("meta"))
    return agent


@pytest.mark.parametrize("method", STACKABLE)
def test_a_loss_makes_everything_where_its_batch_is(method, capturing):
    """On torch's device without values: an entry that is read, or a tensor made on the CPU, is an error there."""
    agent = build(method)
    inputs = tree_map(lambda t: t.to("meta"), works([agent])[0][0])
    loss, log = to_meta(agent).loss(*inputs, online=True)
    loss.backward()
    agent.settle()
    assert {t.device.type for t in (loss, *log.values())} == {"meta"}


@pytest.mark.parametrize("method", ["dfp", "dfp-released", "mvp-topk", "cac", "idql"])
def test_and_so_does_a_stack(method, monkeypatch):
    stack = Stacked(seeds(method))
    inputs = tree_map(lambda t: t.to("meta"), works(stack.agents)[1])
    to_meta(stack.agents[0])
    stack.tensors = {
        k: t.detach().to("meta").requires_grad_(t.requires_grad) for k, t in stack.tensors.items()
    }
    monkeypatch.setattr(
        ops, "descend", lambda optimiser, loss: loss.backward()
    )  # a fused Adam needs values
    outcome = stack(*inputs, online=True)
    assert {t.device.type for t in (outcome.finite, *outcome.log.values())} == {"meta"}
    assert any("gradient of" in name for name in outcome.names)


@pytest.mark.parametrize("lanes", [1, 2])
def test_rows_and_noise_are_drawn_without_a_value_read(lanes):
    """Where the generator lives on the device, as with --noise-on device: the CPU never waits for a draw."""
    agent, generator = build(), torch.Generator().manual_seed(0)
    ring = Replay(
        as_episodes([make_row(t, ended=t % 10 == 9) for t in range(40)]), capacity=50, lanes=lanes
    )
    for t in range(40, 60):
        ring.add(**make_row(t))
    with NothingOfTheHost():
        batch = ring.sample(8, chunk=5, gamma=0.9, generator=generator, online_share=0.5)
        agent.draw_noise(8, generator)
        assert are_finite(batch).shape == (len(batch),)


def test_the_watch_sees_what_a_capture_must_not_do():
    x = torch.arange(4.0)
    for act in (
        lambda: float(x[0]),
        lambda: bool((x > 0).all()),
        lambda: torch.tensor([1.0, 2.0]) + x[:2],
        lambda: x[x > 1],
        lambda: x[[0, 2]],
        lambda: x.nonzero(),
    ):
        with pytest.raises(AssertionError), NothingOfTheHost():
            act()


def test_values_are_read_wherever_they_can_be():
    assert values_available(torch.ones(2), None)
    seen = []
    torch.func.vmap(lambda x: (seen.append(values_available(x)), x)[1])(torch.ones(2))
    assert seen == [False]
