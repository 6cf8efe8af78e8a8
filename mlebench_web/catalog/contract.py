"""The contract that an image must keep to run as an agent of mle-bench."""

import io
import re
import tarfile
from collections.abc import Iterable

import docker
import docker.errors


def contract_problems(client: docker.DockerClient, image_id: str) -> list[str]:
    """What an image lacks to run as an agent, a sentence each. Nothing of it is started."""
    config = client.api.inspect_image(image_id)["Config"] or {}
    problems = []
    entrypoint = config.get("Entrypoint") or []
    if not entrypoint or not entrypoint[-1].endswith("entrypoint.sh"):
        problems.append(
            f"Its ENTRYPOINT is {entrypoint or 'not set'}, where mle-bench's is /entrypoint.sh."
        )
    if config.get("User") not in ("", "root", "0", "0:0", None):
        problems.append(f"Its USER is {config['User']}; the entrypoint must run as root.")
    made = client.api.create_container(image_id, command=["true"], entrypoint=["true"])
    try:
        for path in ("/home/agent/start.sh", *(e for e in entrypoint[-1:] if e.startswith("/"))):
            if _file_in(client, made["Id"], path) is None:
                problems.append(f"It has no {path}.")
        if not _has_folder(client, made["Id"], "/private"):
            problems.append("It has no folder /private.")
        users = _file_in(client, made["Id"], "/etc/passwd") or b""
        if not re.search(rb"^nonroot:", users, re.MULTILINE):
            problems.append("It has no user nonroot.")
    finally:
        client.api.remove_container(made["Id"], force=True)
    return problems


def _file_in(client: docker.DockerClient, container: str, path: str) -> bytes | None:
    """A file's content, empty for a link; None: there is no file of that name."""
    try:
        chunks, about = client.api.get_archive(container, path)
    except docker.errors.NotFound:
        return None
    data = _bounded(chunks)
    if about.get("linkTarget"):
        return b""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r|") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() else None
            return file.read(2**19) if file else None
    return None


def _has_folder(client: docker.DockerClient, container: str, path: str) -> bool:
    try:
        chunks, _ = client.api.get_archive(container, path)
    except docker.errors.NotFound:
        return False
    with tarfile.open(fileobj=io.BytesIO(_bounded(chunks)), mode="r|") as archive:
        return any(member.isdir() for member in archive)


def _bounded(chunks: Iterable[bytes]) -> bytes:
    """A start script has some KB; of a folder the beginning is enough."""
    data = b""
    for chunk in chunks:
        data += chunk
        if len(data) > 2**20:
            break
    return data
