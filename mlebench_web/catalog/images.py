"""Images of agents: built from the agent's folder, recorded by id.

Runs start by image id, so what ran is known even when a tag has moved on.
"""

import fcntl
import hashlib
import io
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import docker
import docker.errors
import requests
from django.conf import settings
from django.utils import timezone
from docker.utils import parse_repository_tag

from mlebench_web.catalog import folders, package_index
from mlebench_web.catalog.models import Agent, AgentImage

# mle-bench's agents/.shared_env.
BUILD_ARGS = {
    "SUBMISSION_DIR": "/home/submission",
    "LOGS_DIR": "/home/logs",
    "CODE_DIR": "/home/code",
    "AGENT_DIR": "/home/agent",
}
BASE_FOLDER = folders.BUILTIN / "base_image"
# A build that has said nothing for this long was killed.
BUILD_LIMIT = timedelta(hours=2)
LOG_LINES = 200

Lines = Callable[[str], None]
# A tar member's path and content.
Files = dict[str, bytes]


class BuildFailed(Exception):
    """No image: a sentence with the engine's reason."""


def folder_of(agent: Agent) -> Path:
    """The folder with config.yaml, Dockerfile and start.sh."""
    folder = folders.resolve(agent.folder, folders.AGENTS)
    if folder is None:
        raise BuildFailed(f"{agent.name} has no folder.")
    return folder


def newest_image(agent: Agent) -> AgentImage | None:
    """The newest one that is ready; None before the first build has ended well."""
    return _ready(agent).first()


def is_building(agent: Agent) -> bool:
    return AgentImage.objects.filter(
        image_name=agent.image_name,
        state=AgentImage.State.BUILDING,
        started_at__gt=timezone.now() - BUILD_LIMIT,
    ).exists()


def build(
    agent: Agent, client: docker.DockerClient, *, base_image: str, progress: Lines
) -> AgentImage:
    """Build the agent's image on `base_image`, and that on the way, and record it.

    Nothing is built when sources and base image are the same as last time and the engine still
    has the image. `progress` gets the engine's lines. One build of an agent runs at a time on
    this machine; a second caller waits and then finds it done. Raises BuildFailed.
    """
    lock = settings.DATA_DIR / "locks" / f"image-{agent.image_name}"
    with _alone(lock, lambda: progress(f"Waiting: {agent.image_name} is being built already.")):
        try:
            return _build(agent, client, base_image, progress)
        except (docker.errors.DockerException, requests.RequestException) as error:
            raise BuildFailed(f"The container engine refused: {_words(error)}") from error


def _build(
    agent: Agent, client: docker.DockerClient, base_image: str, progress: Lines
) -> AgentImage:
    engine_id = client.info()["ID"]
    # We hold the lock, so whoever left these unfinished is dead.
    AgentImage.objects.filter(
        image_name=agent.image_name, state=AgentImage.State.BUILDING, engine_id=engine_id
    ).update(
        state=AgentImage.State.FAILED, error="The build was interrupted.", ended_at=timezone.now()
    )
    base_files = _files(BASE_FOLDER)
    agent_files = _files(folder_of(agent))
    digest = _digest([base_files, agent_files], agent.dockerfile)
    base_id = _image_id(client, base_image)
    newest = _ready(agent).filter(engine_id=engine_id).first()
    if (
        newest
        and newest.source_digest == digest
        and newest.base_image == base_image
        # An offline machine may have got the agent's image alone.
        and base_id in (None, newest.base_image_id)
        and _image_id(client, newest.image_id)
    ):
        return newest
    row = AgentImage.objects.create(
        image_name=agent.image_name,
        state=AgentImage.State.BUILDING,
        engine_id=engine_id,
        base_image=base_image,
        base_image_id=base_id or "",
        source_digest=digest,
    )
    last: deque[str] = deque(maxlen=LOG_LINES)

    def note(line: str) -> None:
        last.append(line)
        progress(line)

    try:
        if base_id is None:
            base_id = _pull(client, base_image, note)
        env = _build_base(client, base_image, base_id, base_files, note)
        row.image_id = _run_build(
            client,
            agent_files,
            dockerfile=agent.dockerfile,
            tag=f"mlebench-web/{agent.image_name.lower()}:{digest[:12]}",
            args={**BUILD_ARGS, "MLEBENCH_ENV": env},
            note=note,
        )
        row.state = AgentImage.State.READY
        row.base_image_id = base_id
    except BaseException as error:
        row.state = AgentImage.State.FAILED
        row.error = _words(error)
        raise
    finally:
        row.log = "\n".join(last)
        row.ended_at = timezone.now()
        row.save()
    return row


