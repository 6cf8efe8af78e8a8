"""Images of agents: built from the agent's folder, recorded by id.

Runs start by image id, so what ran is known even when a tag has moved on.
"""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import docker
import docker.errors
import requests
import structlog
from django.conf import settings
from django.db.models import QuerySet
from django.utils import timezone

from mlebench_web.catalog import git
from mlebench_web.catalog.context import ContextFailed
from mlebench_web.catalog.contract import contract_problems
from mlebench_web.catalog.image_engine import BuildFailed, Lines, image_id_of, pull, words_of
from mlebench_web.catalog.models import Agent, AgentImage
from mlebench_web.catalog.recipes import folder_of, recipe_of
from mlebench_web.locks import alone

__all__ = [
    "BuildFailed",
    "all_of",
    "build",
    "changed_since",
    "do_wanted",
    "folder_of",
    "is_building",
    "last_failure",
    "newest_image",
    "want",
]

logger = structlog.get_logger(__name__)

# A build that has said nothing for this long was killed.
BUILD_LIMIT = timedelta(hours=2)
UNFINISHED = (AgentImage.State.WANTED, AgentImage.State.BUILDING)
LOG_LINES = 2000
# A layer that installs a lot says nothing for a long time.
ENGINE_SECONDS = 3600
LOG_WIDTH = 2000
# Pages show a build's lines this long after the engine said them, or a little later.
LOG_EVERY_SECONDS = 1.0


def all_of(agent: Agent) -> QuerySet[AgentImage]:
    """Builds of the agent's folder, the newest first. Two checkouts may have one name for one."""
    return AgentImage.objects.filter(folder=agent.folder, image_name=agent.image_name).order_by(
        "-started_at", "-pk"
    )


def newest_image(agent: Agent) -> AgentImage | None:
    """The newest one that is ready; None before the first build has ended well."""
    return _ready(agent).first()


def is_building(agent: Agent) -> bool:
    return (
        all_of(agent)
        .filter(state__in=UNFINISHED, started_at__gt=timezone.now() - BUILD_LIMIT)
        .exists()
    )


def last_failure(agent: Agent) -> AgentImage | None:
    return all_of(agent).filter(state=AgentImage.State.FAILED).first()


def changed_since(agent: Agent, image: AgentImage) -> bool:
    """Whether the agent's code is another one than what the image was built from.

    False where that cannot be known: an image that was not built here, a folder that is gone.
    """
    if not image.source_digest:
        return False
    try:
        return recipe_of(agent).digest != image.source_digest
    except (BuildFailed, OSError):
        return False


# ------------------------------------------------------------------------------------- asking


def want(agent: Agent, *, by: str, tag: str = "", host_name: str = "") -> AgentImage:
    """Have a host service build it, or take the image `tag`; the row shows how that goes.

    Pressed twice, it is built once.
    """
    asked = (
        all_of(agent)
        .filter(
            state__in=UNFINISHED,
            tag=tag,
            host_name=host_name,
            started_at__gt=timezone.now() - BUILD_LIMIT,
        )
        .first()
    )
    if asked:
        return asked
    return AgentImage.objects.create(
        folder=agent.folder,
        image_name=agent.image_name,
        state=AgentImage.State.WANTED,
        tag=tag,
        host_name=host_name,
        asked_by=by,
    )


@contextmanager
def client() -> Iterator[docker.DockerClient]:
    """This machine's engine, with a builder's patience. Raises BuildFailed when there is none."""
    try:
        found = (
            docker.DockerClient(base_url=settings.ENGINE_URL, timeout=ENGINE_SECONDS)
            if settings.ENGINE_URL
            else docker.from_env(timeout=ENGINE_SECONDS)
        )
    except docker.errors.DockerException as error:
        raise BuildFailed(f"No container engine: {error}") from error
    try:
        yield found
    finally:
        found.close()


def do_wanted(client: docker.DockerClient, *, host_name: str, base_image: str) -> int:
    """Make the images that somebody asked this host, or any host, for; how many were tried."""
    count = 0
    for row in AgentImage.objects.filter(
        state=AgentImage.State.WANTED, host_name__in=["", host_name]
    ).order_by("started_at"):
        # The filter is the lock: of two hosts, one builds.
        if not AgentImage.objects.filter(pk=row.pk, state=AgentImage.State.WANTED).update(
            state=AgentImage.State.BUILDING, host_name=host_name
        ):
            continue
        count += 1
        row.refresh_from_db()
        agent = Agent.objects.filter(folder=row.folder, image_name=row.image_name).first()
        if agent is None:
            _end(row, error="The agent is gone from the catalog.")
            continue
        try:
            build(agent, client, base_image=base_image, progress=_say_nothing, row=row)
        except BuildFailed as error:
            logger.warning("image.failed", agent=agent.name, error=str(error)[:300])
    return count


def _say_nothing(line: str) -> None:
    pass


def _end(row: AgentImage, *, error: str) -> None:
    row.state = AgentImage.State.FAILED
    row.error = error
    row.ended_at = timezone.now()
    row.save()


