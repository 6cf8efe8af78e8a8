"""Looking at runs; cancel and re-run over the API."""

import json

import pytest

from mlebench_web.accounts.models import AuditEntry
from mlebench_web.fleet.models import Host
from runs import layout, logs
from runs.core.failures import Cause
from runs.core.states import Outcome, Result, State
from runs.models import Attempt, Experiment, Run, RunGroup
from tests import factories
from tests.api.conftest import ApiClient
from tests.api.test_run_groups import fields


@pytest.fixture
def group(lab: Host) -> RunGroup:
    return factories.make_group()


def own_failure(group: RunGroup, seed: int = 0) -> Run:
    return factories.make_run(
        group, seed=seed, outcome=Outcome.AGENT_FAILED, cause=Cause.AGENT_CRASHED
    )


def broken_host(group: RunGroup, seed: int = 0) -> Run:
    return factories.make_run(
        group,
        seed=seed,
        outcome=Outcome.INFRASTRUCTURE_FAILED,
        cause=Cause.CONTAINER_KILLED,
    )


# -------------------------------------------------------------------------------------- reading


def test_a_finished_run_has_all_that_design_names(api: ApiClient, group: RunGroup) -> None:
    run = factories.make_run(group, result=Result.SILVER)

    status, shown = api.read(f"runs/{run.pk}")

    assert status == 200
    assert shown["competition"] == "demo-diamond-prices"
    assert shown["seed"] == 0
    assert shown["state"] == "finished"
    assert (shown["result"], shown["medal"]) == ("silver", "silver")
    assert shown["score"] == run.score
    assert shown["host"] == "box-1"
    assert shown["hardware"]["cpus"] == 2.0
    assert shown["active_seconds"] == 120
    assert shown["wall_seconds"] == 120
    assert [attempt["outcome"] for attempt in shown["attempts"]] == ["graded"]
    assert shown["attempts"][0]["id"] == run.newest_attempt().pk


def test_what_a_queued_run_has_not_is_null(api: ApiClient, group: RunGroup) -> None:
    run = factories.make_run(group)

    _, shown = api.read(f"runs/{run.pk}")

    for name in ("result", "score", "medal", "host", "hardware", "active_seconds", "wall_seconds"):
        assert shown[name] is None, name
    assert shown["waiting"]


def test_a_result_without_a_medal_has_none(api: ApiClient, group: RunGroup) -> None:
    run = factories.make_run(group, result=Result.ABOVE_MEDIAN)

    _, shown = api.read(f"runs/{run.pk}")

    assert (shown["result"], shown["medal"]) == ("above_median", None)


def test_lost_contact_is_no_state(api: ApiClient, group: RunGroup) -> None:
    run = factories.make_run(group, state=State.RUNNING)
    Attempt.objects.update(lease_until="2020-01-01T00:00:00Z")

    _, shown = api.read(f"runs/{run.pk}")

    assert shown["state"] == "running"
    assert shown["attempts"][0]["has_lost_contact"] is True


def test_the_report_has_upstreams_16_keys(api: ApiClient, group: RunGroup) -> None:
    run = factories.make_run(group, result=Result.GOLD)

    _, report = api.read(f"runs/{run.pk}/report")

    assert list(report) == [
        "competition_id",
        "score",
        "gold_threshold",
        "silver_threshold",
        "bronze_threshold",
        "median_threshold",
        "any_medal",
        "gold_medal",
        "silver_medal",
        "bronze_medal",
        "above_median",
        "submission_exists",
        "valid_submission",
        "is_lower_better",
        "created_at",
        "submission_path",
    ]
    assert report["gold_medal"] is True


def test_a_run_without_a_report_says_so(api: ApiClient, group: RunGroup) -> None:
    run = factories.make_run(group)

    status, answer = api.read(f"runs/{run.pk}/report")

    assert status == 404
    assert "no grading report" in answer["detail"]


def test_a_score_that_json_cannot_hold_is_null(api: ApiClient, group: RunGroup) -> None:
    run = factories.make_run(group, result=Result.VALID)
    Run.objects.update(score=float("inf"))

    response = api.ask("GET", f"runs/{run.pk}")

    assert json.loads(response.content)["score"] is None


def test_an_imported_group_shows_null_for_what_its_source_did_not_say(
    api: ApiClient, lab: Host
) -> None:
    experiment = Experiment.objects.create(name="imported")
    imported = RunGroup.objects.create(
        experiment=experiment, seeds=1, folder="elsewhere", import_digest="d" * 64
    )
    run = Run.objects.create(
        group=imported, competition=factories.make_competition("demo-diamond-prices"), seed=0
    )
    run.record_import(by="test")

    _, group = api.read(f"run-groups/{imported.pk}")
    _, shown = api.read(f"runs/{run.pk}")
    _, row = api.read("experiments")

    for name in ("agent", "container_config", "runtime", "sandboxed", "time_limit_s"):
        assert group[name] is None, name
    assert (group["state"], shown["state"], shown["active_seconds"]) == (
        "finished",
        "finished",
        None,
    )
    assert row["items"][0]["agent"] is None


