"""Reader of zarr replay buffers: what is written is read, and nothing damaged is read as something else."""

import json
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest

from tests.zarr_stores import CHUNK, write, zipped
from wgflow_rl.data import replay_zarr
from wgflow_rl.utils.cli import UserError

zarr = pytest.importorskip("zarr", reason="needs the extra rl on Python 3.11 or later")
numcodecs = pytest.importorskip("numcodecs")

ENDS = np.array([9, 12, 30])
KEYS = {"obs": (3,), "action": None}


def arrays(rows=30, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "obs": rng.normal(size=(rows, 3)).astype(np.float32),
        "action": rng.integers(1, 100, (rows, 2)),
        "img": rng.integers(0, 256, (rows, 4, 4, 3), dtype=np.uint8),
    }


@pytest.fixture
def store(tmp_path):
    return write(tmp_path / "some.zarr", arrays(), ENDS)


def assert_read(path, wanted=None, ends=ENDS):
    found = replay_zarr.read(path, KEYS)
    np.testing.assert_array_equal(found.episode_ends, ends)
    assert list(found.arrays) == list(KEYS)
    for key, array in found.arrays.items():
        np.testing.assert_array_equal(array, (wanted or arrays())[key])


def test_folder_archive_and_folder_in_an_archive_give_what_was_written(store, tmp_path):
    assert_read(store)
    assert_read(zipped(store, tmp_path / "some.zarr.zip"))
    assert_read(zipped(store, tmp_path / "official.zip", prefix="pusht/some.zarr/"))


NESTED = {"chunk_key_encoding": {"name": "v2", "separator": "/"}}


@pytest.mark.parametrize("options", [{"compressors": None}, NESTED, {"order": "F"}])
def test_every_layout_of_chunks_is_read(tmp_path, options):
    store = write(tmp_path / "some.zarr", arrays(), ENDS, **options)
    assert_read(store)
    assert_read(zipped(store, tmp_path / "some.zip"))


def test_chunks_beyond_the_shape_and_other_files_are_ignored(store):
    """Stores that were shortened keep their old chunks; an archive may have a Mac's files."""
    shutil.copy(store / "data/obs/0.0", store / "data/obs/99.0")
    (store / "data/.DS_Store").write_bytes(b"\0")
    (store / "data/obs_raw").mkdir()
    (store / ".zmetadata").write_text("{}")
    assert_read(store)
    assert_read(zipped(store, store.with_suffix(".zip")))


def test_arrays_that_are_not_asked_for_are_not_read(store):
    header = json.loads((store / "data/img/.zarray").read_text())
    header["compressor"] = {"id": "of another program"}
    (store / "data/img/.zarray").write_text(json.dumps(header))
    for chunk in (store / "data/img").glob("[0-9]*"):
        chunk.write_bytes(b"no image")
    assert_read(store)


def chunks(store):
    return sorted(
        str(p.relative_to(store))
        for name in ("data/obs", "data/action", "meta/episode_ends")
        for p in (store / name).iterdir()
        if not p.name.startswith(".")
    )


