"""Downloads from a real HTTP server on this machine."""

import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from mlebench_web.catalog import download
from mlebench_web.catalog.download import DownloadFailed
from mlebench_web.catalog.package_index import PackageIndex

CONTENT = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "trees-1.0-py3-none-any.whl"


class Server(ThreadingHTTPServer):
    """An index with one file. `cut` breaks the first so many replies off after half of the file."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.cut = 0
        self.knows_ranges = True
        self.as_html = False
        self.password = ""
        self.asked: list[str | None] = []

    @property
    def index(self) -> PackageIndex:
        return PackageIndex(f"http://127.0.0.1:{self.server_port}/simple")


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.server.password and self.headers["Authorization"] != self.server.password:
            self.send_error(401)
        elif self.path == "/simple/trees/":
            self.send_page()
        elif self.path == f"/files/{NAME}":
            self.send_file()
        else:
            self.send_error(404)

    def send_page(self) -> None:
        link = f"../../files/{NAME}"
        if self.server.as_html:
            kind, body = "text/html", f'<a href="{link}#sha256=0">{NAME}</a>'
        else:
            kind = "application/vnd.pypi.simple.v1+json"
            body = json.dumps({"files": [{"filename": NAME, "url": link}]})
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def send_file(self) -> None:
        wanted = self.headers["Range"]
        self.server.asked.append(wanted)
        start = 0
        if wanted and self.server.knows_ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cut:
            self.server.cut -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSES_SECONDS", (0, 0, 0))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server: Server, to: Path, index: PackageIndex | None = None) -> list[int]:
    """Download the one file; what the progress bar was told."""
    seen: list[int] = []
    download.wheel(
        index or server.index,
        "trees",
        NAME,
        sha256=SHA256,
        size_bytes=len(CONTENT),
        to=to,
        progress=lambda done, total: seen.append(done),
    )
    return seen


@pytest.mark.parametrize("as_html", [False, True])
def test_a_file_is_found_on_the_index_and_its_progress_told(
    server: Server, tmp_path: Path, as_html: bool
) -> None:
    server.as_html = as_html

    seen = get(server, tmp_path / "cache" / NAME)

    assert (tmp_path / "cache" / NAME).read_bytes() == CONTENT
    assert seen == sorted(seen)
    assert seen[-1] == len(CONTENT)


def test_what_is_there_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(CONTENT)
    server.shutdown()

    assert get(server, tmp_path / NAME) == [len(CONTENT)]


def test_a_broken_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.cut = 1

    get(server, tmp_path / NAME)

    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={len(CONTENT) // 2}-"]


def test_a_later_call_goes_on_too(server: Server, tmp_path: Path) -> None:
    server.cut = 3
    with pytest.raises(DownloadFailed, match="goes on from it"):
        get(server, tmp_path / NAME)
    have = (tmp_path / f"{NAME}.part").stat().st_size

    seen = get(server, tmp_path / NAME)

    assert server.asked[-1] == f"bytes={have}-"
    assert seen[0] == have
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_a_server_without_ranges_sends_all_of_it_again(server: Server, tmp_path: Path) -> None:
    server.knows_ranges = False
    server.cut = 1

    get(server, tmp_path / NAME)

    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_another_file_than_the_pinned_one_is_refused(server: Server, tmp_path: Path) -> None:
    server.content = b"x" * len(CONTENT)

    with pytest.raises(DownloadFailed, match="SHA-256 differs"):
        get(server, tmp_path / NAME)

    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_in_the_cache_is_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(CONTENT[:-1] + b"x")

    get(server, tmp_path / NAME)

    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_the_password_of_an_index_is_sent_and_never_shown(server: Server, tmp_path: Path) -> None:
    server.password = "Basic bWU6c2VjcmV0LXdvcmQ="
    url = f"http://me:secret-word@127.0.0.1:{server.server_port}"

    with pytest.raises(DownloadFailed) as caught:
        get(server, tmp_path / NAME, PackageIndex(f"{url}/nothing"))
    assert "secret-word" not in str(caught.value)
    with pytest.raises(DownloadFailed, match="401"):
        get(server, tmp_path / NAME)
    get(server, tmp_path / NAME, PackageIndex(f"{url}/simple"))
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_an_index_out_of_reach_is_named(server: Server, tmp_path: Path) -> None:
    index = server.index
    server.shutdown()
    server.server_close()

    with pytest.raises(DownloadFailed, match=f"{index.index_url}.*refused"):
        get(server, tmp_path / NAME)