def test_the_log_is_read_in_windows(api: ApiClient, group: RunGroup) -> None:
    run = factories.make_run(group, state=State.RUNNING)
    for number in range(20):
        logs.append(run.newest_attempt().pk, "run", f"line {number} {'x' * 50}")

    _, first = api.read(f"runs/{run.pk}/log?source=run&offset=0&limit_bytes=500")
    text = first["text"]
    while first["next_offset"] < first["total"]:
        _, first = api.read(
            f"runs/{run.pk}/log?source=run&limit_bytes=500&offset={first['next_offset']}"
        )
        text += first["text"]

    assert [line.split()[3] for line in text.splitlines()] == [str(n) for n in range(20)]


def test_without_an_offset_the_log_ends_where_it_ends(api: ApiClient, group: RunGroup) -> None:
    run = factories.make_run(group, state=State.RUNNING)
    for number in range(20):
        logs.append(run.newest_attempt().pk, "run", f"line {number}")

    _, tail = api.read(f"runs/{run.pk}/log?source=run&limit_bytes=100")

    assert tail["text"].endswith("line 19\n")
    assert tail["next_offset"] == tail["total"]
    assert tail["offset"] > 0


def test_an_unknown_source_comes_with_the_allowed_ones(api: ApiClient, group: RunGroup) -> None:
    run = factories.make_run(group)

    status, answer = api.read(f"runs/{run.pk}/log?source=kernel")

    assert (status, fields(answer)) == (422, ["source"])
    assert "agent" in answer["errors"][0]["allowed"]


def test_artifacts_are_listed_and_downloaded(api: ApiClient, group: RunGroup) -> None:
    kept = [{"path": "submission/submission.csv", "bytes": 4}]
    run = factories.make_run(group, result=Result.GOLD, artifacts=kept)
    folder = layout.attempt_folder(run.newest_attempt()) / "submission"
    folder.mkdir(parents=True)
    (folder / "submission.csv").write_text("id,x")

    _, listed = api.read(f"runs/{run.pk}/artifacts")
    path = listed["items"][0]["url"].split("/api/v1/")[1]
    response = api.ask("GET", path)

    assert listed["items"][0]["bytes"] == 4
    assert b"".join(response) == b"id,x"
    assert response["Content-Disposition"].startswith("attachment")
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["Content-Security-Policy"] == "sandbox"


@pytest.mark.parametrize(
    "path", ["../../db.sqlite3", "%2e%2e/secret-key", "submission/none", "link", "a%00b"]
)
def test_nothing_outside_the_folder_is_downloaded(
    api: ApiClient, group: RunGroup, path: str
) -> None:
    run = factories.make_run(group, result=Result.GOLD)
    folder = layout.attempt_folder(run.newest_attempt())
    folder.mkdir(parents=True)
    (folder / "link").symlink_to("/etc/passwd")

    assert api.ask("GET", f"runs/{run.pk}/artifacts/{path}").status_code == 404


def test_a_viewer_downloads_nothing(viewer_api: ApiClient, group: RunGroup) -> None:
    run = factories.make_run(group, result=Result.GOLD)

    assert viewer_api.read(f"runs/{run.pk}/artifacts/submission/submission.csv")[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        "run-groups/999",
        "run-groups/999/runs",
        "runs/999",
        "runs/999/log",
        "runs/999/report",
        "runs/999/artifacts",
        f"runs/{2**80}",
        f"run-groups/{2**80}",
        "nothing",
        "agents/",
        "hosts/a%00b",
        "run-groups?experiment=a%00b",
    ],
)
def test_what_is_not_there_is_404_in_json(api: ApiClient, lab: Host, path: str) -> None:
    status, answer = api.read(path)

    assert status == 404
    assert set(answer) == {"detail", "errors"}


# --------------------------------------------------------------------------------------- cancel


def test_a_queued_run_is_cancelled_at_once(api: ApiClient, group: RunGroup) -> None:
    run = factories.make_run(group)

    status, shown = api.send(f"runs/{run.pk}/cancel")

    assert (status, shown["state"]) == (200, "cancelled")
    assert run.newest_attempt().cancel_requested_by == "alice"


@pytest.mark.parametrize("state", [State.STARTING, State.RUNNING])
def test_a_run_at_work_is_asked_to_stop(api: ApiClient, group: RunGroup, state: State) -> None:
    run = factories.make_run(group, state=state)

    status, shown = api.send(f"runs/{run.pk}/cancel")

    assert (status, shown["state"]) == (200, state)
    assert run.newest_attempt().cancel_requested_at is not None


