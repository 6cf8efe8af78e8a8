"""A client of this host's Docker Engine, for the short questions of the launcher."""

import contextlib
from collections.abc import Iterator

import docker
from django.conf import settings


@contextlib.contextmanager
def client(*, timeout_seconds: int) -> Iterator[docker.DockerClient]:
    """By ENGINE_URL, else by the environment. Raises DockerException when it does not answer."""
    if settings.ENGINE_URL:
        connected = docker.DockerClient(base_url=settings.ENGINE_URL, timeout=timeout_seconds)
    else:
        connected = docker.from_env(timeout=timeout_seconds)
    with contextlib.closing(connected):
        connected.ping()
        yield connected
