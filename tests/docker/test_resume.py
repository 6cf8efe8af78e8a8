"""A run survives the loss of its container: real containers, killed, and what goes on from them.

`marathon` counts its steps in its checkpoint, so what was lost and what was not can be counted.
"""

import json
import re
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import docker
import pytest
from django.conf import settings as django_settings
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage

from mlebench_web.catalog import folders
from mlebench_web.fleet.models import Host
from runs import checkpoints, draining, layout, resuming, submit
from runs.core.failures import Cause
from runs.core.states import Outcome, RunState, State
from runs.models import Attempt, Checkpoint, Run
from tests import factories
from tests.docker.conftest import wait_for
from tests.docker.road import Road, derived

# Agents that take their time, in containers.
pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.django_db(transaction=True)]

MARATHON = folders.AGENTS / "marathon"
FILES = ("marathon.py", "marathon_step.py", "start.sh")


@pytest.fixture(scope="session")
def marathon_image(engine: docker.DockerClient, contract_image: str) -> str:
    files = {name: (MARATHON / name).read_text() for name in FILES}
    return derived(engine, contract_image, "marathon", "COPY . /home/agent", files)


class Track(Road):
    """A host that runs marathons."""

    def __init__(self, image: str) -> None:
        super().__init__(image)
        self.threads: list[threading.Thread] = []

    def in_the_background(self) -> threading.Thread:
        self.threads.append(super().in_the_background())
        return self.threads[-1]

    def entered(self, **told: object) -> Attempt:
        agent = factories.make_agent("marathon", folder=folders.builtin("marathon"))
        config = factories.make_config(
            "test marathon", settings={"nano_cpus": 5e8, "mem_limit": "256m"}
        )
        # The first attempt hangs, so that there is time to kill it on any machine.
        defaults = {
            "STEPS": 22,
            "STEP_SECONDS": 0.3,
            "TROUBLE": "hang@20",
            "TROUBLE_ATTEMPTS": 1,
        }
        group = factories.make_group(
            agent=agent,
            config=config,
            image=factories.make_image(agent, image_id=self.image),
            env={f"MARATHON_{name}": str(value) for name, value in {**defaults, **told}.items()},
            time_limit=timedelta(minutes=5),
        )
        return factories.make_run(group, competition=self.competition).newest_attempt()

    def steps(self, attempt: Attempt) -> list[int]:
        """Numbers of the steps that the attempt finished, as it says itself."""
        events = layout.attempt_folder(attempt) / "logs/events.jsonl"
        rows = [json.loads(line) for line in events.read_text().splitlines()]
        return [row["step"] for row in rows if row["type"] == "step_finished"]

    def state_on_disk(self, attempt: Attempt) -> dict[str, int]:
        path = Path(django_settings.ATTEMPTS_DIR) / str(attempt.pk) / "ckpt/state.json"
        return json.loads(path.read_text()) if path.exists() else {"done": 0}

    def until_saved(self, attempt: Attempt, step: int) -> int:
        """A checkpoint more, of `step` or later; the step by which it was stored."""
        before = attempt.checkpoints.count()
        wait_for(lambda: self.state_on_disk(attempt)["done"] >= step, what="a step")
        ask(attempt)
        wait_for(lambda: attempt.checkpoints.count() > before, what="a checkpoint")
        return self.state_on_disk(attempt)["done"]

    def killed_after(self, attempt: Attempt, step: int, *, saved: int = 1) -> Attempt:
        """Its container killed from outside once so many checkpoints are stored."""
        thread = self.in_the_background()
        for _ in range(saved):
            step = self.until_saved(attempt, step) + 1
        attempt.refresh_from_db()
        self.engine.kill(attempt.container_id)
        thread.join(60)
        assert not thread.is_alive()
        attempt.refresh_from_db()
        return attempt


def ask(attempt: Attempt) -> None:
    run = Run.objects.get(pk=attempt.run_id)
    # The one before is answered a moment after its row is there.
    wait_for(lambda: resuming.ask_checkpoint(run, by=None), what="the answer to the last ask")


@pytest.fixture
def track(marathon_image: str, settings: object) -> Iterator[Track]:
    track = Track(marathon_image)
    yield track
    for attempt in Attempt.objects.all():
        if attempt.container_id:
            track.engine.remove(attempt.container_id)
    for thread in track.threads:
        thread.join(30)