def _build_base(
    client: docker.DockerClient, base_image: str, base_id: str, files: Files, note: Lines
) -> str:
    """The tag of our base image on this `base_image`; built when the engine has none."""
    tag = f"mlebench-web/env:{_digest([files], base_id)[:12]}"
    if _image_id(client, tag):
        return tag
    note(f"Building the base image of the built-in agents on {base_image}.")
    index = package_index.configured()
    bundle = index.ca_bundle.read_bytes() if index.ca_bundle else b""
    # Certificates and index of this machine: needed for this build, and no part of its sources.
    staged = {"build/ca-bundle.crt": bundle, "build/pip.conf": index.pip_conf().encode()}
    _run_build(
        client,
        {**files, **staged},
        dockerfile="Dockerfile",
        tag=tag,
        # By id: the name may have moved since.
        args={"BASE_IMAGE": base_id},
        note=note,
    )
    return tag


def _run_build(
    client: docker.DockerClient,
    files: Files,
    *,
    dockerfile: str,
    tag: str,
    args: dict[str, str],
    note: Lines,
) -> str:
    """The new image's id. Raises BuildFailed with the engine's error and the last lines."""
    events = client.api.build(
        fileobj=io.BytesIO(_tar(files)),
        custom_context=True,
        dockerfile=dockerfile,
        tag=tag,
        buildargs={**package_index.proxies(), **args},
        # The machine's own network: its proxy, its resolver, an index on this very machine.
        network_mode="host",
        rm=True,
        forcerm=True,
        decode=True,
    )
    lines: deque[str] = deque(maxlen=10)
    for event in events:
        if "error" in event:
            raise BuildFailed("\n".join([event["error"].strip(), *lines]))
        for line in event.get("stream", "").splitlines():
            if text := line.strip():
                lines.append(text)
                note(text)
    image_id = _image_id(client, tag)
    if image_id is None:
        raise BuildFailed(f"The engine built {tag} and does not know it any more.")
    return image_id


def _pull(client: docker.DockerClient, image: str, note: Lines) -> str:
    note(f"Pulling {image}.")
    try:
        repository, tag = parse_repository_tag(image)
        events = client.api.pull(repository, tag or "latest", stream=True, decode=True)
        for event in events:
            if "error" in event:
                raise BuildFailed(event["error"])
            # Layers report progress many times a second; their ends are enough.
            if event.get("status") in ("Pull complete", "Download complete", "Already exists"):
                note(f"{event['status']} {event.get('id', '')}")
    except (docker.errors.APIError, BuildFailed) as error:
        raise BuildFailed(
            f"The base image {image} is not here and could not be pulled: {_words(error)} "
            "Name another with --base-image or BASE_IMAGE: any Debian or Ubuntu image will do."
        ) from error
    image_id = _image_id(client, image)
    if image_id is None:
        raise BuildFailed(f"{image} was pulled and the engine does not know it.")
    return image_id


def _ready(agent: Agent) -> Any:
    return AgentImage.objects.filter(
        image_name=agent.image_name, state=AgentImage.State.READY
    ).order_by("-started_at")


def _image_id(client: docker.DockerClient, name: str) -> str | None:
    try:
        return str(client.api.inspect_image(name)["Id"])
    except docker.errors.ImageNotFound:
        return None


def _files(folder: Path) -> Files:
    """Regular files below a folder; a cache of compiled Python is nobody's source."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def _digest(parts: Iterable[Files], *words: str) -> str:
    digest = hashlib.sha256(repr(words).encode())
    for files in parts:
        for name, content in sorted(files.items()):
            digest.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


def _tar(files: Files) -> bytes:
    """Times and owners are fixed, so that the engine's cache knows equal files as equal."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in sorted(files.items()):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mode = 0o755 if name.endswith(".sh") else 0o644
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _words(error: BaseException) -> str:
    return str(getattr(error, "explanation", None) or error) or type(error).__name__


@contextmanager
def _alone(lock: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """One process at a time; the system frees the lock when its process dies."""
    lock.parent.mkdir(exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
