"""Secrets of a run: in its container and nowhere else. Row 19 of the measured failures."""

from pathlib import Path

import docker
import pytest
from django.conf import settings as django_settings
from django.core.files.storage import default_storage

from mlebench_web.accounts import vault
from mlebench_web.accounts.models import User
from runs import layout
from runs.core.failures import Cause
from runs.core.states import Outcome, State
from runs.models import Attempt, LogSegment
from tests import factories
from tests.docker.conftest import wait_for
from tests.docker.road import PERFECT, Road

pytestmark = [pytest.mark.docker, pytest.mark.django_db(transaction=True)]

VALUE = "sk-very-secret-0123456789"
OTHER = "another-secret-of-the-team"
LEAKS = (
    'set -x; echo "key is $API_KEY" ; echo "$@" ; env >&2;'
    ' echo "$API_KEY" > /home/code/key.txt; echo "{\\"key\\": \\"$API_KEY\\"}" > /home/logs/x.json;'
    f" printf '%s' \"$API_KEY\" | base64 > /home/code/key.b64; {PERFECT}"
)


@pytest.fixture
def alice() -> User:
    return factories.make_user("alice")


def queued(road: Road, script: str) -> Attempt:
    attempt = road.queued(
        script,
        agent_env={"API_KEY": "${{ secrets.API_KEY }}"},
        agent_kwargs={"agent.key": "${{ secrets.API_KEY }}", "steps": 3},
    )
    attempt.run.group.agent.kwargs_type = "omegaconf"  # type: ignore[union-attr]
    attempt.run.group.agent.save()  # type: ignore[union-attr]
    return attempt


def everything_kept(attempt: Attempt) -> bytes:
    """Log segments, collected files, and every text of the database's rows about it."""
    attempt.refresh_from_db()
    parts = [repr(vars(attempt)), repr(vars(attempt.run)), repr(vars(attempt.run.group))]
    data = "".join(parts).encode()
    for segment in LogSegment.objects.filter(attempt=attempt):
        with default_storage.open(segment.path) as file:
            data += file.read()
    for folder in (layout.attempt_folder(attempt), Path(django_settings.MEDIA_ROOT)):
        for path in folder.rglob("*"):
            if path.is_file():
                data += path.read_bytes()
    return data


def test_a_secret_reaches_the_agent_and_nothing_that_is_kept(
    road: Road,
    alice: User,
) -> None:
    vault.put("API_KEY", VALUE, owner=alice, by=alice)
    attempt = queued(road, LEAKS)

    road.supervise()

    attempt.refresh_from_db()
    assert (attempt.state, attempt.outcome) == (State.ENDED, Outcome.GRADED)
    text = road.text(attempt)
    assert "key is •••" in text
    assert "agent.key=•••" in text
    assert "steps=3" in text
    assert road.kept(attempt, "code/key.txt").decode() == "•••\n"
    kept = everything_kept(attempt)
    assert VALUE.encode() not in kept
    assert b"c2stdmVyeS1zZWNyZXQt" not in kept
    assert attempt.run.group.agent_env == {"API_KEY": "${{ secrets.API_KEY }}"}
    road.nothing_is_left()


def test_row_19_a_secret_that_is_gone_at_the_start_is_named_and_nothing_is_started(
    road: Road,
    engine: docker.DockerClient,
) -> None:
    attempt = queued(road, LEAKS)

    road.supervise()

    attempt.refresh_from_db()
    assert (attempt.outcome, attempt.cause) == (
        Outcome.INFRASTRUCTURE_FAILED, Cause.SECRET_MISSING,
    )  # fmt: skip
    assert "API_KEY" in attempt.cause_detail
    assert attempt.container_id == ""
    # Another try would meet the same, so a person decides when.
    assert attempt.run.attempts.count() == 1
    road.nothing_is_left()


def test_a_secret_that_is_replaced_while_the_agent_runs_stays_out_of_its_log(
    road: Road,
    alice: User,
) -> None:
    vault.put("API_KEY", VALUE, owner=alice, by=alice)
    attempt = queued(
        road,
        "touch /home/code/up; until [ -e /home/code/go ]; do sleep 0.05; done;"
        f' echo "key is $API_KEY"; {PERFECT}',
    )
    thread = road.in_the_background()
    code = Path(django_settings.ATTEMPTS_DIR) / str(attempt.pk) / "code"
    wait_for(lambda: (code / "up").exists(), seconds=60)
    vault.put("API_KEY", OTHER, owner=alice, by=alice)
    (code / "go").touch()
    thread.join(60)

    assert "key is •••" in road.text(attempt)
    assert VALUE.encode() not in everything_kept(attempt)


def test_a_crash_that_prints_the_secret_keeps_it_out_of_the_row(
    road: Road,
    alice: User,
) -> None:
    vault.put("API_KEY", VALUE, owner=alice, by=alice)
    attempt = queued(road, 'echo "bad key $API_KEY"; exit 3')

    road.supervise()

    attempt.refresh_from_db()
    assert attempt.last_lines == "bad key •••"
    assert VALUE.encode() not in everything_kept(attempt)
