"""How runs fail: what openai/mle-bench's own runner makes of it was measured, row by row.

Each test is one such row, taken through the claim, the supervisor and a real container to its
sealed end: the right state, a named cause, and the outputs kept.
"""

import hashlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import docker
import pytest

from mlebench_web.fleet.models import Host
from runs import layout, logs, queue, watching, worker
from runs.attempt_disk import AttemptDisk
from runs.containers.docker import DockerEngine
from runs.core.failures import Cause
from runs.core.states import Outcome, Result, RunState, State
from runs.models import Attempt
from tests import factories
from tests.docker.conftest import wait_for
from tests.docker.road import PERFECT, Killed, Road, derived, die_at, has_said
from tests.support import small_competition

pytestmark = [pytest.mark.docker, pytest.mark.django_db(transaction=True)]

# -------------------------------------------------------------------------------- a good run


def test_a_good_run_is_graded_and_leaves_nothing_behind(road: Road) -> None:
    attempt = road.run(f"echo hello; {PERFECT}; echo code > /home/code/train.py")

    assert (attempt.outcome, attempt.cause, attempt.exit_code) == (Outcome.GRADED, "", 0)
    attempt.run.refresh_from_db()
    run = attempt.run
    assert (run.state, run.result, run.score) == (RunState.FINISHED, Result.GOLD, 0.0)
    assert road.kept(attempt, "submission/submission.csv").decode() == small_competition.PERFECT
    assert road.kept(attempt, "code/train.py") == b"code\n"
    assert road.text(attempt) == "hello"
    assert attempt.active_seconds > 0
    assert attempt.hardware["cpus"] == 0.5
    road.nothing_is_left()


# -------------------------------------------------------------------------------- the rows


def test_row_5_an_agent_that_hangs_ends_at_the_time_limit(road: Road) -> None:
    attempt = road.run("echo working; sleep 1000", time_limit=timedelta(seconds=2))

    assert (attempt.outcome, attempt.cause) == (Outcome.AGENT_FAILED, Cause.TIME_LIMIT)
    assert 2 <= attempt.active_seconds < 60
    assert attempt.last_lines == "working"
    report = attempt.reports.get()
    assert (report.score, report.any_medal, report.gold_threshold) == (None, False, 0.1)
    road.nothing_is_left()


def test_row_5_a_hanging_agent_with_a_submission_is_graded(road: Road) -> None:
    attempt = road.run(f"{PERFECT}; sleep 1000", time_limit=timedelta(seconds=2))

    assert (attempt.outcome, attempt.cause) == (Outcome.GRADED, Cause.TIME_LIMIT)
    assert attempt.reports.get().gold_medal


def test_an_agent_that_saves_on_sigterm_has_its_grace(road: Road) -> None:
    script = f"trap '{PERFECT.replace(chr(39), chr(34))}; exit 0' TERM; while :; do sleep 0.1; done"

    attempt = road.run(script, time_limit=timedelta(seconds=1))

    assert (attempt.outcome, attempt.cause) == (Outcome.GRADED, Cause.TIME_LIMIT)
    assert attempt.reports.get().gold_medal


def test_row_6_an_agent_that_exits_with_3_has_failed(road: Road) -> None:
    attempt = road.run("echo broken; exit 3")

    assert (attempt.outcome, attempt.cause) == (Outcome.AGENT_FAILED, Cause.AGENT_CRASHED)
    assert (attempt.exit_code, attempt.last_lines) == (3, "broken")
    attempt.run.refresh_from_db()
    assert attempt.run.state == RunState.FAILED
    road.nothing_is_left()


def test_a_clean_end_without_a_submission_is_graded_null(road: Road) -> None:
    attempt = road.run("echo nothing to hand in")

    assert (attempt.outcome, attempt.cause) == (Outcome.GRADED, Cause.NO_SUBMISSION)
    attempt.run.refresh_from_db()
    assert (attempt.run.state, attempt.run.result) == (RunState.FINISHED, Result.NO_SUBMISSION)


