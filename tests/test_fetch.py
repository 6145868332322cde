"""Downloads against a local server that cuts connections, forgets ranges and sends what it should not."""

import hashlib
import http.server
import re
import resource
import signal
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from wgflow_rl.data import fetch, npz


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; `cuts` says after how many bytes each of the coming answers breaks off (None: not at all)."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cuts: list[int | None] = []
        self.ranges = True
        self.versions = True  # the contents have an ETag
        self.announced: int | None = None  # a wrong size
        self.asked: list[tuple[str, str | None]] = []
        self.answered = lambda count: None  # called with the number of requests before this one

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.answered(len(self.server.asked))
        self.server.asked.append((self.path, asked))
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start, size = 0, len(content)
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        same = self.headers.get("If-Range") in (None, etag)
        if asked and self.server.ranges and same:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.send_header("ETag", etag)
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        else:
            self.send_response(200)
        body = content[start:]
        if self.server.versions:
            self.send_header("ETag", etag)
        if self.server.announced != 0:
            self.send_header("Content-Length", str(self.server.announced or len(body)))
        self.end_headers()
        cut = self.server.cuts.pop(0) if self.server.cuts else None
        self.wfile.write(body[:cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetch, "PAUSE", 0)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def content(tmp_path):
    npz.write(
        tmp_path / "source.npz", {"observations": np.random.default_rng(0).normal(size=(500, 4))}
    )
    return (tmp_path / "source.npz").read_bytes()


@pytest.fixture
def get(server, content, tmp_path):
    server.files["/x.npz"] = content
    (tmp_path / "got").mkdir()

    def get(**options):
        path = tmp_path / "got" / "x.npz"
        fetch.fetch(f"{server.url}/x.npz", path, **options)
        assert [p.name for p in path.parent.iterdir()] == ["x.npz"]
        assert path.read_bytes() == content

    get.folder = tmp_path / "got"
    return get


def test_a_file_comes_whole(server, get, content):
    get(sha256=hashlib.sha256(content).hexdigest())
    assert server.asked == [("/x.npz", None)]


def test_cut_connections_go_on_where_they_stopped(server, get, content):
    server.cuts = [5000, 3000, 1]
    get()
    assert server.asked == [
        ("/x.npz", r) for r in (None, "bytes=5000-", "bytes=8000-", "bytes=8001-")
    ]


def test_a_later_call_asks_for_the_rest_only(server, get, content):
    server.cuts = [2000] + [0] * fetch.ATTEMPTS
    with pytest.raises(
        ConnectionError, match=r"2,000 bytes are kept in .*x.npz.part: repeat the command to resume"
    ):
        get()
    assert sorted(p.name for p in get.folder.iterdir()) == ["x.npz.part", "x.npz.part.version"]
    server.cuts = []
    get()
    assert server.asked[-1] == ("/x.npz", "bytes=2000-")


def leave(folder, part, version):
    """What an interrupted download leaves."""
    (folder / "x.npz.part").write_bytes(part)
    (folder / "x.npz.part.version").write_text(f'"{hashlib.sha256(version).hexdigest()}"')


def test_what_was_whole_before_it_got_its_name_is_not_fetched_again(server, get, content):
    leave(get.folder, content, content)
    get()
    assert server.asked == [("/x.npz", f"bytes={len(content)}-")]


def test_a_file_that_changed_on_the_server_is_begun_anew(server, get, content):
    """With If-Range the server sends the whole new file; the old half is never joined to the new one."""
    leave(get.folder, b"old" * 1000, b"old" * 5000)
    get()
    assert server.asked == [("/x.npz", "bytes=3000-")]


def test_a_file_that_changes_between_two_cuts_is_never_spliced(server, get, content):
    old = bytes(len(content))
    server.files["/x.npz"], server.cuts = old, [4000, 0, 0]
    server.answered = lambda count: server.files.update({"/x.npz": content if count > 1 else old})
    get()
    assert (get.folder / "x.npz").read_bytes() == content


@pytest.mark.parametrize("version", ["", '"other"', "\r\nX-Injected: 1", "\udcff"])
def test_a_part_of_unknown_version_is_not_continued(server, get, content, version):
    server.versions = False
    (get.folder / "x.npz.part").write_bytes(b"of another file")
    text = version.encode("utf-8", "surrogateescape")
    (get.folder / "x.npz.part.version").write_bytes(text)
    get()


def test_a_link_in_the_place_of_a_part_is_refused(server, get, content):
    victim = get.folder.parent / "victim"
    victim.write_text("precious")
    (get.folder / "x.npz.part").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        get()
    assert victim.read_text() == "precious"


def test_two_downloads_of_one_file_fetch_it_once(server, get, content, monkeypatch):
    waiting = threading.Semaphore(0)
    monkeypatch.setattr(fetch, "print", lambda *_, **__: waiting.release(), raising=False)
    # The server answers when both others wait for the first.
    server.answered = lambda count: [waiting.acquire(timeout=60) for _ in range(2)]
    threads = [threading.Thread(target=get) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (get.folder / "x.npz").read_bytes() == content
    assert server.asked == [("/x.npz", None)]


@pytest.mark.parametrize("announced", [0, 10**12])
def test_more_than_the_largest_data_set_is_refused(server, get, monkeypatch, announced):
    """Announced or not (0: no Content-Length)."""
    server.announced, server.ranges = announced, False
    monkeypatch.setattr(fetch, "LARGEST", 3000)
    with pytest.raises(ConnectionError, match="wanted at most 3,000|more than 3,000 bytes"):
        get()
    assert len(server.asked) == 1


def test_more_than_the_disk_has_room_for_is_refused(server, get, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ConnectionError, match="has room for 1,000"):
        get()
    assert not list(get.folder.iterdir())


def test_a_full_disk_is_named_and_not_tried_again(server, get):
    """The limit of the size of a file stands for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*x.npz.part"):
            get()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(server.asked) == 1


def test_plain_http_needs_a_checksum_from_elsewhere(tmp_path):
    url = "http://mirror.example.org/x.npz"
    with pytest.raises(ValueError, match="is not https, and no SHA-256"):
        fetch.fetch(url, tmp_path / "x.npz")
    assert fetch.checksums("http://mirror.example.org") == {}  # could be altered too
    assert not list(tmp_path.iterdir())


def test_a_redirect_from_https_to_http_is_refused(tmp_path, monkeypatch):
    answer = SimpleNamespace(url="http://elsewhere.example.org/x.npz", close=lambda: None)
    monkeypatch.setattr(fetch.urllib.request, "urlopen", lambda *_, **__: answer)
    with pytest.raises(fetch.PermanentError, match="redirects to http://elsewhere"):
        fetch.fetch("https://example.org/x.npz", tmp_path / "x.npz")
    assert not list(tmp_path.iterdir())


def test_more_than_the_whole_file_is_begun_anew(server, get, content):
    leave(get.folder, content + b"more", content)
    get()
    assert [r for _, r in server.asked] == [f"bytes={len(content) + 4}-", None]


def test_a_server_without_ranges_is_asked_for_everything(server, get, content):
    server.ranges, server.cuts = False, [4000]
    get()
    assert [r for _, r in server.asked] == [None, "bytes=4000-"]


@pytest.mark.parametrize("announced", [1000, 10**6])
def test_a_wrong_size_is_refused(server, get, announced):
    server.announced, server.ranges = announced, False
    with pytest.raises(ConnectionError, match="is damaged|the connection was cut"):
        get()
    assert not (get.folder / "x.npz").exists()


@pytest.mark.parametrize("place", [0.1, 0.5, 0.99])
def test_altered_bytes_are_refused_and_not_kept(server, get, content, place):
    altered = bytearray(content)
    altered[int(place * len(content))] ^= 1
    server.files["/x.npz"] = bytes(altered)
    with pytest.raises(ConnectionError, match="is damaged"):
        get(sha256=hashlib.sha256(content).hexdigest())
    assert not list(get.folder.iterdir())


def test_the_arrays_own_checksums_are_compared_where_no_other_is_known(server, get, content):
    altered = bytearray(content)
    altered[len(content) // 2] ^= 1
    server.files["/x.npz"] = bytes(altered)
    with pytest.raises(ConnectionError, match="is damaged"):
        get()
    assert not list(get.folder.iterdir())


def test_a_file_the_server_lacks_is_not_asked_for_again(server, get):
    del server.files["/x.npz"]
    with pytest.raises(ConnectionError, match="x.npz: the server answers 404 Not Found"):
        get()
    assert len(server.asked) == 1


def test_checksums_are_those_that_sha256sum_prints(server, content):
    digest = hashlib.sha256(content).hexdigest()
    server.files["/SHA256SUMS"] = f"{digest}  x.npz\n{digest} *y.npz\nnonsense\n".encode()
    assert fetch.checksums(server.url) == {"x.npz": digest, "y.npz": digest}
    assert fetch.checksums(f"{server.url}/elsewhere") == {}


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(ConnectionError, match="cannot be reached"):
        fetch.checksums("http://127.0.0.1:9")


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_this_machine_is_asked_without_a_proxy(variable, server, monkeypatch):
    """It is trusted without a checksum, so what it sends must not pass through another machine."""
    monkeypatch.setenv(variable, "http://127.0.0.1:9")  # where nobody listens
    server.files["/SHA256SUMS"] = b"0" * 64 + b"  x.npz\n"
    assert fetch.checksums(server.url) == {"x.npz": "0" * 64}
