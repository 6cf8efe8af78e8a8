"""Download one pinned file: progress, resume, hash check."""

import hashlib
import html.parser
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from mlebench_web.catalog.package_index import PackageIndex

Progress = Callable[[int, int | None], None]
# Before each try.
PAUSES_SECONDS = (0, 1, 2, 4)
TIMEOUT_SECONDS = 30
CHUNK_BYTES = 256 * 1024
SIMPLE_API = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"


class DownloadFailed(Exception):
    """Says what was asked from where, and the reason."""


def wheel(
    index: PackageIndex,
    package: str,
    file_name: str,
    *,
    sha256: str,
    size_bytes: int,
    to: Path,
    progress: Progress,
) -> None:
    """Put a file of a package on the index at `to`. Nothing is asked when it is there already."""
    if to.exists() and _sha256(to) == sha256:
        progress(size_bytes, size_bytes)
        return
    urls = [index.index_url, *index.extra_index_urls]
    failures = []
    for url in urls:
        try:
            address = _find(index, f"{url.rstrip('/')}/{package}/", file_name)
        except (OSError, HTTPException, ValueError) as error:
            failures.append(f"{_without_password(url)}: {_reason(error)}")
            continue
        if address:
            fetch(index, address, to, sha256=sha256, size_bytes=size_bytes, progress=progress)
            return
        failures.append(f"{_without_password(url)}: it has no file {file_name}")
    raise DownloadFailed(
        f"{file_name} could not be found. {'; '.join(failures)}. Check the network and pip's "
        f"index, or put the file into {to.parent} yourself."
    )


def fetch(
    index: PackageIndex, url: str, to: Path, *, sha256: str, size_bytes: int, progress: Progress
) -> None:
    """Download `url` to `to`. Goes on where a broken one stopped, if the server can.

    Raises DownloadFailed after the last try, and when the content is not the pinned one.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_name(to.name + ".part")
    reason = ""
    for pause in PAUSES_SECONDS:
        time.sleep(pause)
        try:
            _append(index, url, part, size_bytes, progress)
        except (OSError, HTTPException) as error:
            reason = _reason(error)
            if isinstance(error, urllib.error.HTTPError) and error.code in (401, 403, 404, 410):
                break
            continue
        if part.stat().st_size < size_bytes:
            reason = f"the connection ended after {part.stat().st_size} of {size_bytes} bytes"
            continue
        if _sha256(part) != sha256:
            part.unlink()
            raise DownloadFailed(
                f"{to.name} from {_without_password(url)} is not the file that was pinned (its "
                "SHA-256 differs). The index or a proxy gave another one."
            )
        part.replace(to)
        return
    raise DownloadFailed(
        f"{to.name} could not be downloaded from {_without_password(url)}: {reason}. "
        "What is there is kept; the next try goes on from it."
    )


def _append(index: PackageIndex, url: str, part: Path, size_bytes: int, progress: Progress) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have >= size_bytes:
        if have > size_bytes:
            part.unlink()
            have = 0
        else:
            return
    headers = {"Range": f"bytes={have}-"} if have else {}
    with _open(index, url, headers) as reply:
        # 200 to a range: the server sends all of it again.
        if reply.status != 206:
            have = 0
        with part.open("ab" if have else "wb") as file:
            progress(have, size_bytes)
            while chunk := reply.read(CHUNK_BYTES):
                file.write(chunk)
                have += len(chunk)
                progress(have, size_bytes)


def _open(index: PackageIndex, url: str, headers: dict[str, str]):  # type: ignore[no-untyped-def]
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url} is no web address")
    parts = urllib.parse.urlsplit(url)
    if parts.username:
        pair = (
            f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        )
        headers = {**headers, "Authorization": "Basic " + b64encode(pair.encode()).decode()}
        url = urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    request = urllib.request.Request(url, headers=headers)  # noqa: S310
    return urllib.request.urlopen(  # noqa: S310
        request, timeout=TIMEOUT_SECONDS, context=index.ssl_context()
    )


class _Links(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a" and (href := dict(attrs).get("href")):
            self.links.append(href)


def _find(index: PackageIndex, page: str, file_name: str) -> str | None:
    """The address of a file on a package's page of the index (JSON or HTML)."""
    with _open(index, page, {"Accept": SIMPLE_API}) as reply:
        body = reply.read().decode()
        base = reply.url
        is_json = "json" in reply.headers.get("Content-Type", "")
    if is_json:
        links = [file["url"] for file in json.loads(body)["files"]]
    else:
        parser = _Links()
        parser.feed(body)
        links = parser.links
    for link in links:
        address = urllib.parse.urljoin(base, link)
        path = urllib.parse.unquote(urllib.parse.urlsplit(address).path)
        if path.rpartition("/")[2] == file_name:
            return _with_password_of(page, urllib.parse.urldefrag(address).url)
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return str(error)
    return str(getattr(error, "reason", "") or error) or type(error).__name__


def _with_password_of(page: str, url: str) -> str:
    """The index's user and password count for files on the same server too, as with pip."""
    ours, parts = urllib.parse.urlsplit(page), urllib.parse.urlsplit(url)
    if "@" in ours.netloc and ours.netloc.rpartition("@")[2] == parts.netloc:
        parts = parts._replace(netloc=ours.netloc)
    return urllib.parse.urlunsplit(parts)


def _without_password(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
