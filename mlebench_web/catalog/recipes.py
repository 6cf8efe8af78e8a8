"""What images of agents are made of, and how: a built-in agent's, and one of a checkout."""

import hashlib
import io
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import docker

from mlebench_web.catalog import folders, package_index
from mlebench_web.catalog.context import DOCKERFILE, Context, needs_base, with_base
from mlebench_web.catalog.contract import contract_problems
from mlebench_web.catalog.image_engine import BuildFailed, Lines, image_id_of, pull, run_build
from mlebench_web.catalog.models import Agent

# mle-bench's agents/.shared_env.
BUILD_ARGS = {
    "SUBMISSION_DIR": "/home/submission",
    "LOGS_DIR": "/home/logs",
    "CODE_DIR": "/home/code",
    "AGENT_DIR": "/home/agent",
}
BASE_FOLDER = folders.BUILTIN / "base_image"

# A tar member's path and content.
Files = dict[str, bytes]


def folder_of(agent: Agent) -> Path:
    """The folder with config.yaml, Dockerfile and start.sh."""
    folder = folders.resolve(agent.folder, folders.AGENTS)
    if folder is None:
        raise BuildFailed(f"{agent.name} has no folder.")
    return folder


class Recipe(Protocol):
    """How an agent's image is made: what it is made of, and what it stands on."""

    # What is said of the base image, such as its tag.
    base_image: str
    # Of everything of the agent that the build can see.
    digest: str

    def base_id(self, client: docker.DockerClient) -> str | None:
        """The engine's id of the base image; None: not there yet."""

    def make(
        self, client: docker.DockerClient, base_id: str | None, note: Lines
    ) -> tuple[str, str]:
        """Ids of the new image and of its base. Raises BuildFailed."""


def recipe_of(agent: Agent, base_image: str = "") -> Recipe:
    if agent.is_builtin or agent.checkout is None:
        return Builtin(agent, base_image)
    return FromCheckout(agent)


class Builtin:
    """A built-in agent: on our own base image, which stands on `base_image`."""

    def __init__(self, agent: Agent, base_image: str) -> None:
        self.agent = agent
        self.base_image = base_image
        self.base_files = _files(BASE_FOLDER)
        self.files = _files(folder_of(agent))
        self.digest = _digest([self.base_files, self.files], agent.dockerfile)

    def base_id(self, client: docker.DockerClient) -> str | None:
        return image_id_of(client, self.base_image)

    def make(
        self, client: docker.DockerClient, base_id: str | None, note: Lines
    ) -> tuple[str, str]:
        if base_id is None:
            base_id = pull(client, self.base_image, note)
        env = _build_base(client, self.base_image, base_id, self.base_files, note)
        image_id = run_build(
            client,
            io.BytesIO(_tar(self.files)),
            dockerfile=self.agent.dockerfile,
            tag=f"mlebench-web/{self.agent.image_name.lower()}:{self.digest[:12]}",
            args={**BUILD_ARGS, "MLEBENCH_ENV": env},
            note=note,
        )
        return image_id, base_id


