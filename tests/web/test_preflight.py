"""What would stop a run group, or should be known before Start."""

import dataclasses
from pathlib import Path

import pytest

from mlebench_web.accounts import vault
from mlebench_web.accounts.models import Role
from mlebench_web.catalog.models import Agent, AgentImage, Checkout, Competition
from mlebench_web.fleet.models import Host, PreparedData
from runs import preflight, submit
from runs.request import RequestInvalid, RunGroupRequest
from tests import factories
from tests.support.lab import make_lab

DEMO = RunGroupRequest(agent="baseline", split="demo", seeds=3)
REAL = RunGroupRequest(agent="baseline", split="low", seeds=3, container_config="no_sysbox")


@pytest.fixture
def lab(db: None) -> Host:
    return make_lab()


def found(request: RunGroupRequest, level: str, **change: object) -> list[str]:
    """Messages of that level, each after its field."""
    checks = preflight.check(dataclasses.replace(request, **change))
    return [f"{check.field}: {check.message}" for check in checks if check.level == level]


def test_nothing_stands_against_a_demo_group(lab: Host) -> None:
    assert preflight.check(DEMO) == []


def test_a_wrong_request_has_no_preflight(lab: Host) -> None:
    with pytest.raises(RequestInvalid):
        preflight.check(dataclasses.replace(DEMO, agent="nobody"))


def test_what_blocks_comes_first(lab: Host) -> None:
    PreparedData.objects.all().delete()
    factories.make_gpu(lab)

    levels = [check.level for check in preflight.check(dataclasses.replace(REAL, seeds=1))]

    assert levels == sorted(levels, key=["block", "acknowledge", "inform"].index)
    assert {"block", "acknowledge", "inform"} == set(levels)


# ---------------------------------------------------------------------------------------- agent


def test_a_secret_that_is_not_stored_blocks_with_its_name(lab: Host) -> None:
    Agent.objects.update(
        env_vars={"OPENAI_API_KEY": "${{ secrets.OPENAI_API_KEY }}", "LEVEL": 3},
        kwargs={"key": "${{secrets.HF}} trailing", "model": "o1"},
    )

    (message,) = found(DEMO, "block")

    assert message.startswith("agent:")
    assert "HF, OPENAI_API_KEY" in message


def test_a_stored_secret_blocks_no_more_and_only_who_has_it(lab: Host) -> None:
    Agent.objects.update(env_vars={"OPENAI_API_KEY": "${{ secrets.OPENAI_API_KEY }}"})
    alice, eve = factories.make_user("alice"), factories.make_user("eve", team="other")
    assert alice.team is not None
    vault.put("OPENAI_API_KEY", "sk-of-the-vision-team", owner=alice.team, by=None)

    assert preflight.check(DEMO, by=alice) == []
    [check] = preflight.check(DEMO, by=eve)
    assert (check.level, check.field) == ("block", "agent")
    assert "OPENAI_API_KEY" in check.message
    assert "set_secret NAME --user eve" in check.fix


def test_a_variable_of_the_group_may_name_a_secret_and_replace_the_agents_own(lab: Host) -> None:
    Agent.objects.update(env_vars={"OPENAI_API_KEY": "${{ secrets.NOBODY_HAS_IT }}"})
    alice = factories.make_user("alice")
    request = dataclasses.replace(DEMO, env={"OPENAI_API_KEY": "${{ secrets.MINE }}"})
    assert "MINE" in preflight.check(request, by=alice)[0].message

    vault.put("MINE", "sk-of-alice-herself", owner=alice, by=alice)

    assert preflight.check(request, by=alice) == []


@pytest.mark.parametrize(
    "env",
    [{"API_KEY": "sk-12345"}, {"X": "${{ secrets.A }} and more"},
     {"COMPETITION_ID": "${{ secrets.A }}"}],
)  # fmt: skip
def test_a_value_that_is_no_placeholder_alone_is_refused(lab: Host, env: dict[str, str]) -> None:
    with pytest.raises(RequestInvalid) as caught:
        preflight.check(dataclasses.replace(DEMO, env=env))

    assert [error.field for error in caught.value.errors] == ["env"]


