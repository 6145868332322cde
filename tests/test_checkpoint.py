"""A checkpoint is whole or absent, whatever stops the process; what is damaged is noticed; nothing is unpickled."""

import errno
import json
import os
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from wgflow_rl.training import checkpoint


def tensors_of(step):
    g = torch.Generator().manual_seed(step)
    return {
        "policy.weight": torch.randn(4, 3, generator=g),
        "adam.step": torch.tensor(float(step)),
        "ring.terminals": torch.rand(7, generator=g) < 0.5,
        "ring.empty": torch.zeros(0, 5),
        "generator": g.get_state(),
        "half": torch.randn(5, generator=g).bfloat16(),
        "transposed": torch.randn(2, 6, generator=g).T,
        "count": torch.arange(3),
    }


def state_of(step):
    return {
        "phase": "online",
        "best": [0.5, None],
        "numpy": {"pos": 2**127, "name": "PCG64"},
        "at": step,
    }


def save(folder, step, **kwargs):
    return checkpoint.save(
        folder, step=step, tensors=tensors_of(step), state=state_of(step), **kwargs
    )


def assert_is(loaded, step):
    at, tensors, state = loaded[:3]
    assert (at, state) == (step, state_of(step))
    assert tensors.keys() == tensors_of(step).keys()
    for name, expected in tensors_of(step).items():
        assert tensors[name].dtype == expected.dtype
        assert torch.equal(tensors[name], expected)


@given(
    st.dictionaries(
        st.text(), st.floats() | st.integers() | st.text() | st.none() | st.lists(st.booleans())
    )
)
def test_any_json_state_survives(tmp_path_factory, state):
    folder = tmp_path_factory.mktemp("state")
    checkpoint.save(folder, step=0, tensors={}, state=state)
    # as text: NaN differs from itself
    assert json.dumps(checkpoint.load(folder).state) == json.dumps(state)


def test_a_saved_tensor_may_be_a_view_or_need_gradients(tmp_path):
    ring = torch.arange(20.0).reshape(10, 2)
    weight = torch.ones(3, requires_grad=True)
    checkpoint.save(
        tmp_path, step=1, tensors={"filled": ring[:4], "next": ring[4:6], "w": weight}, state={}
    )
    tensors = checkpoint.load(tmp_path).tensors
    assert torch.equal(tensors["filled"], ring[:4])
    assert torch.equal(tensors["next"], ring[4:6])
    assert not tensors["w"].requires_grad


def test_the_last_ones_are_kept_and_the_newest_is_loaded(tmp_path):
    for step in (0, 10, 200, 3000):
        save(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step-000000000200.safetensors",
        "step-000000003000.safetensors",
    ]
    assert_is(checkpoint.load(tmp_path), 3000)


def test_a_resumed_run_replaces_the_future_it_left(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "KEEP", 3)
    for step in (10, 20, 30):
        save(tmp_path, step)
    save(tmp_path, 20)
    assert_is(checkpoint.load(tmp_path), 20)
    assert len(list(tmp_path.iterdir())) == 2


class Killed(BaseException):
    """Stands for a kill: no `except Exception` may swallow it."""


def failing_at(monkeypatch, call, error):
    """Make the call-th of the writes of a save (file, fsync, rename, fsync of the folder) raise; count them."""
    calls = []

    def wrapped(function):
        def inner(*args, **kwargs):
            calls.append(function)
            if len(calls) == call + 1:
                raise error
            return function(*args, **kwargs)

        return inner

    monkeypatch.setattr(Path, "write_bytes", wrapped(Path.write_bytes))
    monkeypatch.setattr(os, "fsync", wrapped(os.fsync))
    monkeypatch.setattr(os, "replace", wrapped(os.replace))
    return calls


@pytest.mark.parametrize("again", [False, True], ids=["next step", "same step again"])
@pytest.mark.parametrize("call", range(4))
@pytest.mark.parametrize(
    "error", [Killed(), OSError(errno.ENOSPC, "No space left on device")], ids=["kill", "disk full"]
)
def test_a_stop_between_any_two_writes_leaves_a_whole_checkpoint(
    tmp_path, monkeypatch, call, error, again
):
    save(tmp_path, 1)
    save(tmp_path, 2)
    step = 2 if again else 3
    with monkeypatch.context() as patch:
        failing_at(patch, call, error)
        with pytest.raises(type(error)):
            save(tmp_path, step)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        at = checkpoint.load(tmp_path)[0]
    assert at == (step if call == 3 else 2)
    assert_is(checkpoint.load(tmp_path), at)
    save(tmp_path, 4)
    assert_is(checkpoint.load(tmp_path), 4)
    assert len(list(tmp_path.iterdir())) == 2  # no temporary file stays


