"""Files altered at random: read as they were written, or refused in our own words with their name."""

import contextlib
import errno
import io
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wgflow_rl import envs
from wgflow_rl.data import npz, ogbench

MAZE = "pointmaze-medium-navigate-singletask-task1-v0"
ROWS = 24


@pytest.fixture(scope="module")
def maze():
    return envs.make(MAZE)


def arrays():
    rng = np.random.default_rng(0)
    position = rng.uniform(-1, 1, (ROWS, 2)).astype(np.float32)
    return {
        "observations": position + np.float32([0, 4]),  # beyond [-1, 1], so no action
        "actions": rng.uniform(-1, 1, (ROWS, 2)).astype(np.float32),
        "qpos": position,
        "qvel": np.zeros((ROWS, 2), np.float32),
        "terminals": np.arange(ROWS) % 8 == 7,
    }


def npz_bytes(content, compressed):
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **content)
    return stream.getvalue()


ORIGINALS = {compressed: npz_bytes(arrays(), compressed) for compressed in (False, True)}


@st.composite
def altered_bytes(draw):
    """A whole file with a few edits: bytes changed, cut out, put in, moved; the end or the beginning missing."""
    content = bytearray(ORIGINALS[draw(st.booleans())])
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        size = draw(st.sampled_from([1, 1, 1, 2, 4, 16, 200]))
        kind = draw(st.sampled_from(["flip", "set", "cut", "insert", "swap", "head", "tail"]))
        if kind == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            content[place : place + size] = draw(st.binary(min_size=size, max_size=size))[
                : len(content) - place
            ]
        elif kind == "cut":
            del content[place : place + size]
        elif kind == "insert":
            content[place:place] = draw(st.binary(min_size=1, max_size=size))
        elif kind == "swap":
            other = draw(st.integers(0, max(0, len(content) - 1)))
            one, two = bytes(content[place : place + size]), bytes(content[other : other + size])
            content[other : other + size], content[place : place + size] = one, two
        elif kind == "head":
            del content[:place]
        else:
            del content[place:]
    return bytes(content)


DTYPES = [
    "f2",
    "f4",
    "f8",
    ">f4",
    "g",
    "i1",
    "i8",
    "u2",
    "?",
    "c8",
    "U3",
    "S2",
    "O",
    "M8[s]",
    "V4",
    [("a", "f4")],
]
NUMBERS = [np.nan, np.inf, -np.inf, 1e300, -1e300, 1e39, 1e-300, 7, 2, -1]


@st.composite
def altered_arrays(draw):
    """A whole file of other arrays: other types and shapes, odd numbers, names that are swapped, missing or new."""
    content = {name: array.copy() for name, array in arrays().items()}
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(content)))
        kind = draw(
            st.sampled_from(
                ["dtype", "number", "shape", "swap", "drop", "rename", "shorten", "empty"]
            )
        )
        if kind == "dtype" and name in arrays():
            content[name] = arrays()[name].astype(draw(st.sampled_from(DTYPES)))
        elif kind == "number" and name in arrays():
            content[name] = array = arrays()[name].astype(np.float64)
            array.flat[draw(st.integers(0, array.size - 1))] = draw(st.sampled_from(NUMBERS))
        elif kind == "shape":
            shape = draw(
                st.sampled_from([(-1,), (1, -1), (ROWS, -1), (-1, 1), (2, -1), (ROWS, 1, -1)])
            )
            with contextlib.suppress(ValueError):
                content[name] = content[name].reshape(shape)
        elif kind == "swap":
            other = draw(st.sampled_from(sorted(content)))
            content[name], content[other] = content[other], content[name]
        elif kind == "drop" and len(content) > 1:
            del content[name]
        elif kind == "rename":
            content[draw(st.sampled_from(["observation", "x/y", "..", "é", " "]))] = content.pop(
                name
            )
        elif kind == "shorten":
            content[name] = content[name][:-1]
        elif kind == "empty":
            content[name] = content[name][:0]
    return content


def outcome(path, maze):
    """Episodes, or None if the file was refused by name. Every other end is an error."""
    try:
        return ogbench.read(path, MAZE, ogbench.fix_task(maze))
    except ValueError as error:
        if str(path) not in str(error):
            raise
        return None


def assert_same(episodes, expected):
    for name, array in vars(expected).items():
        if isinstance(array, np.ndarray):
            np.testing.assert_array_equal(getattr(episodes, name), array)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def expected(folder, maze):
    path = folder / "x.npz"
    path.write_bytes(ORIGINALS[True])
    return ogbench.read(path, MAZE, ogbench.fix_task(maze))