# ------------------------------------------------------------------------------------- building


def build(
    agent: Agent,
    client: docker.DockerClient,
    *,
    base_image: str,
    progress: Lines,
    row: AgentImage | None = None,
) -> AgentImage:
    """Build the agent's image, and what it stands on, and record it; or take the row's tag.

    Nothing is built when sources and base image are the same as last time and the engine still
    has the image. `progress` gets the engine's lines. One build of an agent runs at a time on
    this machine; a second caller waits and then finds it done. Raises BuildFailed.
    """
    name = hashlib.sha256(agent.folder.encode()).hexdigest()[:8]
    lock = settings.DATA_DIR / "locks" / f"image-{agent.image_name}-{name}"
    with alone(lock, lambda: progress(f"Waiting: {agent.image_name} is being built already.")):
        try:
            return _build(agent, client, base_image, progress, row)
        except (
            docker.errors.DockerException,
            requests.RequestException,
            ContextFailed,
            OSError,
            BuildFailed,
        ) as error:
            words = words_of(error)
            if not isinstance(error, BuildFailed | ContextFailed | OSError):
                words = f"The container engine refused: {words}"
            if row is not None and row.state == AgentImage.State.BUILDING:
                # It failed before the build itself began.
                _end(row, error=words)
            raise BuildFailed(words) from error


def _build(
    agent: Agent,
    client: docker.DockerClient,
    base_image: str,
    progress: Lines,
    row: AgentImage | None,
) -> AgentImage:
    engine_id = client.info()["ID"]
    # We hold the lock, so whoever left these unfinished is dead.
    interrupted = all_of(agent).filter(state=AgentImage.State.BUILDING, engine_id=engine_id)
    if row:
        interrupted = interrupted.exclude(pk=row.pk)
    interrupted.update(
        state=AgentImage.State.FAILED, error="The build was interrupted.", ended_at=timezone.now()
    )
    if row and row.tag:
        taken = row
        return _recorded(row, progress, lambda note: _taken(client, taken, note), engine_id)
    recipe = recipe_of(agent, base_image)
    base_id = recipe.base_id(client)
    newest = _ready(agent).filter(engine_id=engine_id).first()
    is_same = (
        newest
        and newest.source_digest == recipe.digest
        and newest.base_image == recipe.base_image
        # An offline machine may have got the agent's image alone.
        and base_id in (None, newest.base_image_id)
        and image_id_of(client, newest.image_id)
    )
    if newest and is_same and row is None:
        return newest
    row = row or AgentImage(
        folder=agent.folder, image_name=agent.image_name, state=AgentImage.State.BUILDING
    )
    row.base_image = recipe.base_image
    row.base_image_id = base_id or ""
    row.source_digest = recipe.digest
    if agent.checkout:
        seen = git.revision(Path(agent.checkout.path))
        row.checkout_name = agent.checkout.name
        row.commit, row.branch, row.is_dirty = seen.commit, seen.branch[:200], seen.is_dirty
    made = row

    def make(note: Lines) -> str:
        if newest and is_same:
            note(f"Nothing has changed since {newest.image_id[:19]} was built.")
            made.base_image_id = newest.base_image_id
            return newest.image_id
        image_id, made.base_image_id = recipe.make(client, base_id, note)
        return image_id

    return _recorded(row, progress, make, engine_id)


def _recorded(
    row: AgentImage, progress: Lines, make: Callable[[Lines], str], engine_id: str
) -> AgentImage:
    """Run `make`, with its lines in the row while it lasts, and its end."""
    row.engine_id = engine_id
    row.save()
    last: deque[str] = deque(maxlen=LOG_LINES)
    saved = 0.0

    def note(line: str) -> None:
        nonlocal saved
        last.append(line[:LOG_WIDTH])
        progress(line)
        if time.monotonic() - saved > LOG_EVERY_SECONDS:
            saved = time.monotonic()
            AgentImage.objects.filter(pk=row.pk).update(log="\n".join(last))

    try:
        row.image_id = make(note)
        row.state = AgentImage.State.READY
    except BaseException as error:
        row.state = AgentImage.State.FAILED
        row.error = words_of(error)
        raise
    finally:
        row.log = "\n".join(last)
        row.ended_at = timezone.now()
        row.save()
    return row


# ------------------------------------------------------------------------ images of other makers


def _taken(client: docker.DockerClient, row: AgentImage, note: Lines) -> str:
    """The id of the image that the row's tag names. Raises BuildFailed when it is unfit."""
    image_id = image_id_of(client, row.tag)
    if image_id is None:
        note(f"The engine has no image {row.tag}: trying to pull it.")
        image_id = pull(client, row.tag, note, advice="Load it with `docker load`.")
    if problems := contract_problems(client, image_id):
        raise BuildFailed(f"{row.tag} does not keep mle-bench's contract: {' '.join(problems)}")
    note(f"{row.tag} is {image_id} and keeps mle-bench's contract.")
    return image_id


def _ready(agent: Agent) -> QuerySet[AgentImage]:
    return all_of(agent).filter(state=AgentImage.State.READY)