def test_row_7_bytes_that_are_no_utf8_harm_nothing(road: Road) -> None:
    attempt = road.run(f"printf 'a\\377b\\n'; {PERFECT}; echo end")

    assert attempt.outcome == Outcome.GRADED
    assert road.text(attempt) == "a\ufffdb\nend"
    assert road.kept(attempt, "logs/agent.stdout") == b"a\xffb\nend\n"


def test_row_8_split_and_massed_utf8_arrives_whole(road: Road) -> None:
    attempt = road.run(
        "printf '\\342\\226'; sleep 0.3; printf '\\210\\n';"
        f" for i in $(seq 1000); do printf '█%.0s' $(seq 34); echo; done; {PERFECT}"
    )

    assert attempt.outcome == Outcome.GRADED
    text = logs.window(attempt.pk, "agent", offset=0, limit_bytes=10**6).text
    assert text.splitlines() == ["█", *["█" * 34] * 1000]


@pytest.mark.slow
def test_row_9_a_submission_of_two_gigabytes_is_invalid_and_harms_nothing(road: Road) -> None:
    attempt = road.run("truncate -s 2G /home/submission/submission.csv")

    assert attempt.outcome == Outcome.GRADED
    report = attempt.reports.get()
    assert (report.submission_exists, report.valid_submission, report.score) == (True, False, None)
    assert "GiB" in report.message or "GB" in report.message
    road.nothing_is_left()


def test_row_10_an_agent_killed_for_memory_is_told_from_a_crash(road: Road) -> None:
    attempt = road.run("python3 -c 'x = bytearray(400_000_000); print(len(x))'", memory="128m")

    assert (attempt.outcome, attempt.cause) == (Outcome.AGENT_FAILED, Cause.OUT_OF_MEMORY)
    assert attempt.memory_killed
    road.nothing_is_left()


def test_row_10_a_memory_kill_that_the_start_script_hides_is_still_seen(road: Road) -> None:
    attempt = road.run("python3 -c 'x = bytearray(400_000_000)' || true", memory="128m")

    assert attempt.exit_code == 0
    assert (attempt.outcome, attempt.cause) == (Outcome.AGENT_FAILED, Cause.OUT_OF_MEMORY)


def test_row_11_a_server_killed_for_memory_is_named(
    road: Road, engine: docker.DockerClient, settings: object
) -> None:
    settings.MAX_TRIES = 1  # type: ignore[attr-defined]
    greedy = "exec python3 -c 'x = bytearray(400_000_000)'"
    image = with_entrypoint(engine, road.image, "greedy", greedy)

    attempt = road.run(
        PERFECT, memory="64m", image=factories.make_image(factories.make_agent("g"), image_id=image)
    )

    assert (attempt.outcome, attempt.cause) == (
        Outcome.INFRASTRUCTURE_FAILED,
        Cause.RELAY_FAILED,
    )
    assert "memory" in attempt.cause_detail
    road.nothing_is_left()


def test_row_12_a_server_that_never_starts_ends_at_the_start_limit(
    road: Road, engine: docker.DockerClient, settings: object
) -> None:
    settings.MAX_TRIES = 1  # type: ignore[attr-defined]
    settings.START_LIMIT = timedelta(seconds=2)  # type: ignore[attr-defined]
    image = with_entrypoint(engine, road.image, "sleeper", "echo waiting; sleep 1000")

    attempt = road.run(
        PERFECT, image=factories.make_image(factories.make_agent("a"), image_id=image)
    )

    assert (attempt.outcome, attempt.cause) == (
        Outcome.INFRASTRUCTURE_FAILED,
        Cause.START_LIMIT,
    )
    assert "waiting" in road.text(attempt, "container")
    road.nothing_is_left()