@settings(max_examples=150)
@given(altered_bytes())
def test_altered_bytes_are_refused_or_change_nothing(folder, maze, expected, content):
    path = folder / "bytes.npz"
    path.write_bytes(content)
    episodes = outcome(path, maze)
    if episodes is not None:
        assert_same(episodes, expected)


@settings(max_examples=100)
@given(altered_arrays(), st.booleans())
def test_other_arrays_are_refused_or_read_as_the_numbers_they_are(
    folder, maze, content, compressed
):
    path = folder / "arrays.npz"
    path.write_bytes(npz_bytes(content, compressed))
    episodes = outcome(path, maze)
    if episodes is None:
        return
    ends = content["terminals"] == 1
    for name, column in (("observations", "observations"), ("actions", "actions")):
        np.testing.assert_array_equal(
            getattr(episodes, name), content[column][~ends].astype(np.float32)
        )
    assert np.isin(content["terminals"], (0, 1)).all() and ends[-1]
    assert np.abs(episodes.actions).max() <= 1 + 1e-5


@pytest.mark.slow
def test_every_third_byte_of_a_file_is_guarded(folder, maze, expected):
    """All bits of a byte flipped, for every third byte in turn."""
    path = folder / "flip.npz"
    for original in ORIGINALS.values():
        for place in range(0, len(original), 3):
            content = bytearray(original)
            content[place] ^= 0xFF
            path.write_bytes(content)
            episodes = outcome(path, maze)
            if episodes is not None:
                assert_same(episodes, expected)


@pytest.mark.parametrize("name", ["actions.npy", "observations.npy"])
def test_two_arrays_of_one_name_are_refused(folder, maze, name):
    path = folder / "twice.npz"
    path.write_bytes(ORIGINALS[False])
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, archive.read("qpos.npy"))
    with pytest.raises(ValueError, match=f"'{name}' is not an array, or occurs twice"):
        ogbench.read(path, MAZE, ogbench.fix_task(maze))


def test_an_array_that_claims_to_be_shorter_is_refused(folder, maze):
    """numpy would read the rows that a header tells of and then stop, before any checksum is compared."""
    longer = npz_bytes({"observations": np.zeros((2000, 20))}, compressed=False)
    shorter = longer.replace(b"'shape': (2000, 20)", b"'shape': (1000, 20)")
    path = folder / "short.npz"
    path.write_bytes(shorter)
    with np.load(path, allow_pickle=False) as file:
        assert len(file["observations"]) == 1000
    with pytest.raises(
        ValueError, match=r"320128 bytes, which is not the size of float64 \(1000, 20\)"
    ):
        ogbench.read(path, MAZE, ogbench.fix_task(maze))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_promise_of_many_bytes_is_refused_before_memory_is_reserved(tmp_path, method):
    """A header of 4 GB and an entry that claims as many, in a file of a few hundred bytes."""
    header = io.BytesIO()
    rows = 10**9
    np.lib.format.write_array_header_1_0(
        header, {"shape": (rows,), "fortran_order": False, "descr": "<f4"}
    )
    path, inside = tmp_path / "x.npz", header.getvalue() + bytes(100)
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x.npy", inside)
        entry = archive.getinfo("x.npy")
    claimed = len(header.getvalue()) + 4 * rows
    sizes = struct.pack("<LL", entry.compress_size, len(inside))
    stored = claimed if method == zipfile.ZIP_STORED else entry.compress_size
    path.write_bytes(path.read_bytes().replace(sizes, struct.pack("<LL", stored, claimed)))
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("x.npy").file_size == claimed
    for call in (npz.read, npz.headers, npz.verify):
        with pytest.raises(npz.Damaged, match="claim"):
            call(path)


def test_arrays_that_compress_well_are_read(tmp_path):
    npz.write(tmp_path / "x.npz", {"x": np.zeros(10**7, np.uint8)})
    assert npz.read(tmp_path / "x.npz")["x"].sum() == 0


def test_a_disk_that_fails_is_not_a_damaged_file(tmp_path, monkeypatch):
    npz.write(tmp_path / "x.npz", {"x": np.ones(3)})

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(zipfile.ZipFile, "infolist", fail)
    with pytest.raises(OSError, match=r"Input/output error: .*x.npz"):
        npz.read(tmp_path / "x.npz")