def part(folder, first, last):
    tensors = {
        "rewards": torch.arange(first, last),
        "obs": torch.full((last - first, 2), float(last)),
    }
    return checkpoint.save_rows(folder, first=first, last=last, tensors=tensors)


def test_rows_are_written_once_and_come_back_in_order(tmp_path):
    parts = [part(tmp_path, 0, 4)]
    save(tmp_path, 1, parts=parts)
    first = (tmp_path / parts[0].name).stat()
    save(tmp_path, 2, parts=[*parts, part(tmp_path, 4, 5)])
    assert (tmp_path / parts[0].name).stat() == first
    loaded = checkpoint.load(tmp_path)
    assert_is(loaded, 2)
    assert torch.cat([rows["rewards"] for rows in loaded.rows]).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("damage", ["cut", "gone", "another"])
def test_a_damaged_part_is_damage_of_every_checkpoint_that_needs_it(tmp_path, damage, monkeypatch):
    monkeypatch.setattr(checkpoint, "KEEP", 3)
    parts = [part(tmp_path, 0, 4)]
    save(tmp_path, 1, parts=parts)
    parts.append(part(tmp_path, 4, 5))
    for step in (2, 3):
        save(tmp_path, step, parts=parts)
    path = tmp_path / parts[1].name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "gone":
        path.unlink()
    else:
        (tmp_path / parts[0].name).replace(tmp_path / "kept")
        part(tmp_path, 4, 6)
        (tmp_path / "rows-000000000004-000000000006.safetensors").replace(path)
        (tmp_path / "kept").replace(tmp_path / parts[0].name)
    with pytest.warns(RuntimeWarning) as warned:
        assert_is(checkpoint.load(tmp_path), 1)
    assert len(warned) == 2


def test_parts_go_with_the_last_checkpoint_that_needs_them(tmp_path):
    old = part(tmp_path, 0, 4)
    save(tmp_path, 1, parts=[old])
    new = part(tmp_path, 4, 8)
    save(tmp_path, 2, parts=[old, new])
    save(tmp_path, 3, parts=[new])
    assert (tmp_path / old.name).exists()
    save(tmp_path, 4, parts=[new])
    assert not (tmp_path / old.name).exists()
    part(tmp_path, 8, 9)  # of a save that was killed before its checkpoint
    save(tmp_path, 5, parts=[new])
    assert sorted(p.name[:4] for p in tmp_path.iterdir()) == ["rows", "step", "step"]


def test_the_best_is_kept_beside_the_last_ones_and_loaded_when_asked_for(tmp_path):
    for step in range(1, 7):
        save(tmp_path, step, best=min(step, 2))
    assert sorted(int(p.stem[5:]) for p in tmp_path.iterdir()) == [2, 5, 6]
    assert_is(checkpoint.load(tmp_path), 6)
    assert_is(checkpoint.load(tmp_path, step=2), 2)
    with pytest.raises(FileNotFoundError, match="step-000000000004"):
        checkpoint.load(tmp_path, step=4)


def test_what_a_killed_save_left_is_swept(tmp_path):
    (tmp_path / ".step-000000000001.safetensors.0123456789abcdef.tmp").write_bytes(b"half")
    save(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000000002.safetensors"]


def test_a_save_makes_four_writes(tmp_path, monkeypatch):
    calls = failing_at(monkeypatch, 99, Killed())
    save(tmp_path, 1)
    assert len(calls) == 4  # or the test above misses one


def test_a_disk_that_fills_inside_the_writer_is_an_os_error(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def cut(path, contents):
        with path.open("wb") as file:
            file.write(contents[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", cut)
        with pytest.raises(
            OSError, match="No space left on device: .*step-000000000002.* before it are intact"
        ):
            save(tmp_path, 2)
    assert_is(checkpoint.load(tmp_path), 1)
    assert len(list(tmp_path.iterdir())) == 1


@given(st.data())
def test_one_changed_byte_is_noticed_wherever_it_is(tmp_path_factory, data):
    path = save(tmp_path_factory.mktemp("flip"), 3)
    contents = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(contents) - 1))
    contents[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(contents)
    try:
        found = checkpoint.read(path)
    except ValueError:
        return  # noticed: DamagedCheckpoint, or a format number that became a later one
    # Not noticed means harmless: a byte of padding, or of the header's spelling.
    assert_is(found, 3)


@given(st.integers(0, 10**6))
def test_a_cut_file_is_noticed(tmp_path_factory, length):
    path = save(tmp_path_factory.mktemp("cut"), 3)
    contents = path.read_bytes()
    path.write_bytes(contents[: length % len(contents)])
    with pytest.raises(checkpoint.DamagedCheckpoint):
        checkpoint.read(path)


def test_nothing_intact_is_an_error_that_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"step-\*"):
        checkpoint.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "missing")
    save(tmp_path, 1).write_bytes(b"")
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(checkpoint.DamagedCheckpoint, match="none of the 1"),
    ):
        checkpoint.load(tmp_path)