def test_a_missing_chunk_is_refused_wherever_it_is(store, tmp_path):
    assert len(chunks(store)) == 2 * -(-30 // CHUNK) + 1
    for name in chunks(store):
        archive = zipped(store, tmp_path / "some.zip", leave_out=name)
        kept = (store / name).read_bytes()
        (store / name).unlink()
        assert not zarr.open_array(store / name.rpartition("/")[0])[:].all()  # zarr's own reading
        for path in (store, archive):
            with pytest.raises(replay_zarr.Damaged, match=f"{name} is missing, with rows of") as e:
                replay_zarr.read(path, KEYS)
            assert str(path) in str(e.value)
        (store / name).write_bytes(kept)


@pytest.mark.parametrize("codec", [None, "blosc", "zstd", "zlib", "gzip", "bz2", "lzma", "lz4"])
def test_a_cut_chunk_is_refused_wherever_it_is_cut(tmp_path, codec):
    """The first is random and stored as it is by compressors, the second is compressed."""
    compressors = None if codec is None else numcodecs.get_codec({"id": codec})
    constant = {"action": np.ones((30, 2), np.int64)}
    store = write(tmp_path / "some.zarr", arrays() | constant, ENDS, compressors=compressors)
    assert_read(store, arrays() | constant)
    for name in ("data/obs/1.0", "data/action/0.0"):
        whole = (store / name).read_bytes()
        for left in {0, 1, len(whole) // 2, len(whole) - 5, len(whole) - 1}:
            (store / name).write_bytes(whole[:left])
            with pytest.raises(replay_zarr.Damaged, match=str(store)):
                replay_zarr.read(store, KEYS)
        (store / name).write_bytes(whole)


def test_an_altered_archive_is_read_as_written_or_refused_by_name(store, tmp_path):
    """Archives have a checksum per file."""
    path = zipped(store, tmp_path / "some.zip")
    whole, rng, said = path.read_bytes(), np.random.default_rng(0), []
    for _ in range(40):
        at, length = int(rng.integers(len(whole))), int(rng.integers(1, 200))
        path.write_bytes(whole[:at] + rng.bytes(length) + whole[at + length :])
        try:
            assert_read(path)
        except ValueError as error:
            said.append(str(error))
    assert len(said) > 3
    assert all(str(path) in message for message in said)


def test_an_altered_folder_is_read_or_refused_by_name(store):
    files, rng, said = chunks(store), np.random.default_rng(0), []
    files += [f"{name}/.zarray" for name in ("data/obs", "data/action", "meta/episode_ends")]
    for file in files * 2:
        whole = (store / file).read_bytes()
        at = int(rng.integers(len(whole)))
        (store / file).write_bytes(whole[:at] + rng.bytes(9) + whole[at + 9 :])
        try:
            replay_zarr.read(store, KEYS)
        except ValueError as error:
            said.append(str(error))
        (store / file).write_bytes(whole)
    assert len(said) > 3
    assert all(str(store) in message for message in said)
    assert_read(store)


def changed(rows=30, **arrays_):
    return lambda tmp: write(tmp / "bad.zarr", arrays(rows) | arrays_, ENDS)


def with_ends(ends):
    return lambda tmp: write(tmp / "bad.zarr", arrays(), np.array(ends))


def holes(row, value):
    obs = arrays()["obs"]
    obs[row, 1] = value
    return obs


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda tmp: write(tmp / "bad.zarr", {"obs": arrays()["obs"]}, ENDS), "no data/action; it has data/obs, meta"),
        (changed(rows=29), r"data/obs is float32 \(29, 3\); wanted numbers in 30 rows, .* each of shape \(3,\)"),
        (changed(obs=np.zeros((30, 4), np.float32)), r"\(30, 4\); wanted numbers .* each of shape \(3,\)"),
        (changed(obs=np.zeros(30, np.float32)), r"data/obs is float32 \(30,\)"),
        (changed(action=np.full((30, 2), b"left")), "data/action is .S4"),
        (changed(obs=holes(10, np.nan)), "data/obs is not finite in row 10, in episode 1"),
        (changed(obs=holes(29, -np.inf)), "data/obs is not finite in row 29, in episode 2"),
        (with_ends([9, 9, 30]), "does not increase: 9 of episode 1 after 9"),
        (with_ends([0, 9, 30]), "does not increase: 0 of episode 0 after 0"),
        (with_ends([-3, 9, 30]), "does not increase: -3 of episode 0"),
        (with_ends([9, 12, 29]), r"data/obs is float32 \(30, 3\); wanted numbers in 29 rows"),
        (with_ends([9.0, 12.0, 30.0]), "meta/episode_ends is float64 .*; wanted integers"),
        (with_ends([[9, 12, 30]]), r"meta/episode_ends is int64 \(1, 3\); wanted integers"),
        (with_ends(np.zeros(0, int)), r"meta/episode_ends is int64 \(0,\); wanted integers, one per episode"),
    ],
)  # fmt: skip
def test_what_is_no_replay_buffer_is_refused_with_store_and_array(tmp_path, make, says):
    store = make(tmp_path)
    for path in (store, zipped(store, tmp_path / "bad.zip")):
        with pytest.raises(replay_zarr.Damaged, match=says) as error:
            replay_zarr.read(path, KEYS)
        assert str(path) in str(error.value)