# ------------------------------------------------------------------------------ going on


def test_a_run_whose_container_is_killed_goes_on_after_its_last_checkpoint(track: Track) -> None:
    first = track.killed_after(track.entered(), 3)

    assert (first.outcome, first.cause) == (
        Outcome.INFRASTRUCTURE_FAILED,
        Cause.CONTAINER_KILLED,
    )
    second = first.run.newest_attempt()
    assert (second.number, second.resumed_from) == (2, first)
    track.supervise()
    second.refresh_from_db()
    assert (second.outcome, second.cause) == (Outcome.GRADED, "")
    checkpoint = second.restored_checkpoint
    assert checkpoint is not None
    # Step numbers continue, and none that was saved is done again.
    before, after = track.steps(first), track.steps(second)
    assert after == list(range(after[0], 23))
    assert 3 <= after[0] - 1 <= before[-1]
    assert "Going on after step" in track.text(second)
    assert second.charged_seconds == checkpoint.active_seconds
    assert second.active_seconds > checkpoint.active_seconds > 1
    assert "Going on from checkpoint" in track.text(second, "run")
    track.nothing_is_left()


def killed_in_step(track: Track, attempt: Attempt, step: int) -> None:
    """Its container is killed while it hangs in that step, with the one before saved."""
    thread = track.in_the_background()
    wait_for(
        lambda: attempt.steps.filter(number=step, end="").exists(), seconds=120, what="the step"
    )
    saved = Checkpoint.objects.filter(attempt__run=attempt.run_id, step=step - 1)
    wait_for(saved.exists, seconds=120, what="what the agent said of its checkpoint")
    attempt.refresh_from_db()
    track.engine.kill(attempt.container_id)
    thread.join(120)
    assert not thread.is_alive()


def test_the_steps_of_a_run_stand_in_its_rows_over_three_attempts(track: Track) -> None:
    first = track.entered(STEPS=6, TROUBLE="hang@4", TROUBLE_ATTEMPTS=2)
    killed_in_step(track, first, 4)
    second = first.run.newest_attempt()
    killed_in_step(track, second, 4)

    track.supervise()

    third = first.run.newest_attempt()
    assert (third.number, third.outcome) == (3, Outcome.GRADED)
    told = [list(each.steps.values_list("number", "end")) for each in (first, second, third)]
    # The step that each was killed in is interrupted, and done again by the next.
    assert told == [
        [(1, "finished"), (2, "finished"), (3, "finished"), (4, "interrupted")],
        [(4, "interrupted")],
        [(4, "finished"), (5, "finished"), (6, "finished")],
    ]
    assert third.steps.get(number=6).metric_value == 1.0
    for attempt in (second, third):
        attempt.refresh_from_db()
        assert attempt.restored_checkpoint is not None
        assert (attempt.restored_checkpoint.step, attempt.restored_checkpoint.is_agents_word) == (
            3,
            True,
        )


def test_a_save_that_came_too_early_does_not_hold_up_the_agents_own(track: Track) -> None:
    """It had written nothing when somebody asked; what it says a moment later is saved."""
    attempt = track.entered(CHECKPOINT_EVERY=10)
    thread = track.in_the_background()
    wait_for(lambda: Attempt.objects.get(pk=attempt.pk).state == State.RUNNING, what="a start")
    ask(attempt)
    wait_for(
        lambda: "no file yet" in Attempt.objects.get(pk=attempt.pk).checkpoint_problem,
        what="the refusal",
    )

    # A save that failed by other causes is tried again a minute later.
    wait_for(attempt.checkpoints.exists, seconds=checkpoints.AGAIN_AFTER - 20, what="a checkpoint")

    attempt.refresh_from_db()
    track.engine.kill(attempt.container_id)
    thread.join(60)


