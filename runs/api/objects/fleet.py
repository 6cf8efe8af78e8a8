"""Hosts and their GPUs."""

from datetime import datetime

from pydantic import BaseModel

from mlebench_web.fleet.models import Gpu, Host, PreparedData
from runs.models import Attempt


class GpuObject(BaseModel):
    uuid: str
    index: int
    name: str
    memory_bytes: int | None
    memory_used_bytes: int | None
    utilisation: int | None
    temperature_c: int | None
    fault: str | None
    run: int | None  # that holds it

    @classmethod
    def of(cls, gpu: Gpu) -> "GpuObject":
        lease = next((each for each in gpu.leases.all() if each.released_at is None), None)
        return cls(
            uuid=gpu.uuid,
            index=gpu.index,
            name=gpu.name,
            memory_bytes=gpu.memory_bytes,
            memory_used_bytes=gpu.memory_used_bytes,
            utilisation=gpu.utilisation,
            temperature_c=gpu.temperature_c,
            fault=gpu.fault or None,
            run=lease.attempt.run_id if lease else None,
        )


class HostObject(BaseModel):
    name: str
    state: str  # online, draining, put_aside, offline
    put_aside: str | None
    failing: str | None  # as put aside, but the last host that can be used
    declared_lost_at: datetime | None
    is_draining: bool
    worker_seen_at: datetime | None
    service_seen_at: datetime | None
    slots: int
    attempts: int  # that have not ended
    cpus: float | None
    cpu_model: str | None
    memory_bytes: int | None
    disk_total_bytes: int | None
    disk_free_bytes: int | None
    engine_version: str | None
    engine_runtimes: list[str]
    engine_error: str | None
    gpu_driver: str | None
    gpu_error: str | None
    gpus: list[GpuObject]
    prepared: list[str]

    @classmethod
    def of(cls, host: Host, at: datetime) -> "HostObject":
        return cls(
            name=host.name,
            state=host_state(host, at),
            put_aside=host.put_aside or None,
            failing=host.failing or None,
            declared_lost_at=host.declared_lost_at if host.is_declared_lost() else None,
            is_draining=host.is_draining,
            worker_seen_at=host.worker_seen_at,
            service_seen_at=host.service_seen_at,
            slots=host.slots,
            attempts=Attempt.objects.unended().filter(host=host).count(),
            cpus=host.cpus,
            cpu_model=host.cpu_model or None,
            memory_bytes=host.memory_bytes,
            disk_total_bytes=host.disk_total_bytes,
            disk_free_bytes=host.disk_free_bytes,
            engine_version=host.engine_version or None,
            engine_runtimes=host.engine_runtimes,
            engine_error=host.engine_error or None,
            gpu_driver=host.gpu_driver or None,
            gpu_error=host.gpu_error or None,
            gpus=[GpuObject.of(gpu) for gpu in host.gpus.all() if gpu.is_present],
            prepared=sorted(
                each.competition.name
                for each in host.prepared.all()
                if each.state == PreparedData.State.READY
            ),
        )


class NotMoved(BaseModel):
    run: int
    why: str


class HostDrained(HostObject):
    # Of agent time, until its agents have ended, at most; null: none is at work.
    longest_left_seconds: float | None
    # Of a move: the runs that go on where they are.
    not_moved: list[NotMoved]


class HostLost(HostObject):
    lost: list[int]  # runs whose attempts ended with it


def host_state(host: Host, at: datetime) -> str:
    """`at`: now, by the database's clock."""
    if not host.is_online(at):
        return "offline"
    if host.put_aside:
        return "put_aside"
    return "draining" if host.is_draining else "online"
