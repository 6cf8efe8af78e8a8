"""POST run-groups and what follows from it: DESIGN section 7, sentence by sentence."""

import threading

import pytest
from django.db import connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlebench_web.accounts.models import AuditEntry, User
from mlebench_web.catalog.models import Agent, AgentImage, ContainerConfig
from mlebench_web.fleet.models import Host, PreparedData
from runs.models import Attempt, Experiment, Move, Run, RunGroup
from tests import factories
from tests.api.conftest import ApiClient

BODY = {"agent": "baseline", "split": "demo", "seeds": 3, "experiment": "first"}
REAL = {"agent": "baseline", "split": "low", "seeds": 3, "container_config": "no_sysbox"}


def fields(answer: dict) -> list[str]:
    return [error["field"] for error in answer["errors"]]


# ------------------------------------------------------------------------------------- start


def test_a_post_makes_experiment_group_runs_and_queued_attempts(api: ApiClient, lab: Host) -> None:
    status, group = api.send("run-groups", BODY)

    assert status == 201
    row = RunGroup.objects.get(pk=group["id"])
    assert row.experiment == Experiment.objects.get(name="first")
    assert group["state"] == "queued"
    assert group["run_count"] == 6
    assert group["counts"] == {"queued": 6}
    assert group["competitions"] == ["demo-diamond-prices", "demo-tree-crowns"]
    assert {run.seed for run in row.runs.all()} == {0, 1, 2}
    assert Attempt.objects.filter(run__group=row, state="queued", number=1).count() == 6
    assert Move.objects.filter(attempt__run__group=row, old="", new="queued").count() == 6
    assert row.image == AgentImage.objects.get(image_name="baseline")
    assert row.folder.endswith("-UTC_run-group_baseline")
    assert AuditEntry.objects.get(action="start").object_id == str(row.pk)


def test_two_groups_in_one_second_get_folders_of_their_own(api: ApiClient, lab: Host) -> None:
    folders = {api.send("run-groups", BODY)[1]["folder"] for _ in range(3)}

    assert len(folders) == 3


def test_the_group_keeps_what_the_agent_was_told_on_that_day(api: ApiClient, lab: Host) -> None:
    Agent.objects.filter(name="baseline").update(kwargs={"folds": 5}, env_vars={"LEVEL": 2})

    _, group = api.send("run-groups", BODY)
    Agent.objects.filter(name="baseline").update(kwargs={}, env_vars={})

    row = RunGroup.objects.get(pk=group["id"])
    assert (row.agent_kwargs, row.agent_env) == ({"folds": 5}, {"LEVEL": 2})


def test_a_whole_benchmark_is_made_with_a_fixed_number_of_queries(
    api: ApiClient, lab: Host, django_assert_max_num_queries
) -> None:
    competitions = [factories.make_competition(f"demo-{number}") for number in range(75)]
    factories.make_split("many", competitions)

    with django_assert_max_num_queries(60):
        status, group = api.send("run-groups", {"agent": "baseline", "split": "many", "seeds": 3})

    assert (status, group["run_count"]) == (201, 225)


def test_a_second_group_of_an_experiment_adds_to_it(api: ApiClient, lab: Host) -> None:
    api.send("run-groups", BODY)
    status, _ = api.send("run-groups", BODY)

    assert status == 201
    assert Experiment.objects.get(name="first").groups.count() == 2


def test_an_experiment_has_one_agent(api: ApiClient, lab: Host) -> None:
    api.send("run-groups", BODY)
    status, answer = api.send("run-groups", {**BODY, "agent": "dummy"})

    assert status == 422
    assert fields(answer) == ["experiment"]
    assert "'baseline'" in answer["errors"][0]["message"]
    assert RunGroup.objects.count() == 1


def test_without_an_experiment_it_is_named_like_the_agent(api: ApiClient, lab: Host) -> None:
    _, group = api.send("run-groups", {"agent": "baseline", "split": "demo"})

    assert group["experiment"] == "baseline"