def test_row_13_a_container_that_exits_at_once_is_named_with_its_code(
    road: Road, engine: docker.DockerClient, settings: object
) -> None:
    settings.MAX_TRIES = 1  # type: ignore[attr-defined]
    image = with_entrypoint(engine, road.image, "quitter", "echo no server here; exit 7")

    attempt = road.run(
        PERFECT, image=factories.make_image(factories.make_agent("b"), image_id=image)
    )

    assert (attempt.outcome, attempt.cause) == (
        Outcome.INFRASTRUCTURE_FAILED,
        Cause.CONTAINER_EXITED,
    )
    assert "7" in attempt.cause_detail
    assert "no server here" in attempt.last_lines
    road.nothing_is_left()


def with_entrypoint(engine: docker.DockerClient, base: str, name: str, script: str) -> str:
    text = f"#!/bin/bash\nexec >> /home/logs/entrypoint.log 2>&1\n{script}\n"
    line = "COPY entrypoint.sh /entrypoint.sh"
    return derived(engine, base, name, line, {"entrypoint.sh": text})


def test_row_14_a_missing_image_is_named_and_tried_again(road: Road) -> None:
    gone = "sha256:" + "9" * 64
    attempt = road.run(
        PERFECT, image=factories.make_image(factories.make_agent("c"), image_id=gone)
    )

    assert (attempt.outcome, attempt.cause) == (
        Outcome.INFRASTRUCTURE_FAILED,
        Cause.IMAGE_MISSING,
    )
    assert "9999" in attempt.cause_detail
    assert attempt.run.newest_attempt().number == 2
    assert Path(layout.attempt_folder(attempt)).exists()


def test_row_15_a_container_removed_from_outside_keeps_its_outputs_and_is_run_again(
    road: Road,
) -> None:
    attempt = road.queued(f"{PERFECT}; echo before; sleep 1000")
    thread = road.in_the_background()
    wait_for(lambda: has_said(attempt, "before"), what="the agent's line")

    attempt.refresh_from_db()
    road.engine.remove(attempt.container_id)
    thread.join(timeout=30)

    attempt.refresh_from_db()
    assert (attempt.outcome, attempt.cause) == (
        Outcome.INFRASTRUCTURE_FAILED,
        Cause.CONTAINER_REMOVED,
    )
    assert road.kept(attempt, "submission/submission.csv").decode() == small_competition.PERFECT
    assert attempt.run.newest_attempt().state == State.QUEUED, "no score from a broken host"


