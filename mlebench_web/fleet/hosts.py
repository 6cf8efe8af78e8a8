"""Rows of hosts and their GPUs: the only module that writes what a host says of itself.

All times are the database's, so that hosts with wrong clocks can be compared.
"""

import re
from datetime import UTC, datetime

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, transaction
from django.db.models import Case, F, Value, When
from django.db.models.functions import Now

from mlebench_web.fleet import inventory
from mlebench_web.fleet.gpus import GpuFacts, GpuReading
from mlebench_web.fleet.inventory import Inventory
from mlebench_web.fleet.models import Gpu, Host

NOT_REPORTED = "No longer reported by the driver."


def now() -> datetime:
    """The database's clock, the same that Now() writes. Costs one query."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            # As Now() there, with milliseconds; CURRENT_TIMESTAMP has whole seconds only.
            cursor.execute("SELECT STRFTIME('%Y-%m-%d %H:%M:%f', 'NOW')")
            return datetime.fromisoformat(cursor.fetchone()[0]).replace(tzinfo=UTC)
        cursor.execute("SELECT STATEMENT_TIMESTAMP()")
        at: datetime = cursor.fetchone()[0]
        return at.astimezone(UTC)


def slots() -> int:
    """How many runs at once this host takes at most."""
    return inventory.slots()


def boot_id() -> str:
    """Changes with every boot of this machine."""
    return inventory.boot_id()


def this_host() -> Host:
    """The row of this host, by HOST_NAME; made at the first call of any process."""
    name = settings.HOST_NAME
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ImproperlyConfigured(
            f"HOST_NAME={name!r}: write 1 to 100 letters, digits, dots, dashes and underscores."
        )
    host, _ = Host.objects.get_or_create(name=name, defaults={"slots": slots()})
    return host


def worker_beat(host: Host) -> None:
    """The Celery worker of this host is alive."""
    Host.objects.filter(pk=host.pk).update(worker_seen_at=Now())


def note_full_disk(host: Host) -> None:
    """The disk of this host's attempts is full at this moment."""
    Host.objects.filter(pk=host.pk).update(disk_full_at=Now())


def publish(host: Host, found: Inventory) -> None:
    """Write down what the host has, in one transaction. Deletes nothing.

    What people decide about a host (draining, put aside) is left alone.
    """
    with transaction.atomic():
        Host.objects.filter(pk=host.pk).update(
            service_seen_at=Now(),
            boot_id=found.boot_id,
            slots=found.slots,
            cpus=found.cpus,
            memory_bytes=found.memory_bytes,
            memory_reserve_bytes=found.memory_reserve_bytes,
            cpu_model=found.cpu_model[:200],
            disk_total_bytes=found.disk_total_bytes,
            disk_free_bytes=found.disk_free_bytes,
            engine_id=found.engine.engine_id,
            engine_version=found.engine.version,
            engine_runtimes=sorted(found.engine.runtimes),
            engine_error=found.engine.error,
            accepts_privileged=settings.ACCEPTS_PRIVILEGED,
            image_ids=sorted(found.engine.image_ids),
            gpu_error=found.gpus.fault,
            gpu_driver=found.gpus.driver,
            ml_python_error=found.ml_python_error,
            mlebench_error=found.mlebench_error,
            version=found.version,
        )
        _publish_gpus(host, found.gpus)


def _publish_gpus(host: Host, reading: GpuReading) -> None:
    uuids = [gpu.uuid for gpu in reading.gpus]
    # Two workers with names of their own on one machine see the same devices: they stay with the
    # one that has them. A card that was carried to another machine moves after one lease.
    elsewhere = set(
        Gpu.objects.filter(uuid__in=uuids, is_present=True, seen_at__gt=Now() - settings.LEASE_TTL)
        .exclude(host=host)
        .values_list("uuid", flat=True)
    )
    Gpu.objects.bulk_create(
        [_row(host, gpu) for gpu in reading.gpus if gpu.uuid not in elsewhere],
        update_conflicts=True,
        unique_fields=["uuid"],
        update_fields=[
            "host",
            "index",
            "name",
            "memory_bytes",
            "memory_used_bytes",
            "utilisation",
            "temperature_c",
            "power_w",
            "fault",
            "is_present",
            "parent_uuid",
            "is_mig_parent",
            "seen_at",
        ],
    )
    silent = Gpu.objects.filter(host=host, is_present=True).exclude(uuid__in=uuids)
    unread = {
        "memory_used_bytes": None,
        "utilisation": None,
        "temperature_c": None,
        "power_w": None,
    }
    if reading.fault:
        # The driver does not answer, which is no proof that the devices are gone: a container
        # that runs on one goes on. They are only not leased.
        silent.update(fault=reading.fault[:300], **unread)
    else:
        # Why it went, where that was seen, says more than that it is gone.
        reason = Case(When(fault="", then=Value(NOT_REPORTED)), default=F("fault"))
        silent.update(is_present=False, fault=reason, **unread)


def _row(host: Host, gpu: GpuFacts) -> Gpu:
    return Gpu(
        host=host,
        uuid=gpu.uuid,
        index=gpu.index,
        name=gpu.name[:200],
        memory_bytes=gpu.memory_bytes,
        memory_used_bytes=gpu.memory_used_bytes,
        utilisation=gpu.utilisation,
        temperature_c=gpu.temperature_c,
        power_w=gpu.power_w,
        fault=gpu.fault[:300],
        is_present=True,
        parent_uuid=gpu.parent_uuid,
        is_mig_parent=gpu.is_mig_parent,
        seen_at=Now(),
    )
