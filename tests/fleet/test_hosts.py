"""The row of a host and of its GPUs."""

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.db.models.functions import Now
from pytest_django import DjangoAssertNumQueries, Settings

from mlebench_web.fleet import hosts
from mlebench_web.fleet.gpus import GpuFacts, GpuReading
from mlebench_web.fleet.inventory import EngineFacts, Inventory
from mlebench_web.fleet.models import Gpu, Host

A = GpuFacts(uuid="GPU-a", index=0, name="NVIDIA A10", memory_bytes=24 * 2**30, utilisation=3)
B = GpuFacts(uuid="GPU-b", index=1, name="NVIDIA A10")

FOUND = Inventory(
    boot_id="boot-1",
    slots=3,
    cpus=7.5,
    memory_bytes=64 * 2**30,
    memory_reserve_bytes=2 * 2**30,
    cpu_model="Example CPU",
    disk_total_bytes=100,
    disk_free_bytes=None,
    ml_python_error="none",
    version="9",
    engine=EngineFacts(
        engine_id="E", version="27", runtimes=("sysbox-runc", "runc"), image_ids=("sha256:1",)
    ),
    gpus=GpuReading(driver="580", gpus=(A, B)),
)


def with_gpus(*gpus: GpuFacts, fault: str = "") -> Inventory:
    return replace(FOUND, gpus=GpuReading(driver="580", gpus=gpus, fault=fault))


@pytest.fixture
def other(db: None) -> Host:
    return Host.objects.create(name="other-host")


