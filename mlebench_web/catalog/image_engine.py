"""Building, pulling and finding images on a container engine."""

from collections import deque
from collections.abc import Callable
from typing import IO

import docker
import docker.errors
from docker.utils import parse_repository_tag

from mlebench_web.catalog import package_index

Lines = Callable[[str], None]


class BuildFailed(Exception):
    """No image: a sentence with the engine's reason."""


def run_build(
    client: docker.DockerClient,
    archive: IO[bytes],
    *,
    dockerfile: str,
    tag: str,
    args: dict[str, str],
    note: Lines,
    platform: str | None = None,
) -> str:
    """The new image's id. Raises BuildFailed with the engine's error and the last lines."""
    events = client.api.build(
        fileobj=archive,
        custom_context=True,
        platform=platform,
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
    image_id = image_id_of(client, tag)
    if image_id is None:
        raise BuildFailed(f"The engine built {tag} and does not know it any more.")
    return image_id


def pull(
    client: docker.DockerClient,
    image: str,
    note: Lines,
    *,
    advice: str = "Name another with --base-image or BASE_IMAGE: any Debian or Ubuntu image "
    "will do.",
) -> str:
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
            f"The image {image} is not here and could not be pulled: {words_of(error)} {advice}"
        ) from error
    image_id = image_id_of(client, image)
    if image_id is None:
        raise BuildFailed(f"{image} was pulled and the engine does not know it.")
    return image_id


def image_id_of(client: docker.DockerClient, name: str) -> str | None:
    try:
        return str(client.api.inspect_image(name)["Id"])
    except docker.errors.ImageNotFound:
        return None


def words_of(error: BaseException) -> str:
    return str(getattr(error, "explanation", None) or error) or type(error).__name__
