"""Queues: which samples are held, and how they are drawn."""

import pytest
import torch

from wgflow import SampleQueue


def test_a_queue_names_the_way_to_store_images_without_mixing_them():
    batch = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"SampleQueue\(\(1, 28, 28\), \.\.\.\)"):
        SampleQueue(28, size=8).push(batch)
    queue = SampleQueue((1, 28, 28), size=8)
    queue.push(batch)
    drawn = queue.draw(3, generator=torch.Generator().manual_seed(0))
    assert all(any(torch.equal(d, image) for image in batch) for d in drawn)


def test_a_queue_keeps_the_newest_of_each_class():
    queue = SampleQueue(1, size=3, classes=2)
    queue.push(torch.arange(5.0)[:, None], torch.zeros(5, dtype=torch.long))
    queue.push(torch.tensor([[10.0]]), torch.tensor([1]))
    g = torch.Generator().manual_seed(0)
    drawn = queue.draw(3, torch.tensor([0, 0]), generator=g)
    assert drawn.shape == (2, 3, 1)
    assert all(set(each.flatten().tolist()) == {2.0, 3.0, 4.0} for each in drawn)
    assert queue.draw(1, torch.tensor([1])).item() == 10.0
    assert len(queue) == 4
    back = SampleQueue(1, size=3, classes=2)
    back.load_state_dict(queue.state_dict())
    again = [
        q.draw(2, torch.tensor([0]), generator=torch.Generator().manual_seed(1))
        for q in (queue, back)
    ]
    assert torch.equal(*again)


def test_a_queue_moves_and_is_saved_with_its_module():
    holder = torch.nn.Module()
    holder.queue = SampleQueue(2, size=3)
    holder.double()
    holder.queue.push(torch.ones(2, 2))
    assert holder.queue.draw(2).dtype == torch.float64
    assert set(holder.state_dict()) == {"queue.samples", "queue.pushed"}
    assert repr(holder.queue) == "SampleQueue(2, size=3, classes=1, held=2)"


def test_a_queue_of_one_class_needs_no_labels():
    queue = SampleQueue(1, size=2)
    queue.push(torch.tensor([[1.0], [2.0], [3.0]]))
    assert set(queue.draw(2).flatten().tolist()) == {2.0, 3.0}


@pytest.mark.parametrize(
    ("says", "call"),
    [
        ("wanted 0 to 1", lambda q: q.push(torch.zeros(1, 1), torch.tensor([2]))),
        ("torch.float32 for 1 samples", lambda q: q.push(torch.zeros(1, 1), torch.tensor([0.9]))),
        (r"\[1, 1\] torch.int64", lambda q: q.push(torch.zeros(1, 1), torch.tensor([[0]]))),
        ("one integer for each", lambda q: q.draw(1, torch.tensor(0))),
        ("n = -1", lambda q: q.draw(-1, torch.tensor([0]))),
        ("beyond torch.float16", lambda q: q.half().push(torch.full((1, 1), 1e6), torch.tensor([0]))),
        ("missing", lambda q: q.push(torch.zeros(1, 1))),
        (r"labels \[0\] hold 0", lambda q: q.draw(1, torch.tensor([0]))),
        ("NaN", lambda q: q.push(torch.zeros(1, 1) / 0, torch.tensor([0]))),
        ("samples are torch.uint8", lambda q: q.push(torch.zeros(1, 1).byte(), torch.tensor([0]))),
        (r"255 \* images", lambda q: SampleQueue(1, size=3, dtype=torch.uint8).push(torch.zeros(1, 1))),
        ("dtype = torch.int64", lambda q: SampleQueue(1, size=3, dtype=torch.int64)),
        ("at least one", lambda q: SampleQueue(1, size=0)),
    ],
)  # fmt: skip
def test_bad_queues_are_named(says, call):
    with pytest.raises(ValueError, match=says):
        call(SampleQueue(1, size=3, classes=2))


def test_a_push_is_the_same_as_pushes_one_by_one():
    g = torch.Generator().manual_seed(0)
    samples = torch.randint(256, (40, 1, 2, 2), generator=g, dtype=torch.uint8)
    labels = torch.randint(3, (40,), generator=g)
    together, apart = (SampleQueue((1, 2, 2), size=4, classes=3, dtype=torch.uint8) for _ in "ab")
    for part in (slice(0, 7), slice(7, 40)):
        together.push(samples[part], labels[part])
    for i in range(40):
        apart.push(samples[i : i + 1], labels[i : i + 1])
    assert torch.equal(together.samples, apart.samples)
    assert together.samples.dtype == torch.uint8


def test_draws_are_without_replacement_and_uniform():
    queue = SampleQueue(1, size=6)
    queue.push(torch.arange(5.0)[:, None])
    g = torch.Generator().manual_seed(0)
    drawn = torch.stack([queue.draw(2, generator=g).flatten() for _ in range(2000)]).long()
    assert (drawn[:, 0] != drawn[:, 1]).all()
    # 4,000 draws: 800 of each, standard deviation 22.
    assert ((drawn.flatten().bincount(minlength=5) - 800).abs() < 110).all()