def test_the_clock_is_the_databases_and_the_one_that_now_writes(
    host: Host, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    before = hosts.now()
    Host.objects.filter(pk=host.pk).update(worker_seen_at=Now())
    with django_assert_num_queries(1):
        after = hosts.now()

    host.refresh_from_db()
    assert host.worker_seen_at is not None
    assert before <= host.worker_seen_at <= after
    assert abs(after - datetime.now(UTC)) < timedelta(seconds=5)
    assert after.tzinfo is UTC


def test_the_clock_is_finer_than_a_second(db: None) -> None:
    readings = set()
    while len(readings) < 3:
        readings.add(hosts.now())

    assert max(readings) - min(readings) < timedelta(milliseconds=900)


def test_a_host_is_made_once_under_its_name(db: None, settings: Settings) -> None:
    settings.HOST_NAME = "gpu-04.lab"

    assert hosts.this_host() == hosts.this_host()
    assert Host.objects.get().name == "gpu-04.lab"


@pytest.mark.django_db(transaction=True)
def test_processes_that_start_at_once_make_one_row(settings: Settings) -> None:
    settings.HOST_NAME = "racer"
    found: list[int] = []
    together = threading.Barrier(6)

    def start() -> None:
        together.wait()
        found.append(hosts.this_host().pk)
        connection.close()

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 6
    assert len(set(found)) == 1


@pytest.mark.parametrize("name", ["", "a/b", "a b", "x" * 101, "-a", "a\n"])
def test_a_name_that_no_address_can_hold_is_refused(
    db: None, settings: Settings, name: str
) -> None:
    settings.HOST_NAME = name

    with pytest.raises(ImproperlyConfigured, match="HOST_NAME="):
        hosts.this_host()


def test_a_host_is_published_in_full(host: Host) -> None:
    hosts.publish(host, FOUND)

    host.refresh_from_db()
    assert (host.boot_id, host.slots, host.cpus) == ("boot-1", 3, 7.5)
    assert (host.memory_bytes, host.memory_reserve_bytes) == (64 * 2**30, 2 * 2**30)
    assert (host.disk_total_bytes, host.disk_free_bytes) == (100, None)
    assert (host.engine_id, host.engine_version) == ("E", "27")
    assert host.engine_runtimes == ["runc", "sysbox-runc"]
    assert host.image_ids == ["sha256:1"]
    assert (host.gpu_driver, host.gpu_error) == ("580", "")
    assert host.service_seen_at is not None
    assert host.worker_seen_at is None
    first, second = Gpu.objects.filter(host=host)
    assert (first.uuid, first.memory_bytes, first.utilisation) == ("GPU-a", 24 * 2**30, 3)
    assert (second.uuid, second.memory_bytes, second.utilisation) == ("GPU-b", None, None)
    assert first.is_present
    assert first.seen_at is not None


def test_publishing_leaves_what_people_decided(host: Host) -> None:
    Host.objects.filter(pk=host.pk).update(is_draining=True, put_aside="three failures")

    hosts.publish(host, FOUND)

    host.refresh_from_db()
    assert host.is_draining
    assert host.put_aside == "three failures"


def test_a_second_reading_changes_the_rows_in_place(host: Host) -> None:
    hosts.publish(host, FOUND)
    pk = Gpu.objects.get(uuid="GPU-a").pk

    hosts.publish(host, with_gpus(replace(A, utilisation=None, fault="In use", index=5), B))

    gpu = Gpu.objects.get(uuid="GPU-a")
    assert (gpu.pk, gpu.utilisation, gpu.fault, gpu.index) == (pk, None, "In use", 5)
    assert Gpu.objects.count() == 2


def test_a_gpu_that_is_gone_stays_as_a_row(host: Host) -> None:
    hosts.publish(host, FOUND)

    hosts.publish(host, with_gpus(A))

    gone = Gpu.objects.get(uuid="GPU-b")
    assert (gone.is_present, gone.fault) == (False, hosts.NOT_REPORTED)
    hosts.publish(host, FOUND)
    back = Gpu.objects.get(uuid="GPU-b")
    assert (back.is_present, back.fault) == (True, "")


def test_a_gpu_that_was_lost_and_then_gone_keeps_the_reason(host: Host) -> None:
    hosts.publish(host, with_gpus(A, replace(B, fault="The GPU is lost: why")))

    hosts.publish(host, with_gpus(A))

    assert Gpu.objects.get(uuid="GPU-b").fault == "The GPU is lost: why"


def test_a_driver_that_does_not_answer_is_no_proof_that_gpus_are_gone(host: Host) -> None:
    hosts.publish(host, FOUND)

    hosts.publish(host, with_gpus(fault="The NVIDIA driver was upgraded without a reboot"))

    host.refresh_from_db()
    assert host.gpu_error.startswith("The NVIDIA driver")
    for gpu in Gpu.objects.all():
        assert gpu.is_present
        assert gpu.fault == host.gpu_error
        assert gpu.utilisation is None


def test_a_gpu_that_was_carried_to_another_machine_moves(host: Host, other: Host) -> None:
    hosts.publish(host, FOUND)
    Gpu.objects.update(seen_at=hosts.now() - timedelta(minutes=10))

    hosts.publish(other, with_gpus(B))

    assert Gpu.objects.get(uuid="GPU-b").host == other
    assert Gpu.objects.get(uuid="GPU-a").host == host
    hosts.publish(host, with_gpus(A))
    assert Gpu.objects.get(uuid="GPU-b").is_present


def test_two_workers_on_one_machine_do_not_take_gpus_from_each_other(
    host: Host, other: Host
) -> None:
    hosts.publish(host, FOUND)

    hosts.publish(other, FOUND)

    assert set(Gpu.objects.values_list("host__name", flat=True)) == {"test-host"}


def test_a_publication_has_a_fixed_number_of_queries(
    host: Host, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    many = [replace(A, uuid=f"GPU-{number}", index=number) for number in range(16)]
    with django_assert_num_queries(6):
        hosts.publish(host, with_gpus(A))
    with django_assert_num_queries(6):
        hosts.publish(host, with_gpus(A, *many))


def test_a_beat_is_the_workers_only(host: Host) -> None:
    hosts.worker_beat(host)

    host.refresh_from_db()
    assert host.worker_seen_at is not None
    assert host.service_seen_at is None
    assert host.is_online(hosts.now())