def test_another_host_goes_on_from_what_the_first_one_stored(
    track: Track, settings: Any, tmp_path: Path
) -> None:
    """It shares the database and the storage, not a folder of attempts."""
    first = track.killed_after(track.entered(), 3)
    settings.ATTEMPTS_DIR = tmp_path / "other-attempts"
    Host.objects.filter(pk=track.host.pk).update(is_draining=True)
    track.host = factories.make_host(
        "other", slots=4, cpus=2, boot_id=track.host.boot_id, image_ids=[track.image]
    )
    factories.make_prepared(track.host, track.competition)

    track.supervise()

    second = first.run.newest_attempt()
    assert (second.host, second.outcome) == (track.host, Outcome.GRADED)
    assert track.steps(second)[0] > 3


def test_the_agent_is_told_the_time_that_is_left_and_why(track: Track) -> None:
    first = track.killed_after(track.entered(), 2)
    thread = track.in_the_background()
    second = first.run.newest_attempt()
    wait_for(
        lambda: Attempt.objects.get(pk=second.pk).state == State.RUNNING,
        seconds=120,
        what="a start",
    )
    second.refresh_from_db()

    found = docker.APIClient().inspect_container(second.container_id)["Config"]["Env"]
    env = dict(line.split("=", 1) for line in found)

    assert env["MLE_RESUME"] == "1"
    assert env["MLE_RESUME_AFTER"] == "container_killed"
    assert int(env["TIME_LIMIT_SECS"]) == int(300 - second.charged_seconds)
    assert int(env["TIME_LIMIT_SECS"]) < 300
    thread.join(60)


def test_its_submission_so_far_is_handed_in_again(track: Track) -> None:
    attempt = track.entered()
    thread = track.in_the_background()
    wait_for(lambda: attempt.snapshots.exists(), what="a snapshot")
    ask(attempt)
    wait_for(lambda: attempt.checkpoints.exists(), what="a checkpoint")
    attempt.refresh_from_db()
    track.engine.kill(attempt.container_id)
    thread.join(60)

    track.supervise()

    second = Run.objects.get(pk=attempt.run_id).newest_attempt()
    assert second.outcome == Outcome.GRADED
    assert "newest valid submission so far is in its folder" in track.text(second, "run")


# ------------------------------------------------------------------------------ corrupt, half