def test_all_means_split75(api: ApiClient, lab: Host) -> None:
    factories.make_split("split75", [factories.make_competition("demo-diamond-prices")])

    _, group = api.send("run-groups", {"agent": "baseline", "split": "all"})

    assert group["split"] == "split75"


def test_competitions_may_be_picked(api: ApiClient, lab: Host) -> None:
    status, group = api.send(
        "run-groups", {"agent": "dummy", "competitions": ["demo-tree-crowns", "demo-tree-crowns"]}
    )

    assert status == 201
    assert (group["split"], group["competitions"]) == (None, ["demo-tree-crowns"])


# ------------------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize(
    ("change", "field"),
    [
        pytest.param({"agent": "nobody"}, "agent", id="unknown agent"),
        pytest.param({"split": "nothing"}, "split", id="unknown split"),
        pytest.param({"split": None}, "split", id="neither split nor competitions"),
        pytest.param({"competitions": ["demo-tree-crowns"]}, "competitions", id="both"),
        pytest.param(
            {"split": None, "competitions": ["chess"]}, "competitions", id="unknown competition"
        ),
        pytest.param({"container_config": "big"}, "container_config", id="unknown config"),
        pytest.param({"seeds": 0}, "seeds", id="no seed"),
        pytest.param({"seeds": 101}, "seeds", id="too many seeds"),
        pytest.param({"seeds": "3"}, "seeds", id="text for a number"),
        pytest.param({"seeds": 3.5}, "seeds", id="half a seed"),
        pytest.param({"seeds": True}, "seeds", id="true is no number"),
        pytest.param({"time_limit_s": 0}, "time_limit_s", id="no time"),
        pytest.param({"time_limit_s": 10**20}, "time_limit_s", id="for ever"),
        pytest.param({"step_timeout_s": -1}, "step_timeout_s", id="negative step"),
        pytest.param({"priority": 101}, "priority", id="priority out of range"),
        pytest.param({"acknowledge_no_gpu": 1}, "acknowledge_no_gpu", id="1 is not true"),
        pytest.param({"experiment": " "}, "experiment", id="empty experiment"),
        pytest.param({"experiment": "a\nb"}, "experiment", id="two lines"),
        pytest.param({"env": ["A=1"]}, "env", id="env is no list"),
        pytest.param({"env": {"A": 1}}, "env", id="env has texts"),
        pytest.param({"env": {"A-B": "1"}}, "env", id="no name of a variable"),
        pytest.param({"env": {"MLE_SEED": "1"}}, "env", id="ours"),
        pytest.param({"env": {"COMPETITION_ID": "x"}}, "env", id="ours too"),
        pytest.param({"env": {"A": "\0"}}, "env", id="NUL"),
        pytest.param({"agent": "a\0"}, "agent", id="NUL in a name"),
        pytest.param({"experiment": "\ud800"}, "experiment", id="half a character"),
        pytest.param({"seed": 3}, "seed", id="unknown field"),
    ],
)
def test_a_wrong_field_is_422_naming_it(
    api: ApiClient, lab: Host, change: dict, field: str
) -> None:
    status, answer = api.send("run-groups", {**BODY, **change})

    assert status == 422, answer
    assert fields(answer) == [field]
    assert answer["detail"]
    assert RunGroup.objects.count() == 0


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        ({"agent": "nobody"}, ["baseline", "dummy"]),
        ({"split": "nothing"}, ["demo", "low", "all"]),
        (
            {"container_config": "big"},
            ["demo", "demo-process", "default", "no_sysbox", "no_sysbox_gpu"],
        ),
        (
            {"split": None, "competitions": ["chess"]},
            ["demo-diamond-prices", "demo-tree-crowns", "spaceship-titanic"],
        ),
    ],
)
def test_an_unknown_name_comes_with_the_allowed_ones(
    api: ApiClient, lab: Host, change: dict, allowed: list[str]
) -> None:
    _, answer = api.send("run-groups", {**BODY, **change})

    assert answer["errors"][0]["allowed"] == allowed