def test_paths_without_a_store_are_refused(store, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        replay_zarr.read(tmp_path / "nowhere", KEYS)
    with pytest.raises(replay_zarr.Damaged, match="cannot be read as a replay buffer"):
        replay_zarr.read(tmp_path, KEYS)
    text = tmp_path / "text.zip"
    text.write_text("no archive")
    with pytest.raises(replay_zarr.Damaged, match="BadZipFile"):
        replay_zarr.read(text, KEYS)
    other = zipped(store, tmp_path / "other.zip", leave_out="meta/episode_ends/.zarray")
    with pytest.raises(replay_zarr.Damaged, match="has 0 replay buffers .*no meta/episode_ends"):
        replay_zarr.read(other, KEYS)
    two = tmp_path / "two"
    shutil.copytree(store, two / "a.zarr")
    shutil.copytree(store, two / "b.zarr")
    with pytest.raises(replay_zarr.Damaged, match="has 2 replay buffers .*a.zarr/, b.zarr/"):
        replay_zarr.read(zipped(two, tmp_path / "two.zip"), KEYS)


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
def test_format_3_is_refused(tmp_path):
    root = zarr.create_group(tmp_path / "new.zarr", zarr_format=3)
    root.create_array("data/obs", data=arrays()["obs"])
    root.create_array("meta/episode_ends", data=ENDS)
    with pytest.raises(replay_zarr.Damaged, match="zarr format 2"):
        replay_zarr.read(tmp_path / "new.zarr", KEYS)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("place", ["compressor", "filters"])
@pytest.mark.parametrize("dtype", ["<f4", "|O"])
def test_pickles_are_never_loaded(store, place, dtype):
    header = json.loads((store / "data/obs/.zarray").read_text())
    codec = {"id": "pickle", "protocol": 5}
    header |= {"dtype": dtype, "compressor": None, "filters": None}
    header |= {place: codec if place == "compressor" else [codec]}
    (store / "data/obs/.zarray").write_text(json.dumps(header))
    for chunk in (store / "data/obs").glob("[0-9]*"):
        chunk.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(replay_zarr.Damaged, match="coded with pickle; .*never loaded"):
        replay_zarr.read(store, KEYS)


def altered(store, name, **changes):
    header = json.loads((store / name / ".zarray").read_text())
    (store / name / ".zarray").write_text(json.dumps(header | changes))


@pytest.mark.parametrize(
    "name", ["data/obs/0.0", "data/obs/.zarray", "data/obs", "data", ".zgroup"]
)
def test_no_link_leaves_the_store(store, tmp_path, name):
    outside = tmp_path / "outside"
    shutil.move(store / name, outside)
    (store / name).symlink_to(outside)
    with pytest.raises(replay_zarr.Damaged, match="is a link to a file outside the store"):
        replay_zarr.read(store, KEYS)
    link = tmp_path / "link.zarr"
    (store / name).unlink()
    shutil.move(outside, store / name)
    link.symlink_to(store)
    assert replay_zarr.read(link, KEYS).arrays.keys() == KEYS.keys()


@pytest.mark.parametrize("name", [".zgroup", ".zattrs", "data/obs/.zattrs", "data/obs/.zgroup"])
def test_a_pipe_in_a_store_is_refused_not_waited_for(store, name):
    (store / name).unlink(missing_ok=True)
    os.mkfifo(store / name)
    with pytest.raises(replay_zarr.Damaged, match="not a regular file"):
        replay_zarr.read(store, KEYS)


@pytest.mark.parametrize(
    ("rows", "error", "says"),
    [(10**8, replay_zarr.Damaged, "made up"), (10**14, UserError, "needs .* GB of memory")],
)
def test_a_header_reserves_no_memory_that_the_store_does_not_fill(store, rows, error, says):
    altered(store, "data/obs", shape=[rows, 3], chunks=[rows, 3])
    with pytest.raises(error, match=says):
        replay_zarr.read(store, KEYS)


def test_a_chunk_that_grows_in_the_archive_is_refused(store, tmp_path):
    path = tmp_path / "bomb.zip"
    zipped(store, path, leave_out="data/obs/0.0")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/obs/0.0", bytes(10**6))
    with pytest.raises(replay_zarr.Damaged, match="more than its numbers"):
        replay_zarr.read(path, KEYS)
