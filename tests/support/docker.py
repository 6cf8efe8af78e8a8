"""A real Docker Engine for tests, and an image to start from."""

import os
import subprocess
from pathlib import Path

import docker
import pytest
from docker.errors import DockerException, ImageNotFound

ROOT = Path(__file__).resolve().parent.parent.parent
BASE_IMAGE = os.environ.get("TEST_BASE_IMAGE", "mlebench-web-base:trixie-min")


def connect() -> docker.DockerClient:
    """The engine of the environment; without one the test is skipped, in CI it fails."""
    try:
        client = docker.from_env(timeout=60)
        client.ping()
    except DockerException as error:
        no_engine = f"no Docker Engine within reach: {error}"
        if os.environ.get("CI"):
            pytest.fail(no_engine)
        pytest.skip(no_engine)
    return client


def base_image(client: docker.DockerClient) -> str:
    """The id of a small Debian image; made from Debian's packages where it is not there yet."""
    try:
        return str(client.images.get(BASE_IMAGE).id)
    except ImageNotFound:
        made = subprocess.run(
            [ROOT / ".ci" / "base-image.sh", BASE_IMAGE], capture_output=True, text=True
        )
    if made.returncode:
        no_image = f"{BASE_IMAGE} is not there and could not be made: {made.stderr[-500:]}"
        if os.environ.get("CI"):
            pytest.fail(no_image)
        pytest.skip(no_image)
    return str(client.images.get(BASE_IMAGE).id)