def test_an_unknown_field_comes_with_the_known_ones(api: ApiClient, lab: Host) -> None:
    _, answer = api.send("run-groups", {**BODY, "gpu": 1, "seedz": 3})

    assert fields(answer) == ["gpu", "seedz"]
    assert "acknowledge_no_gpu" in answer["errors"][0]["allowed"]


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "hf_token", "Secret", "DB_PASSWORD"])
def test_a_secret_in_env_is_refused(api: ApiClient, lab: Host, name: str) -> None:
    status, answer = api.send("run-groups", {**BODY, "env": {name: "x"}})

    assert status == 422
    assert fields(answer) == ["env"]
    assert "stored secret" in answer["errors"][0]["message"]


def test_other_variables_reach_the_group(api: ApiClient, lab: Host) -> None:
    _, group = api.send("run-groups", {**BODY, "env": {"STEP_LIMIT": "10"}})

    assert group["env"] == {"STEP_LIMIT": "10"}


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b"null", b"[]", b"3"])
def test_a_body_that_is_no_object_is_refused(api: ApiClient, lab: Host, body: bytes) -> None:
    status, answer = api.send("run-groups", body)

    assert status in (400, 422)
    assert set(answer) == {"detail", "errors"}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=30)
    | st.sampled_from(["baseline", "demo", "default", "low", "no_sysbox"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    [
        "agent",
        "split",
        "competitions",
        "container_config",
        "seeds",
        "experiment",
        "time_limit_s",
        "step_timeout_s",
        "priority",
        "env",
        "acknowledge_no_gpu",
        "other",
    ]
)


@given(body=st.dictionaries(FIELDS, JSON, max_size=6) | JSON, known=st.booleans())
@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_no_body_whatever_is_a_500(api: ApiClient, lab: Host, body: object, known: bool) -> None:
    if known and isinstance(body, dict):
        body = {"agent": "baseline", "split": "demo", **body}

    status, answer = api.send("run-groups", body)

    assert status in (201, 400, 422), answer


# -------------------------------------------------------------------------- container config


def test_the_demo_split_uses_the_config_demo(api: ApiClient, lab: Host) -> None:
    _, group = api.send("run-groups", BODY)

    assert group["container_config"] == "demo"
    assert group["runtime"] == "docker"
    assert group["sandboxed"] is True
    assert group["container_config_note"] is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"engine_id": "", "engine_error": "no socket"}, "No host has a container engine"),
        ({"image_ids": []}, "No host has the image"),
    ],
)
def test_without_an_engine_with_the_image_demo_runs_are_processes(
    api: ApiClient, lab: Host, change: dict, why: str
) -> None:
    Host.objects.update(**change)

    status, group = api.send("run-groups", BODY)

    assert status == 201
    assert group["container_config"] == "demo-process"
    assert group["runtime"] == "process"
    assert group["sandboxed"] is False
    assert group["image_id"] is None
    assert why in group["container_config_note"]


def test_a_config_that_was_named_is_never_replaced(api: ApiClient, lab: Host) -> None:
    Host.objects.update(engine_id="", engine_error="no socket")

    status, answer = api.send("run-groups", {**BODY, "container_config": "demo"})

    assert status == 422
    assert "container_config" in fields(answer)


def test_a_group_waits_for_an_image_that_is_being_built(api: ApiClient, lab: Host) -> None:
    AgentImage.objects.filter(image_name="baseline").update(state="building", image_id="")

    status, group = api.send("run-groups", BODY)
    _, run = api.read(f"run-groups/{group['id']}/runs")
    _, run = api.read(f"runs/{run['items'][0]['id']}")

    assert status == 201
    assert (group["container_config"], group["image_id"]) == ("demo", None)
    assert "image" in run["waiting"]


def test_other_competitions_use_the_first_config_that_fits(api: ApiClient, lab: Host) -> None:
    """`default` asks for sysbox, which the host does not have."""
    _, group = api.send("run-groups", {"agent": "baseline", "split": "low"})

    assert group["container_config"] == "no_sysbox"
    assert group["container_config_note"]