class FromCheckout:
    """An agent of a checkout: on mle-bench's environment, or what stands in for it.

    The checkout stays as it is: the line `FROM mlebench-env` is changed in what the engine gets,
    so that it names the one image that is meant.
    """

    def __init__(self, agent: Agent) -> None:
        if agent.checkout is None:
            raise BuildFailed(f"{agent.name} is not of a checkout.")
        self.agent = agent
        self.checkout = agent.checkout
        self.root = Path(self.checkout.path)
        folder = folder_of(agent)
        try:
            self.dockerfile = (folder / agent.dockerfile).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise BuildFailed(f"{folder / agent.dockerfile} cannot be read: {error}") from error
        whole = agent.build_context == Agent.BuildContext.CHECKOUT
        self.context = Context(self.root if whole else folder)
        self.digest = _digest_of(self.context, self.dockerfile)
        self.has_base = needs_base(self.dockerfile)
        self.base_image = self.checkout.env_image if self.has_base else ""
        if self.has_base and not self.base_image:
            self.base_image = self._environment_tag()

    def _environment_tag(self) -> str:
        """Of what environment/Dockerfile copies: its folder, the package and its settings."""
        sources = Context(self.root, only=("environment", "mlebench", "pyproject.toml"))
        heavy = str(self.checkout.installs_heavy)
        name = re.sub(r"[^a-z0-9]+", "-", self.checkout.name.lower()).strip("-") or "checkout"
        return f"mlebench-web/env-{name}:{_digest_of(sources, heavy)[:12]}"

    def base_id(self, client: docker.DockerClient) -> str | None:
        return image_id_of(client, self.base_image) if self.base_image else None

    def make(
        self, client: docker.DockerClient, base_id: str | None, note: Lines
    ) -> tuple[str, str]:
        dockerfile = self.dockerfile
        if self.has_base:
            if base_id is None:
                base_id = self._make_base(client, note)
            # A tag of ours: the builder takes no bare id on every engine.
            tag = base_id.removeprefix("sha256:")[:12]
            client.api.tag(base_id, "mlebench-web/base", tag)
            dockerfile = with_base(dockerfile, f"mlebench-web/base:{tag}")
        name = re.sub(r"[^a-z0-9]+", "-", self.agent.image_name.lower()).strip("-") or "agent"
        with self.context.archive({DOCKERFILE: dockerfile.encode()}) as archive:
            image_id = run_build(
                client,
                archive,
                dockerfile=DOCKERFILE,
                tag=f"mlebench-web/{name}:{self.digest[:12]}",
                args=BUILD_ARGS,
                note=note,
                platform=_platform(client),
            )
        if problems := contract_problems(client, image_id):
            raise BuildFailed(f"The image does not keep mle-bench's contract: {problems[0]}")
        return image_id, base_id or ""

    def _make_base(self, client: docker.DockerClient, note: Lines) -> str:
        if self.checkout.env_image:
            raise BuildFailed(
                f"The engine has no image {self.base_image}, which the checkout {self.checkout} "
                "is set to use for mlebench-env. `docker load` it, or choose another image."
            )
        note(f"Building mle-bench's environment ({self.base_image}). That takes a while.")
        with Context(self.root).archive({}) as archive:
            return run_build(
                client,
                archive,
                dockerfile="environment/Dockerfile",
                tag=self.base_image,
                args={
                    "INSTALL_HEAVY_DEPENDENCIES": "true"
                    if self.checkout.installs_heavy
                    else "false"
                },
                note=note,
                platform=_platform(client),
            )


def _platform(client: docker.DockerClient) -> str | None:
    """mle-bench's images are linux/amd64; an engine of that kind need not be told."""
    return None if client.info().get("Architecture") == "x86_64" else "linux/amd64"


_digests: dict[tuple[Context, str], tuple[str, str]] = {}


def _digest_of(context: Context, *words: str) -> str:
    """The context's digest with some words; files are read again only when one has changed."""
    key = (context, "")
    signature = context.signature()
    known = _digests.get(key)
    if known is None or known[0] != signature:
        known = _digests[key] = (signature, context.digest())
    return hashlib.sha256(repr((known[1], words)).encode()).hexdigest()


def _build_base(
    client: docker.DockerClient, base_image: str, base_id: str, files: Files, note: Lines
) -> str:
    """The tag of our base image on this `base_image`; built when the engine has none."""
    tag = f"mlebench-web/env:{_digest([files], base_id)[:12]}"
    if image_id_of(client, tag):
        return tag
    note(f"Building the base image of the built-in agents on {base_image}.")
    index = package_index.configured()
    bundle = index.ca_bundle.read_bytes() if index.ca_bundle else b""
    # Certificates and index of this machine: needed for this build, and no part of its sources.
    staged = {"build/ca-bundle.crt": bundle, "build/pip.conf": index.pip_conf().encode()}
    run_build(
        client,
        io.BytesIO(_tar({**files, **staged})),
        dockerfile="Dockerfile",
        tag=tag,
        # By id: the name may have moved since.
        args={"BASE_IMAGE": base_id},
        note=note,
    )
    return tag


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
