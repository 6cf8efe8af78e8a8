"""The road of an attempt, from the claim to its seal, with a script as its agent."""

import io
import tarfile
import threading
from datetime import timedelta
from pathlib import Path

import docker
import pytest
from django.conf import settings as django_settings

from mlebench_web.fleet import hosts
from mlebench_web.fleet.models import Host
from runs import layout, logs, queue, worker
from runs.containers import engine_of
from runs.core.states import State
from runs.models import Attempt, Installation
from tests import factories
from tests.support import small_competition

START_SH = 'cd /home\neval "$SCRIPT"\n'
PERFECT = "printf 'id,price\\n1,1.0\\n2,2.0\\n3,3.0\\n4,4.0\\n' > /home/submission/submission.csv"


def derived(
    engine: docker.DockerClient, base: str, name: str, line: str, files: dict[str, str]
) -> str:
    """The id of an image that adds some files to `base`; the builder's cache makes it quick."""
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for path, text in {"Dockerfile": f"FROM {base}\n{line}\n", **files}.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(text), 0o755
            tar.addfile(entry, io.BytesIO(text.encode()))
    context.seek(0)
    image, _ = engine.images.build(
        fileobj=context,
        custom_context=True,
        tag=f"mlebench-web-test-{name}:latest",
        network_mode="none",
        rm=True,
    )
    return str(image.id)


class Road:
    """Submits scripts as agents and supervises them, as a pool child of this host's worker."""

    def __init__(self, image: str) -> None:
        self.image = image
        self.engine = engine_of("docker")
        self.competition = small_competition.make()
        self.host = factories.make_host(
            django_settings.HOST_NAME, slots=4, cpus=2, boot_id=hosts.boot_id(), image_ids=[image]
        )
        factories.make_prepared(self.host, self.competition)

    def queued(self, script: str, *, memory: str = "256m", **fields: object) -> Attempt:
        agent = factories.make_agent("script", is_builtin=False)
        config = factories.make_config(
            f"test {memory}", settings={"nano_cpus": 5e8, "mem_limit": memory}
        )
        fields.setdefault("image", factories.make_image(agent, image_id=self.image))
        group = factories.make_group(
            agent=agent, config=config, env={"SCRIPT": script}, time_limit=timedelta(minutes=2)
        )
        for name, value in fields.items():
            setattr(group, name, value)
        group.save()
        return factories.make_run(group, competition=self.competition).newest_attempt()

    def run(self, script: str, **fields: object) -> Attempt:
        """The attempt, sealed."""
        attempt = self.queued(script, **fields)  # type: ignore[arg-type]
        self.supervise()
        attempt.refresh_from_db()
        assert attempt.state == State.ENDED
        return attempt

    def supervise(self) -> None:
        lease = queue.take_work(Host.objects.get(pk=self.host.pk))
        assert lease is not None
        worker.supervise(lease)

    def in_the_background(self) -> threading.Thread:
        from django.db import connection

        def work() -> None:
            try:
                self.supervise()
            finally:
                connection.close()

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    def kept(self, attempt: Attempt, path: str) -> bytes:
        return (layout.attempt_folder(attempt) / path).read_bytes()

    def text(self, attempt: Attempt, source: str = "agent") -> str:
        return "\n".join(logs.last_lines(attempt.pk, source, 1000))

    def nothing_is_left(self) -> None:
        install = Installation.this().name
        assert self.engine.own_containers(install, self.host.name) == []
        assert not list(Path(django_settings.ATTEMPTS_DIR).glob("*"))
        assert queue.offer_of(self.host).free_cpus == self.host.cpus


def has_said(attempt: Attempt, line: str) -> bool:
    return line in logs.last_lines(attempt.pk, "agent", 50)


class Killed(BaseException):
    """Stands for kill -9: nothing of the supervisor runs after it."""


def die_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, *, after: bool) -> None:
    """The next call of `owner.name` dies before or after it has done its work, once."""
    real = getattr(owner, name)

    def dying(*args: object, **kwargs: object) -> object:
        monkeypatch.setattr(owner, name, real)
        if after:
            real(*args, **kwargs)
        raise Killed(name)

    monkeypatch.setattr(owner, name, dying)