def test_a_config_that_fits_no_host_is_refused_with_what_each_lacks(
    api: ApiClient, lab: Host
) -> None:
    status, answer = api.send("run-groups", {**REAL, "container_config": "default"})

    assert status == 422
    assert fields(answer) == ["container_config"]
    assert "box-1: its engine has no runtime sysbox-runc" in answer["errors"][0]["message"]


def test_an_agent_that_is_not_built_in_never_runs_as_a_process(api: ApiClient, lab: Host) -> None:
    Agent.objects.filter(name="baseline").update(is_builtin=False, runs_as_process=False)

    status, answer = api.send("run-groups", {**BODY, "container_config": "demo-process"})

    assert (status, fields(answer)) == (422, ["container_config"])


# -------------------------------------------------------------------------------- no GPU, data


def test_a_config_without_a_gpu_on_a_fleet_with_gpus_must_be_acknowledged(
    api: ApiClient, lab: Host
) -> None:
    factories.make_gpu(lab)

    status, answer = api.send("run-groups", REAL)
    acknowledged, _ = api.send("run-groups", {**REAL, "acknowledge_no_gpu": True})

    assert (status, fields(answer)) == (422, ["acknowledge_no_gpu"])
    assert acknowledged == 201


def test_with_a_gpu_in_the_config_there_is_nothing_to_acknowledge(
    api: ApiClient, lab: Host
) -> None:
    factories.make_gpu(lab)

    status, _ = api.send("run-groups", {**REAL, "container_config": "no_sysbox_gpu"})

    assert status == 201


def test_demo_competitions_never_need_the_acknowledgement(api: ApiClient, lab: Host) -> None:
    factories.make_gpu(lab)

    assert api.send("run-groups", BODY)[0] == 201


def test_a_fleet_without_gpus_needs_no_acknowledgement(api: ApiClient, lab: Host) -> None:
    assert api.send("run-groups", REAL)[0] == 201


def test_unprepared_data_blocks_with_the_names(api: ApiClient, lab: Host) -> None:
    PreparedData.objects.all().delete()

    status, answer = api.send("run-groups", REAL)

    assert (status, fields(answer)) == (422, ["split"])
    assert "spaceship-titanic" in answer["detail"]


def test_unprepared_demo_data_does_not_refuse(api: ApiClient, lab: Host) -> None:
    PreparedData.objects.all().delete()

    status, group = api.send("run-groups", BODY)
    _, runs = api.read(f"run-groups/{group['id']}/runs")
    _, run = api.read(f"runs/{runs['items'][0]['id']}")

    assert status == 201
    assert "preparing data" in run["waiting"]


# ------------------------------------------------------------------------------------- dry run


def test_a_dry_run_says_what_would_be_made_and_makes_nothing(api: ApiClient, lab: Host) -> None:
    status, plan = api.send("run-groups?dry_run=1", BODY, **{"Idempotency-Key": "k"})

    assert status == 200
    assert plan["run_count"] == 6
    assert plan["container_config"] == "demo"
    assert plan["experiment"] == "first"
    assert (RunGroup.objects.count(), Experiment.objects.count()) == (0, 0)


def test_a_dry_run_is_refused_as_the_real_one_would_be(api: ApiClient, lab: Host) -> None:
    factories.make_gpu(lab)

    status, answer = api.send("run-groups?dry_run=1", REAL)

    assert (status, fields(answer)) == (422, ["acknowledge_no_gpu"])


# --------------------------------------------------------------------------- idempotency keys

KEY = {"Idempotency-Key": "6b1d"}


def test_a_repeated_request_gives_the_first_answer_and_makes_nothing(
    api: ApiClient, lab: Host
) -> None:
    first = api.send("run-groups", BODY, **KEY)
    second = api.send("run-groups", dict(reversed(BODY.items())), **KEY)

    assert first == second
    assert first[0] == 201
    assert RunGroup.objects.count() == 1


