"""Which attempt a host takes, and the sentence for one that waits."""

from dataclasses import replace

import pytest

from runs.core.placement import Need, Offer, grant, in_order, never_fits, not_now, why_waiting

NEED = Need(attempt_id=1, runtime="docker", competition="a", image_id="sha256:1")
OFFER = Offer(
    host="box",
    slots=2,
    cpus=8,
    memory_bytes=32_000_000_000,
    engine=True,
    engine_runtimes=frozenset({"runc"}),
    process_ready=True,
    prepared=frozenset({"a"}),
    image_ids=frozenset({"sha256:1"}),
    gpus=2,
    free_slots=2,
    free_cpus=8,
    free_memory_bytes=32_000_000_000,
    free_gpus=("GPU-a", "GPU-b"),
)


def test_a_need_that_names_nothing_gets_the_share_of_one_slot() -> None:
    got = grant(NEED, OFFER)

    assert (got.cpus, got.memory_bytes, got.gpus) == (4, 16_000_000_000, ())


def test_gpus_are_given_by_uuid_and_minus_one_means_all() -> None:
    assert grant(replace(NEED, gpus=1), OFFER).gpus == ("GPU-a",)
    assert grant(replace(NEED, gpus=-1), OFFER).gpus == ("GPU-a", "GPU-b")


@pytest.mark.parametrize(
    ("need", "offer", "says"),
    [
        pytest.param(NEED, replace(OFFER, engine=False), "no container engine", id="engine"),
        pytest.param(
            replace(NEED, runtime="process"),
            replace(OFFER, process_ready=False),
            "Python for agents",
            id="process",
        ),
        pytest.param(
            replace(NEED, engine_runtime="sysbox-runc"),
            OFFER,
            "no runtime sysbox-runc",
            id="runtime",
        ),
        pytest.param(replace(NEED, gpus=-1), replace(OFFER, gpus=0), "no GPU", id="no gpu"),
        pytest.param(replace(NEED, gpus=3), OFFER, "2 of 3 GPUs", id="gpus"),
        pytest.param(replace(NEED, cpus=9), OFFER, "8 of 9 CPUs", id="cpus"),
        pytest.param(replace(NEED, memory_bytes=10**12), OFFER, "32.0 of 1000.0 GB", id="memory"),
    ],
)
def test_what_can_never_fit(need: Need, offer: Offer, says: str) -> None:
    assert says in never_fits(need, offer)
    assert says in not_now(need, offer)


@pytest.mark.parametrize(
    ("need", "offer", "says"),
    [
        pytest.param(NEED, replace(OFFER, draining=True), "draining", id="draining"),
        pytest.param(NEED, replace(OFFER, put_aside="disk"), "put aside: disk", id="aside"),
        pytest.param(NEED, replace(OFFER, prepared=frozenset()), "preparing data", id="data"),
        pytest.param(replace(NEED, image_id=""), OFFER, "still being built", id="image"),
        pytest.param(
            NEED,
            replace(OFFER, image_ids=frozenset(), elsewhere_image_ids=frozenset({"sha256:1"})),
            "on another host",
            id="image elsewhere",
        ),
        pytest.param(NEED, replace(OFFER, free_slots=0), "slots are taken", id="slots"),
        pytest.param(replace(NEED, gpus=2), replace(OFFER, free_gpus=("x",)), "1 of 2", id="gpus"),
        pytest.param(NEED, replace(OFFER, free_cpus=3.5), "3.5 of 4 CPUs", id="cpus"),
        pytest.param(NEED, replace(OFFER, free_memory_bytes=10**9), "1.0 of 16.0 GB", id="memory"),
    ],
)
def test_what_does_not_fit_now(need: Need, offer: Offer, says: str) -> None:
    assert never_fits(need, offer) == ""
    assert says in not_now(need, offer)


def test_a_host_that_cannot_grade_the_competition_leaves_it_to_another() -> None:
    """An agent's 24 hours must not end where nobody can give them a score."""
    lacking = replace(OFFER, ungradable=frozenset({"a"}), why_ungradable="No mlebench here.")

    assert not_now(NEED, lacking) == "it cannot grade a: No mlebench here"
    assert not_now(replace(NEED, competition="b"), replace(lacking, prepared=frozenset("b"))) == ""
    assert never_fits(NEED, lacking) == ""


def test_an_image_that_no_host_has_is_claimed_so_that_its_loss_is_named() -> None:
    assert not_now(NEED, replace(OFFER, image_ids=frozenset())) == ""


def test_rounding_of_cpu_shares_refuses_nobody() -> None:
    third = replace(OFFER, slots=3, cpus=1, free_cpus=1 - 1 / 3 - 1 / 3)

    assert not_now(NEED, third) == ""


def test_order_is_priority_then_the_team_that_holds_least_then_the_longest() -> None:
    first = replace(NEED, attempt_id=1, priority=1, team=1)
    short = replace(NEED, attempt_id=2, team=1, expected_seconds=10)
    long = replace(NEED, attempt_id=3, team=1, expected_seconds=90)
    other = replace(NEED, attempt_id=4, team=2, expected_seconds=1)

    ordered = in_order([short, other, long, first], {1: 8.0})

    assert [need.attempt_id for need in ordered] == [1, 4, 3, 2]


def test_the_sentence_for_one_that_waits() -> None:
    full = replace(OFFER, free_slots=0)
    small = replace(OFFER, host="small", gpus=0)
    need = replace(NEED, gpus=1)

    assert why_waiting(need, []) == "No worker host is online."
    assert "starts within seconds" in why_waiting(need, [full, OFFER])
    assert why_waiting(need, [full, small]) == "Waiting. box: all its slots are taken."
    assert why_waiting(need, [small]).startswith("No online host can ever run it. small: ")