@pytest.mark.parametrize("state", [State.COLLECTING, State.GRADING])
def test_a_run_whose_agent_has_ended_is_not_cancelled(
    api: ApiClient, group: RunGroup, state: State
) -> None:
    run = factories.make_run(group, state=state)

    status, answer = api.send(f"runs/{run.pk}/cancel")

    assert status == 409
    assert "agent has ended" in answer["detail"]


def test_a_finished_run_is_not_cancelled(api: ApiClient, group: RunGroup) -> None:
    run = factories.make_run(group, result=Result.GOLD)

    assert api.send(f"runs/{run.pk}/cancel")[0] == 409


def test_a_group_is_cancelled_as_far_as_it_can_be(api: ApiClient, group: RunGroup) -> None:
    factories.make_run(group, state=State.QUEUED)
    factories.make_run(group, state=State.RUNNING)
    factories.make_run(group, state=State.GRADING)
    factories.make_run(group, result=Result.GOLD)

    status, shown = api.send(f"run-groups/{group.pk}/cancel")
    _, again = api.send(f"run-groups/{group.pk}/cancel")

    assert (status, shown["cancelled"], again["cancelled"]) == (200, 2, 0)
    assert shown["counts"] == {"cancelled": 1, "running": 1, "grading": 1, "finished": 1}


def test_queued_only_lets_finish_what_has_started(api: ApiClient, group: RunGroup) -> None:
    factories.make_run(group, state=State.QUEUED)
    running = factories.make_run(group, state=State.RUNNING)

    _, shown = api.send(f"run-groups/{group.pk}/cancel", {"queued_only": True})

    assert shown["cancelled"] == 1
    assert running.newest_attempt().cancel_requested_at is None


def test_strangers_and_viewers_cancel_nothing(
    stranger_api: ApiClient, viewer_api: ApiClient, group: RunGroup
) -> None:
    run = factories.make_run(group)

    for client in (stranger_api, viewer_api):
        assert client.send(f"runs/{run.pk}/cancel")[0] == 403
        assert client.send(f"run-groups/{group.pk}/cancel")[0] == 403
        assert client.send(f"run-groups/{group.pk}/rerun", {"which": "failed"})[0] == 403
    run.refresh_from_db()
    assert run.state == "queued"


# --------------------------------------------------------------------------------------- re-run


def test_infrastructure_failures_are_run_again_freely(api: ApiClient, group: RunGroup) -> None:
    own = own_failure(group, 0)
    broken = broken_host(group, 1)
    Run.objects.filter(pk=broken.pk).update(tries_used=3)

    status, answer = api.send(f"run-groups/{group.pk}/rerun", {"which": "infrastructure"})

    assert status == 200
    assert [(item["run"], item["number"]) for item in answer["items"]] == [(broken.pk, 2)]
    broken.refresh_from_db()
    own.refresh_from_db()
    assert (broken.state, broken.tries_used) == ("queued", 0)
    assert own.state == "failed"


def test_an_agents_own_failure_needs_a_reason(api: ApiClient, group: RunGroup) -> None:
    own = own_failure(group)
    broken = broken_host(group, 1)

    status, answer = api.send(f"run-groups/{group.pk}/rerun", {"which": "failed"})

    assert (status, fields(answer)) == (422, ["reason"])
    assert f"run {own.pk}" in answer["detail"]
    assert Attempt.objects.filter(state="queued").count() == 0
    broken.refresh_from_db()
    assert broken.state == "failed"


def test_with_a_reason_it_is_run_again_and_audited(api: ApiClient, group: RunGroup) -> None:
    own_failure(group)
    broken_host(group, 1)

    _, answer = api.send(
        f"run-groups/{group.pk}/rerun", {"which": "failed", "reason": "wrong data mount"}
    )

    assert answer["count"] == 2
    entries = AuditEntry.objects.filter(action="rerun")
    assert {entry.reason for entry in entries} == {"wrong data mount"}
    assert {entry.detail["after"] for entry in entries} == {
        "agent_failed",
        "infrastructure_failed",
    }


def test_a_graded_run_is_never_run_again(api: ApiClient, group: RunGroup) -> None:
    graded = factories.make_run(group, result=Result.INVALID)
    broken = broken_host(group, 1)

    status, answer = api.send(
        f"run-groups/{group.pk}/rerun",
        {"which": [graded.pk, broken.pk], "reason": "I want a medal"},
    )

    assert (status, fields(answer)) == (422, ["which"])
    assert f"run {graded.pk}" in answer["detail"]
    assert Attempt.objects.filter(state="queued").count() == 0