def test_the_same_key_with_another_body_is_409(api: ApiClient, lab: Host) -> None:
    api.send("run-groups", BODY, **KEY)
    status, answer = api.send("run-groups", {**BODY, "seeds": 4}, **KEY)

    assert status == 409
    assert answer["detail"]
    assert RunGroup.objects.count() == 1


def test_a_key_belongs_to_its_user(api: ApiClient, stranger_api: ApiClient, lab: Host) -> None:
    api.send("run-groups", BODY, **KEY)

    assert stranger_api.send("run-groups", {**BODY, "seeds": 4}, **KEY)[0] == 201


def test_after_an_error_the_key_is_free(api: ApiClient, lab: Host) -> None:
    assert api.send("run-groups", {**BODY, "agent": "nobody"}, **KEY)[0] == 422
    assert api.send("run-groups", BODY, **KEY)[0] == 201


def test_the_key_is_ignored_on_get(api: ApiClient, lab: Host) -> None:
    api.send("run-groups", BODY, **KEY)

    assert api.read("run-groups", **KEY)[0] == 200


@pytest.mark.django_db(transaction=True)
def test_of_two_requests_at_once_with_one_key_one_makes_the_group(lab: Host) -> None:
    user = factories.make_user("alice")
    clients = [ApiClient(user) for _ in range(6)]
    together = threading.Barrier(len(clients))
    answers: list[tuple[int, dict]] = []

    def press(client: ApiClient) -> None:
        try:
            together.wait()
            answers.append(client.send("run-groups", BODY, **KEY))
        finally:
            connection.close()

    threads = [threading.Thread(target=press, args=[client]) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert RunGroup.objects.count() == 1
    assert [status for status, _ in answers] == [201] * 6
    assert len({str(answer) for _, answer in answers}) == 1


# ---------------------------------------------------------------------------------- who, lists


def test_a_viewer_may_not_start(viewer_api: ApiClient, lab: Host) -> None:
    status, answer = viewer_api.send("run-groups", BODY)

    assert status == 403
    assert answer["detail"]
    assert RunGroup.objects.count() == 0


def test_lists_come_in_pages_that_lead_to_each_other(api: ApiClient, lab: Host) -> None:
    for _ in range(3):
        api.send("run-groups", BODY)

    _, first = api.read("run-groups?limit=2")
    assert first["count"] == 3
    assert [group["id"] for group in first["items"]] == sorted(
        [group["id"] for group in first["items"]], reverse=True
    )
    _, rest = api.read(first["next"].split("/api/v1/")[1])

    assert len(first["items"] + rest["items"]) == 3
    assert rest["next"] is None
    assert set(first) == {"items", "count", "next"}


def test_the_runs_of_a_group_cost_a_fixed_number_of_queries(
    api: ApiClient, lab: Host, django_assert_max_num_queries
) -> None:
    _, group = api.send("run-groups", {**BODY, "seeds": 30})

    with django_assert_max_num_queries(10):
        _, runs = api.read(f"run-groups/{group['id']}/runs")

    assert runs["count"] == 60


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "offset=-1", "limit=100000"])
def test_a_page_that_cannot_be_is_422(api: ApiClient, lab: Host, query: str) -> None:
    status, answer = api.read(f"run-groups?{query}")

    assert status == 422
    assert fields(answer) == [query.split("=")[0]]


def test_a_process_config_has_no_image_pinned(api: ApiClient, lab: Host) -> None:
    _, group = api.send("run-groups", {**BODY, "container_config": "demo-process"})

    row = RunGroup.objects.get(pk=group["id"])
    assert row.image is None
    assert row.runtime == ContainerConfig.Runtime.PROCESS
    assert Run.objects.filter(group=row).count() == 6


def test_the_group_belongs_to_the_token_owner_and_team(
    api: ApiClient, alice: User, lab: Host
) -> None:
    _, group = api.send("run-groups", BODY)

    row = RunGroup.objects.get(pk=group["id"])
    assert (row.created_by, row.team) == (alice, alice.team)