def test_damage_of_the_checkpoint_that_was_asked_for_says_nothing_of_the_others(tmp_path):
    save(tmp_path, 1).write_bytes(b"")
    save(tmp_path, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            checkpoint.DamagedCheckpoint, match="step-000000000001.* cannot be read"
        ):
            checkpoint.load(tmp_path, step=1)


@pytest.mark.parametrize("refused", ["step-000000000003", "rows-"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EMFILE])
def test_a_file_that_the_system_refuses_to_read_is_neither_damaged_nor_removed(
    tmp_path, monkeypatch, refused, number
):
    parts = [part(tmp_path, 0, 4)]
    for step in (1, 2, 3):
        save(tmp_path, step, parts=parts)
    names = sorted(tmp_path.iterdir())
    real = open

    def guarded(path, *args, **kwargs):
        if refused in str(path):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", guarded)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(OSError, match=refused) as failed:
                checkpoint.load(tmp_path)
            assert failed.value.errno == number
            if refused != "rows-":
                with pytest.raises(OSError, match=refused):
                    save(tmp_path, 3, parts=parts)
    assert sorted(tmp_path.iterdir()) == names
    assert_is(checkpoint.load(tmp_path), 3)


def test_no_pickle_is_read(tmp_path):
    class Harm:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "harm"),))

    torch.save({"x": Harm()}, tmp_path / "step-000000000007.safetensors")
    with pytest.warns(RuntimeWarning), pytest.raises(checkpoint.DamagedCheckpoint):
        checkpoint.load(tmp_path)
    assert not (tmp_path / "harm").exists()


def test_a_foreign_safetensors_file_is_no_checkpoint(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "step-000000000001.safetensors")
    with pytest.raises(checkpoint.DamagedCheckpoint, match="KeyError"):
        checkpoint.read(tmp_path / "step-000000000001.safetensors")


def test_another_format_is_refused_not_skipped(tmp_path, monkeypatch):
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
        save(tmp_path, 2)
    with pytest.raises(ValueError, match="use the version that wrote it"):
        checkpoint.load(tmp_path)


def test_the_header_is_readable_by_anyone(tmp_path):
    with safe_open(save(tmp_path, 5), framework="pt") as file:
        assert json.loads(file.metadata()["state"]) == state_of(5)


def test_a_state_that_is_no_json_touches_nothing(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path, step=2, tensors={}, state={"x": torch.zeros(2)})
    assert_is(checkpoint.load(tmp_path), 1)


def test_weights_are_read_without_rows_that_are_gone(tmp_path):
    """Acting needs no replay: a damaged part of it costs no policy."""
    part = checkpoint.save_rows(tmp_path, first=0, last=3, tensors={"rewards": torch.zeros(3)})
    checkpoint.save(tmp_path, step=3, tensors={"w": torch.ones(2)}, state={}, parts=[part])
    (tmp_path / part.name).unlink()
    assert checkpoint.load(tmp_path, rows=False).tensors["w"].tolist() == [1, 1]
    with pytest.warns(RuntimeWarning), pytest.raises(checkpoint.DamagedCheckpoint):
        checkpoint.load(tmp_path)


def altered(tensors, meta, what):
    """A checkpoint of which one thing that its SHA-256 covers is another."""
    first, count = tensors["policy.weight"], tensors["count"]
    changes = {
        "bytes": {"policy.weight": first + 1},
        "type": {"count": count.view(torch.float64)},
        "shape": {"policy.weight": first.reshape(3, 4)},
    }
    tensors = tensors | changes.get(what, {})
    if what == "name":
        tensors["policy.bias"] = tensors.pop("policy.weight")
    new = {"step": "13", "state": '{"phase": "offline"}', "parts": '[["rows", "0"]]'}
    return tensors, meta | ({what: new[what]} if what in new else {})


@pytest.mark.parametrize("what", ["bytes", "type", "shape", "name", "step", "state", "parts"])
def test_an_altered_checkpoint_in_a_whole_file_does_not_match_its_hash(tmp_path, what):
    path = save(tmp_path, 12)
    with safe_open(path, framework="pt") as file:
        meta = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    save_file(tensors, path, metadata=meta)
    assert_is(checkpoint.read(path), 12)
    tensors, meta = altered(tensors, meta, what)
    save_file(tensors, path, metadata=meta)
    with pytest.raises(checkpoint.DamagedCheckpoint, match="does not match its SHA-256"):
        checkpoint.read(path)