def test_unless_it_was_cut_short(api: ApiClient, group: RunGroup) -> None:
    graded = factories.make_run(group, result=Result.VALID)
    Run.objects.update(is_cut_short=True)

    assert api.send(f"run-groups/{group.pk}/rerun", {"which": [graded.pk]})[0] == 200


def test_a_second_press_changes_nothing(api: ApiClient, group: RunGroup) -> None:
    run = broken_host(group)

    api.send(f"runs/{run.pk}/rerun")
    status, answer = api.send(f"runs/{run.pk}/rerun")

    assert (status, answer["items"], answer["skipped"]) == (200, [], [run.pk])
    assert run.attempts.count() == 2


def test_runs_at_work_are_skipped(api: ApiClient, group: RunGroup) -> None:
    running = factories.make_run(group, state=State.RUNNING)
    broken = broken_host(group, 1)

    _, answer = api.send(f"run-groups/{group.pk}/rerun", {"which": [running.pk, broken.pk]})

    assert ([item["run"] for item in answer["items"]], answer["skipped"]) == (
        [broken.pk],
        [running.pk],
    )


def test_a_cancelled_run_may_be_run_again(api: ApiClient, group: RunGroup) -> None:
    run = factories.make_run(group)
    api.send(f"runs/{run.pk}/cancel")

    status, answer = api.send(f"runs/{run.pk}/rerun")

    assert (status, answer["count"]) == (200, 1)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "which"),
        ({"which": "all"}, "which"),
        ({"which": ["1"]}, "which"),
        ({"which": [10**30]}, "which"),
        ({"which": [999_999]}, "which"),
        ({"which": "failed", "mode": "resume"}, "mode"),
        ({"which": "failed", "mode": "continue"}, "mode"),
        ({"which": "failed", "overrides": {"host": "nowhere"}}, "overrides.host"),
        ({"which": "failed", "overrides": {"gpu": "H100"}}, "overrides.gpu"),
        ({"which": "failed", "overrides": {"gpu": 10}}, "overrides.gpu"),
        ({"which": "failed", "overrides": {"time_limit_s": 0}}, "overrides.time_limit_s"),
        ({"which": "failed", "overrides": {"time_limit_s": True}}, "overrides.time_limit_s"),
        ({"which": "failed", "overrides": {"step_timeout_s": -1}}, "overrides.step_timeout_s"),
        ({"which": "failed", "overrides": {"memory_bytes": 1}}, "overrides.memory_bytes"),
        ({"which": "failed", "overrides": {"cpus": 4}}, "overrides.cpus"),
        ({"which": "failed", "overrides": []}, "overrides"),
        ({"which": "failed", "reason": "a\0b"}, "reason"),
        ({"which": "failed", "reasons": "x"}, "reasons"),
    ],
)
def test_a_wrong_rerun_is_422_naming_the_field(
    api: ApiClient, group: RunGroup, body: dict, field: str
) -> None:
    broken_host(group)

    status, answer = api.send(f"run-groups/{group.pk}/rerun", body)

    assert (status, fields(answer)) == (422, [field])


def test_a_rerun_with_overrides_keeps_what_it_was_given(api: ApiClient, group: RunGroup) -> None:
    run = broken_host(group)
    host = factories.make_host()
    asked = {"host": host.name, "time_limit_s": 7200, "memory_bytes": 2**30}

    status, answer = api.send(f"runs/{run.pk}/rerun", {"overrides": asked})

    assert (status, answer["items"][0]["overrides"]) == (200, asked)
    entry = AuditEntry.objects.get(action="rerun")
    assert entry.detail["overrides"] == asked


def test_an_override_of_the_gpu_is_refused_where_the_config_asks_for_none(
    api: ApiClient, group: RunGroup
) -> None:
    run = broken_host(group)
    factories.make_gpu(factories.make_host())

    status, answer = api.send(f"runs/{run.pk}/rerun", {"overrides": {"gpu": "A10"}})

    assert status == 422
    assert "asks for no GPU" in answer["errors"][0]["message"]


def test_a_run_of_another_group_is_not_among_its_runs(api: ApiClient, group: RunGroup) -> None:
    other = broken_host(factories.make_group())

    status, answer = api.send(f"run-groups/{group.pk}/rerun", {"which": [other.pk]})

    assert (status, fields(answer)) == (422, ["which"])


def test_a_repeated_rerun_with_its_key_gives_the_first_answer(
    api: ApiClient, group: RunGroup
) -> None:
    broken_host(group)
    key = {"Idempotency-Key": "again"}

    first = api.send(f"run-groups/{group.pk}/rerun", {"which": "failed"}, **key)
    second = api.send(f"run-groups/{group.pk}/rerun", {"which": "failed"}, **key)

    assert first == second
    assert first[1]["count"] == 1