def test_an_agent_that_a_full_disk_ended_a_moment_ago_has_not_failed_by_itself(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The edge: a disk that is full when the run begins, and free again when its end is seen.
    answers = iter([True])
    monkeypatch.setattr(AttemptDisk, "is_full", lambda _: next(answers, False))

    attempt = road.run("sleep 1; exit 1")

    assert (attempt.outcome, attempt.cause) == (Outcome.INFRASTRUCTURE_FAILED, Cause.DISK_FULL)


def test_a_container_killed_from_outside_is_told_from_one_that_exited(road: Road) -> None:
    attempt = road.queued("echo before; sleep 1000")
    thread = road.in_the_background()
    wait_for(lambda: has_said(attempt, "before"), what="the agent's line")

    attempt.refresh_from_db()
    road.engine.kill(attempt.container_id)
    thread.join(timeout=30)

    attempt.refresh_from_db()
    assert attempt.cause == Cause.CONTAINER_KILLED
    road.engine.remove(attempt.container_id)


def test_a_container_killed_between_two_looks_is_no_end_of_the_agents_own(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processes are gone a moment before the engine says that it does not run."""
    monkeypatch.setattr(watching, "AGENT_APPEARS_WITHIN", 0.0)
    look = DockerEngine.agent_is_alive

    def killed_just_before(engine: DockerEngine, container: str) -> bool:
        engine.kill(container)
        return look(engine, container)

    monkeypatch.setattr(DockerEngine, "agent_is_alive", killed_just_before)

    attempt = road.run(f"{PERFECT}; sleep 1000")

    assert (attempt.outcome, attempt.cause) == (
        Outcome.INFRASTRUCTURE_FAILED,
        Cause.CONTAINER_KILLED,
    )
    assert attempt.run.newest_attempt().state == State.QUEUED


def test_row_17_data_that_went_away_is_named(road: Road, settings: object) -> None:
    settings.MAX_TRIES = 1  # type: ignore[attr-defined]
    attempt = road.queued(PERFECT)
    lease = queue.take_work(road.host)
    assert lease
    settings.COMPETITIONS_DIR = Path("/nonexistent")  # type: ignore[attr-defined]

    worker.supervise(lease)

    attempt.refresh_from_db()
    assert (attempt.outcome, attempt.cause) == (
        Outcome.INFRASTRUCTURE_FAILED,
        Cause.DATA_MISSING,
    )
    assert "test-prices" in attempt.cause_detail


@pytest.mark.parametrize(
    "leave",
    [
        pytest.param("ln -s /home/data/sample_submission.csv", id="link to a file"),
        pytest.param("ln -s /etc/passwd", id="link out"),
        pytest.param("mkfifo", id="fifo"),
        pytest.param("mkdir", id="folder"),
    ],
)
def test_row_20_what_is_no_regular_file_is_never_graded(road: Road, leave: str) -> None:
    attempt = road.run(f"{leave} /home/submission/submission.csv")

    report = attempt.reports.get()
    assert attempt.outcome == Outcome.GRADED
    assert (report.submission_exists, report.valid_submission, report.score) == (True, False, None)
    assert "submission.csv" in report.message
    assert not (layout.attempt_folder(attempt) / "submission" / "submission.csv").is_file()
    road.nothing_is_left()


def test_row_21_the_agent_is_told_its_seed_and_its_hardware(road: Road) -> None:
    attempt = road.run('echo "$MLE_SEED $COMPETITION_ID $MLE_CPUS $TIME_LIMIT_SECS $MLE_GPU_COUNT"')

    assert road.text(attempt) == f"{attempt.run.seed} test-prices 0.5 120 0"


def test_row_22_the_record_has_times_exit_code_image_and_config(road: Road) -> None:
    attempt = road.run(f"{PERFECT}; exit 5")

    assert attempt.exit_code == 5
    assert attempt.image_id == road.image
    assert attempt.claimed_at
    assert attempt.agent_started_at
    assert attempt.agent_ended_at
    assert attempt.ended_at
    assert attempt.claimed_at <= attempt.agent_started_at <= attempt.agent_ended_at
    assert set(attempt.timings) >= {"create", "start", "ready", "exec", "collect", "grade"}
    assert [move.new for move in attempt.moves.all()][-5:] == [
        State.STARTING,
        State.RUNNING,
        State.COLLECTING,
        State.GRADING,
        State.ENDED,
    ]


def test_row_23_what_is_kept_is_what_was_written_byte_for_byte(road: Road) -> None:
    attempt = road.run(
        "head -c 3000000 /dev/urandom > /home/code/blob; sha256sum < /home/code/blob; "
        f"mkdir -p /home/code/a/b; echo deep > /home/code/a/b/c; {PERFECT}"
    )

    digest = hashlib.sha256(road.kept(attempt, "code/blob")).hexdigest()
    assert road.text(attempt).split()[0] == digest
    assert road.kept(attempt, "code/a/b/c") == b"deep\n"
    assert {"path": "code/blob", "bytes": 3_000_000} in attempt.artifacts


# -------------------------------------------------------------------------------- cancel, adoption


def cancel(attempt: Attempt) -> None:
    from django.utils import timezone

    Attempt.objects.filter(pk=attempt.pk).update(
        cancel_requested_at=timezone.now(), cancel_requested_by="alice"
    )


def test_a_cancel_of_a_running_agent_is_seen_and_keeps_the_outputs(road: Road) -> None:
    attempt = road.queued(f"{PERFECT}; echo before; sleep 1000")
    thread = road.in_the_background()
    wait_for(lambda: has_said(attempt, "before"), what="the agent's line")

    cancel(attempt)
    thread.join(timeout=30)

    attempt.refresh_from_db()
    assert (attempt.outcome, attempt.cause) == (Outcome.CANCELLED, Cause.CANCELLED)
    assert attempt.run.attempts.count() == 1
    assert not attempt.reports.exists(), "kept, not graded"
    assert road.kept(attempt, "submission/submission.csv")
    road.nothing_is_left()


Cut = Callable[[worker.Supervisor], None]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("engine", "create"),
        ("engine", "start"),
        ("supervisor", "wait_until_ready"),
        ("engine", "start_agent"),
        ("supervisor", "stop_with"),
        ("engine", "kill"),
        ("engine", "remove"),
        ("supervisor", "release"),
        ("grading", "grade"),
        ("layout", "publish"),
    ],
)
def test_a_supervisor_killed_at_any_line_is_followed_by_one_that_finishes(
    road: Road, monkeypatch: pytest.MonkeyPatch, where: str, name: str, after: bool
) -> None:
    from runs import grading

    owner = {
        "engine": type(road.engine),
        "supervisor": worker.Supervisor,
        "grading": grading,
        "layout": layout,
    }[where]
    attempt = road.queued(f"echo once; {PERFECT}")
    die_at(monkeypatch, owner, name, after=after)

    with pytest.raises(Killed):
        road.supervise()
    # The process that the row names is gone.
    Attempt.objects.update(supervisor_pid=2**22 + 1)
    if lease := queue.take_work(Host.objects.get(pk=road.host.pk)):
        assert lease.adopted
        worker.supervise(lease)
    from runs.host_service import HostService

    HostService().sweep()

    attempt.refresh_from_db()
    assert (attempt.state, attempt.outcome) == (State.ENDED, Outcome.GRADED)
    assert attempt.run.attempts.count() == 1
    assert road.text(attempt) == "once", "no line lost, none doubled, no agent started twice"
    assert attempt.reports.filter(is_current=True).get().gold_medal
    results = layout.run_folder(attempt.run)
    assert (results / "submission" / "submission.csv").read_text() == small_competition.PERFECT
    road.nothing_is_left()


def test_a_full_disk_that_a_dead_supervisor_saw_is_no_crash_for_the_next_one(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent could not write its exit code, and the disk is free again when that is seen."""
    answers = iter([True])
    monkeypatch.setattr(AttemptDisk, "is_full", lambda _: next(answers, False))
    monkeypatch.setattr(watching, "AGENT_APPEARS_WITHIN", 0.0)
    die_at(monkeypatch, watching.Watch, "look_at_container", after=False)
    attempt = road.queued("mkdir /home/logs/agent.rc.tmp; exit 1")

    with pytest.raises(Killed):
        road.supervise()
    Attempt.objects.update(supervisor_pid=2**22 + 1)
    lease = queue.take_work(Host.objects.get(pk=road.host.pk))
    assert lease
    assert lease.adopted
    worker.supervise(lease)

    attempt.refresh_from_db()
    assert attempt.exit_code is None
    assert (attempt.outcome, attempt.cause) == (Outcome.INFRASTRUCTURE_FAILED, Cause.DISK_FULL)


def test_a_disk_that_was_full_before_the_agent_was_seen_at_work_explains_nothing(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.utils import timezone

    long_ago = timezone.now() - timedelta(seconds=watching.FULL_DISK_EXPLAINS + 5)
    Host.objects.filter(pk=road.host.pk).update(disk_full_at=long_ago)

    attempt = road.run("exit 1")

    assert (attempt.outcome, attempt.cause) == (Outcome.AGENT_FAILED, Cause.AGENT_CRASHED)