def spoil(checkpoint: Checkpoint) -> None:
    """Its manifest is stored half."""
    with default_storage.open(checkpoint.path) as file:
        data = file.read()
    default_storage.delete(checkpoint.path)
    default_storage.save(checkpoint.path, ContentFile(data[: len(data) // 2]))


def spoil_blob(checkpoint: Checkpoint) -> None:
    """Same length, another byte: only its hash tells."""
    with default_storage.open(checkpoint.path) as file:
        entries = json.loads(file.read())["entries"]
    [chunk] = next(each["chunks"] for each in entries if each["path"] == "ckpt/state.json")
    name = f"checkpoints/{checkpoint.attempt.run_id}/blobs/{chunk['sha256']}"
    assert not chunk["packed"]
    default_storage.delete(name)
    default_storage.save(name, ContentFile(b"x" * chunk["size"]))


@pytest.mark.parametrize("how", [spoil, spoil_blob])
def test_a_corrupt_checkpoint_is_named_and_the_one_before_is_taken(
    track: Track, how: object
) -> None:
    first = track.killed_after(track.entered(), 2, saved=2)
    older, newest = first.checkpoints_to_try()[1], first.checkpoints_to_try()[0]
    how(newest)  # type: ignore[operator]

    track.supervise()

    second = first.run.newest_attempt()
    newest.refresh_from_db()
    assert second.outcome == Outcome.GRADED
    assert second.restored_checkpoint == older
    assert newest.fault
    said = track.text(second, "run")
    assert f"checkpoint {newest.number} of attempt 1" in said
    assert "cannot be used" in said


def test_with_no_checkpoint_left_it_starts_from_zero_with_the_full_limit(track: Track) -> None:
    first = track.killed_after(track.entered(STEPS=6, TROUBLE="hang@4"), 2)
    for each in first.checkpoints_to_try():
        spoil(each)

    track.supervise()

    second = first.run.newest_attempt()
    assert (second.outcome, second.resumed_from, second.charged_seconds) == (
        Outcome.GRADED,
        None,
        0,
    )
    assert track.steps(second) == [1, 2, 3, 4, 5, 6]
    assert "starting from zero" in track.text(second, "run")


def test_without_a_checkpoint_a_lost_run_starts_from_zero(track: Track) -> None:
    attempt = track.entered(CHECKPOINT_EVERY=0)
    thread = track.in_the_background()
    wait_for(lambda: "line 2" in track.text(attempt), what="a step")
    attempt.refresh_from_db()
    track.engine.kill(attempt.container_id)
    thread.join(60)

    assert attempt.run.newest_attempt().resumed_from is None


# ------------------------------------------------------------------------------ people


def test_a_run_is_moved_off_a_host_that_drains(track: Track) -> None:
    attempt = track.entered(STEPS=22)
    thread = track.in_the_background()
    wait_for(lambda: track.state_on_disk(attempt)["done"] >= 2, what="two steps")

    host = Host.objects.get(pk=track.host.pk)
    # It could take the run; that it is nobody's here leaves the run to the drained one.
    factories.make_host("box-2")
    assert draining.drain(host, by=None, move=True)
    thread.join(60)

    attempt.refresh_from_db()
    assert (attempt.outcome, attempt.cause) == (Outcome.CONTINUED, Cause.MOVED)
    run = Run.objects.get(pk=attempt.run_id)
    second = run.newest_attempt()
    assert (run.state, run.tries_used) == (RunState.QUEUED, 0)
    assert second.resumed_from == attempt
    track.nothing_is_left()
    draining.undrain(host, by=None)
    track.supervise()
    second.refresh_from_db()
    # It wrote a checkpoint on SIGTERM, and that was saved: nothing was done twice.
    assert track.steps(second) == list(range(track.steps(attempt)[-1] + 1, 23))


def test_a_failed_run_is_resumed_at_a_persons_word(track: Track) -> None:
    attempt = track.entered(STEPS=6, TROUBLE="crash@4")
    thread = track.in_the_background()
    wait_for(lambda: track.state_on_disk(attempt)["done"] >= 1, what="a step")
    ask(attempt)
    thread.join(60)
    attempt.refresh_from_db()
    # The sample submission was left: it has a result, and is not run again.
    assert attempt.outcome == Outcome.GRADED
    with pytest.raises(submit.NotRerunnable):
        submit.rerun([attempt.run], by=None, mode="resume")


def test_a_cancelled_run_is_resumed_where_it_stood(track: Track) -> None:
    attempt = track.entered()
    thread = track.in_the_background()
    wait_for(lambda: track.state_on_disk(attempt)["done"] >= 2, what="two steps")
    ask(attempt)
    wait_for(lambda: attempt.checkpoints.exists(), what="a checkpoint")
    run = Run.objects.get(pk=attempt.run_id)
    submit.cancel_run(run, by=None)
    thread.join(60)

    [second] = submit.rerun([run], by=None, mode="resume")
    track.supervise()

    second.refresh_from_db()
    assert (second.resumed_from, second.outcome) == (attempt, Outcome.GRADED)
    assert track.steps(second)[0] > 2


def test_a_run_with_a_result_needs_no_checkpoint_any_more(track: Track) -> None:
    attempt = track.entered(STEPS=6, TROUBLE="")
    thread = track.in_the_background()
    wait_for(lambda: track.state_on_disk(attempt)["done"] >= 1, what="a step")
    ask(attempt)
    thread.join(60)
    assert default_storage.listdir(f"checkpoints/{attempt.run_id}")[1]

    assert checkpoints.tidy() == 1

    assert not attempt.checkpoints.stored().exists()
    assert str(attempt.run_id) not in default_storage.listdir("checkpoints")[0]
    assert checkpoints.tidy() == 0


def test_two_are_kept_and_only_new_content_is_stored(track: Track) -> None:
    attempt = track.entered(STEPS=99, TROUBLE="hang@90", CHECKPOINT_BYTES=300_000)
    track.killed_after(attempt, 2, saved=4)

    stored = attempt.checkpoints.stored()
    assert list(stored) == list(attempt.checkpoints.order_by("number"))[-2:]
    blobs = default_storage.listdir(f"checkpoints/{attempt.run_id}/blobs")[1]
    assert 2 <= len(blobs) <= 4
    assert len(default_storage.listdir(f"checkpoints/{attempt.run_id}")[1]) == 2
    assert re.search(r"Checkpoint 1.*: 2 files, 0.3 MB", track.text(attempt, "run"))