def test_changed_code_is_told_and_stops_nobody(lab: Host, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM mlebench-env\n")
    checkout = Checkout.objects.create(name="ours", path=str(tmp_path), env_image="x")
    Agent.objects.filter(name="baseline").update(
        is_builtin=False, checkout=checkout, folder=str(tmp_path)
    )
    AgentImage.objects.filter(image_name="baseline").update(folder=str(tmp_path))

    [check] = preflight.check(dataclasses.replace(DEMO, container_config="demo"))

    assert check.level == "inform"
    assert "has changed since its image was built" in check.message


@pytest.mark.parametrize(("role", "blocks"), [(Role.ADMIN, False), (Role.LEAD, True)])
def test_a_config_with_keys_for_admins_is_for_admins(lab: Host, role: Role, blocks: bool) -> None:
    factories.make_config("open", settings={"nano_cpus": 1e9, "cap_add": ["SYS_PTRACE"]})
    person = factories.make_user("pat", role=role)

    checks = preflight.check(dataclasses.replace(DEMO, container_config="open"), by=person)

    assert [check.field for check in checks if check.level == "block"] == (
        ["container_config"] if blocks else []
    )


@pytest.mark.parametrize(
    ("role", "level"), [(Role.ADMIN, "inform"), (Role.LEAD, "block"), (Role.RESEARCHER, "block")]
)
def test_a_privileged_agent_needs_an_admin(lab: Host, role: Role, level: str) -> None:
    Agent.objects.update(privileged=True)
    Host.objects.update(accepts_privileged=True)
    person = factories.make_user("pat", role=role)

    checks = preflight.check(DEMO, by=person)

    assert [(check.level, check.field) for check in checks] == [(level, "agent")]
    assert "it can take over its host and read every answer there" in checks[0].message


def test_without_a_person_nobody_accepts_a_privileged_agent(lab: Host) -> None:
    Agent.objects.update(privileged=True)
    Host.objects.update(accepts_privileged=True)

    assert len(found(DEMO, "block")) == 1


def test_a_privileged_agent_needs_a_host_that_accepts_it(lab: Host) -> None:
    Agent.objects.update(privileged=True)
    ada = factories.make_user("ada", role=Role.ADMIN)

    (check,) = [each for each in preflight.check(DEMO, by=ada) if each.level == "block"]

    assert check.field == "container_config"
    assert f"{lab.name}: it does not accept privileged containers" in check.message
    assert "sysbox-runc" in check.fix
    assert "I_ACCEPT_RUNNING_PRIVILEGED_CONTAINERS=1" in check.fix


def test_sysbox_holds_a_privileged_agent(lab: Host) -> None:
    Agent.objects.update(privileged=True)
    Host.objects.update(engine_runtimes=["runc", "sysbox-runc"])
    ada = factories.make_user("ada", role=Role.ADMIN)

    checks = preflight.check(dataclasses.replace(REAL, container_config="default"), by=ada)

    assert not [check for check in checks if check.level == "block"]
    (message,) = [check.message for check in checks if "privileged" in check.message]
    assert "sysbox-runc gives it that in a world of its own" in message


@pytest.mark.parametrize(
    ("settings", "marked"),
    [({"cap_add": ["SYS_PTRACE"]}, False), ({"devices": ["/dev/fuse"]}, True)],
)
def test_a_config_that_opens_the_host_says_so(
    lab: Host, settings: dict[str, object], marked: bool
) -> None:
    factories.make_config("open", settings=settings)
    ada = factories.make_user("ada", role=Role.ADMIN)

    checks = preflight.check(dataclasses.replace(DEMO, container_config="open"), by=ada)

    assert any("marked unsandboxed" in check.message for check in checks) == marked


# ---------------------------------------------------------------------------------------- image


def test_an_image_that_was_never_built_blocks_with_the_command(lab: Host) -> None:
    AgentImage.objects.all().delete()

    checks = preflight.check(REAL)

    assert checks[0].level == "block"
    assert "manage.py build_agent baseline" in checks[0].fix


def test_a_failed_build_says_why(lab: Host) -> None:
    AgentImage.objects.update(state="failed", error="pip found no lightgbm")

    assert "pip found no lightgbm" in found(REAL, "block")[0]


def test_an_image_that_is_being_built_is_waited_for(lab: Host) -> None:
    AgentImage.objects.update(state="building")

    assert found(REAL, "block") == []
    assert any("being built" in message for message in found(REAL, "inform"))


def test_an_image_that_no_online_host_has_blocks(lab: Host) -> None:
    Host.objects.update(image_ids=[])

    assert "No online host has the image" in found(REAL, "block")[0]


def test_the_engine_that_built_it_has_it_before_it_reports_so(lab: Host) -> None:
    Host.objects.update(image_ids=[])
    AgentImage.objects.update(engine_id=lab.engine_id)

    assert found(REAL, "block") == []


# ---------------------------------------------------------------------------------------- hosts


def test_a_config_for_more_than_any_host_has_blocks(lab: Host) -> None:
    factories.make_config("huge", settings={"mem_limit": "900G"})

    (message,) = found(REAL, "block", container_config="huge")

    assert "No online host can ever run huge. box-1: it offers" in message


def test_a_gpu_config_without_a_gpu_host_blocks(lab: Host) -> None:
    (message,) = found(REAL, "block", container_config="no_sysbox_gpu")

    assert "box-1: it has no GPU" in message


def test_a_gpu_that_is_broken_is_none(lab: Host) -> None:
    factories.make_gpu(lab, fault="lost")

    assert len(found(REAL, "block", container_config="no_sysbox_gpu")) == 1


def test_sysbox_with_a_gpu_is_refused_with_the_reason(lab: Host) -> None:
    factories.make_gpu(lab)
    factories.make_config("both", settings={"gpus": 1, "runtime": "sysbox-runc"})

    (message,) = found(REAL, "block", container_config="both")

    assert "cannot give GPUs" in message


def test_a_config_with_keys_that_are_not_allowed_is_refused(lab: Host) -> None:
    factories.make_config("mounts", settings={"volumes": {"/": "/host"}})

    (message,) = found(REAL, "block", container_config="mounts")

    assert "volumes" in message


def test_it_does_not_stop_those_who_named_no_config(lab: Host) -> None:
    factories.make_config("mounts", settings={"volumes": {"/": "/host"}}, position=-1)

    assert found(REAL, "block", container_config=None) == []


def test_with_no_host_online_runs_wait(lab: Host) -> None:
    Host.objects.update(worker_seen_at=None)

    assert found(REAL, "block") == []
    assert any("No worker host is online" in message for message in found(REAL, "inform"))


def test_a_draining_host_still_fits(lab: Host) -> None:
    Host.objects.update(is_draining=True)

    assert found(REAL, "block") == []
    assert any("takes no new runs now" in message for message in found(REAL, "inform"))


def test_a_host_that_is_offline_does_not_count_beside_one_that_is_not(lab: Host) -> None:
    strong = factories.make_host("box-2", memory_bytes=2 * 10**12, worker_seen_at=None)
    factories.make_config("huge", settings={"mem_limit": "900G"})

    assert len(found(REAL, "block", container_config="huge")) == 1

    Host.objects.filter(pk=strong.pk).update(worker_seen_at=lab.worker_seen_at)
    assert found(REAL, "block", container_config="huge") == []


# ------------------------------------------------------------------------------------ no GPU, data


def test_an_idle_gpu_must_be_acknowledged(lab: Host) -> None:
    factories.make_gpu(lab)
    factories.make_gpu(lab, 1)

    (message,) = found(REAL, "acknowledge")

    assert message.startswith("acknowledge_no_gpu: no_sysbox gives runs no GPU")
    assert "the fleet has 2" in message


def test_a_mix_of_demo_and_real_competitions_is_real(lab: Host) -> None:
    factories.make_gpu(lab)

    mixed = dataclasses.replace(
        REAL, split=None, competitions=("demo-tree-crowns", "spaceship-titanic")
    )

    assert len(found(mixed, "acknowledge")) == 1


def test_data_that_only_an_offline_host_has_is_not_prepared(lab: Host) -> None:
    other = factories.make_host("box-2", worker_seen_at=None)
    PreparedData.objects.update(host=other)

    (message,) = found(REAL, "block")

    assert "spaceship-titanic" in message


def test_demo_data_that_is_not_prepared_is_only_said(lab: Host) -> None:
    PreparedData.objects.all().delete()

    assert found(DEMO, "block") == []
    assert "demo-diamond-prices, demo-tree-crowns wait" in found(DEMO, "inform")[0]


# ---------------------------------------------------------------------------------------- grading

LACKS = "There is no .venv-mlebench/bin/python. `./run mlebench` makes one."


def of_a_checkout() -> None:
    checkout = Checkout.objects.create(name="mle-bench", path="/nowhere")
    Competition.objects.filter(name="spaceship-titanic").update(checkout=checkout)


def test_without_mlebench_on_any_host_a_competition_of_a_checkout_blocks(lab: Host) -> None:
    of_a_checkout()
    Host.objects.update(mlebench_error=LACKS)

    (message,) = found(REAL, "block")

    assert message == f"split: No host can grade spaceship-titanic. box-1: {LACKS}"
    assert found(DEMO, "block") == []


def test_hosts_that_cannot_grade_are_named_where_another_can(lab: Host) -> None:
    of_a_checkout()
    factories.make_host("box-2", mlebench_error=LACKS)

    assert found(REAL, "block") == []
    assert any("do not go to box-2" in message for message in found(REAL, "inform"))


def test_a_competition_of_which_only_facts_are_known_blocks(lab: Host) -> None:
    Competition.objects.filter(name="spaceship-titanic").update(folder="")

    (message,) = found(REAL, "block")

    assert "There is no grader for spaceship-titanic" in message


# ---------------------------------------------------------------------------------- comparability


def test_each_difference_from_the_official_runs_is_named(lab: Host) -> None:
    factories.make_gpu(lab, name="NVIDIA T4")

    said = " ".join(
        found(REAL, "inform", container_config="no_sysbox_gpu", seeds=1, time_limit_s=3600)
    )

    for part in ("1 h, not 24 h", "8 vCPUs, not 36", "memory, not 440", "NVIDIA T4", "3 seeds"):
        assert part in said, part


def test_official_conditions_leave_nothing_to_say(db: None) -> None:
    make_lab()
    host = factories.make_host("box-1", cpus=36, slots=1, memory_bytes=442 * 10**9)
    Host.objects.filter(pk=host.pk).update(memory_reserve_bytes=0)
    factories.make_gpu(host)
    factories.make_config("official", settings={"nano_cpus": 36e9, "mem_limit": 440e9, "gpus": 1})

    assert preflight.check(dataclasses.replace(REAL, container_config="official")) == []


def test_the_process_runtime_is_marked(lab: Host) -> None:
    assert any(
        "unsandboxed" in message
        for message in found(DEMO, "inform", container_config="demo-process")
    )


def test_the_default_config_for_demo_runs_needs_only_an_engine_with_the_image(lab: Host) -> None:
    def chosen() -> str:
        return submit.plan(DEMO, by=None).config.name

    assert chosen() == "demo"
    Host.objects.update(image_ids=[])
    assert chosen() == "demo-process"
    AgentImage.objects.update(state="building")
    assert chosen() == "demo"


def test_a_host_that_has_not_described_itself_yet_lacks_nothing(lab: Host) -> None:
    """At a first start a group may come before the host service has looked around."""
    Host.objects.update(service_seen_at=None, engine_id="", image_ids=[])

    assert submit.plan(DEMO, by=None).config.name == "demo"

    AgentImage.objects.all().delete()
    assert submit.plan(DEMO, by=None).config.name == "demo-process"
