"""What an attempt's container is made of: image, hardware, network, mounts, arguments."""

import shutil
from datetime import timedelta
from pathlib import Path

from django.conf import settings

from mlebench_web.accounts import placeholders
from mlebench_web.catalog import data, images
from mlebench_web.catalog.models import ContainerConfig
from mlebench_web.fleet.models import Gpu, Host
from runs import agent_env, agent_secrets, queue
from runs.agent_env import AgentHardware
from runs.agent_manifest import AgentManifest
from runs.containers import ContainerSpec
from runs.core.container_config import limits_of
from runs.models import Attempt, Installation
from runs.workspace import Workspace


def host_of(attempt: Attempt) -> Host:
    assert attempt.host is not None  # noqa: S101 - a claimed attempt has a host
    return attempt.host


def gpus_of(attempt: Attempt) -> list[Gpu]:
    """The GPUs that it holds, by index."""
    return list(
        Gpu.objects.filter(leases__attempt=attempt, leases__released_at__isnull=True).order_by(
            "index"
        )
    )


def container_of(attempt: Attempt, workspace: Workspace, manifest: AgentManifest) -> ContainerSpec:
    """The container of a claimed attempt; writes what it is told of its hardware.

    Raises data.DataError when the data is not there, agent_secrets.Unavailable when a secret is
    not, OSError when the workspace cannot be written.
    """
    group = attempt.run.group
    host = host_of(attempt)
    limits = limits_of(group.container_settings)
    install = Installation.this().name
    gpus = gpus_of(attempt)
    competition = attempt.run.competition
    if not data.is_prepared(competition):
        raise data.DataError(f"{competition.name} is not prepared on {host.name}.")
    agent = queue.agent_of(group)
    secrets = agent_secrets.values_for(group)
    hardware = AgentHardware(
        cpus=attempt.cpus or 1,
        memory_bytes=attempt.memory_bytes or 0,
        gpus=gpus,
        shm_bytes=limits.shm_bytes,
        disk_free_bytes=shutil.disk_usage(settings.ATTEMPTS_DIR).free,
    )
    # Active time that is left. A restart from zero gets the full limit.
    remaining = queue.time_limit_of(attempt) - timedelta(seconds=attempt.active_seconds)
    return ContainerSpec(
        name=f"mlebench-{install}-{attempt.pk}",
        labels={
            "mlebench-web.install": install,
            "mlebench-web.run": str(attempt.run.pk),
            "mlebench-web.attempt": str(attempt.pk),
            "mlebench-web.host": host.name,
            "mlebench-web.gpus": ",".join(gpu.uuid for gpu in gpus),
        },
        image_id=attempt.image_id,
        workspace=workspace,
        data_dir=data.public_dir(competition),
        env=agent_env.environment(
            attempt, hardware, remaining_seconds=remaining.total_seconds(), secrets=secrets
        ),
        hardware_file=_hardware_file(workspace, hardware),
        cpus=attempt.cpus or 1,
        memory_bytes=attempt.memory_bytes or 0,
        shm_bytes=limits.shm_bytes,
        pids_limit=limits.pids_limit or settings.PIDS_LIMIT,
        gpu_uuids=tuple(gpu.uuid for gpu in gpus),
        state_mounts={
            place: workspace.root / name for name, place in manifest.state_folders.items()
        },
        # Of the two the stricter one: a config opens no door that the agent's own says is shut.
        network="none" if "none" in (agent.network, limits.network) else "internet",
        runtime=limits.runtime,
        privileged=agent.privileged,
        engine_settings=limits.admin,
        agent_args=(
            *agent_env.agent_arguments(
                agent_env.with_step_timeout(
                    placeholders.filled(group.agent_kwargs, secrets),
                    manifest.step_timeout.kwarg,
                    queue.step_timeout_of(attempt).total_seconds(),
                ),
                agent.kwargs_type,
            ),
            *(manifest.resume.args if attempt.restored_checkpoint_id else ()),
        ),
        # A container has the agent in its image; without one the folder itself is run.
        agent_folder=None if group.image_id else images.folder_of(agent),
    )


def _hardware_file(workspace: Workspace, hardware: AgentHardware) -> Path:
    path = workspace.root / "hardware.json"
    path.write_text(hardware.as_json())
    path.chmod(0o644)
    return path


def hardware_of(attempt: Attempt) -> dict[str, object]:
    """What a claimed attempt really has: measured by the host, reserved by the claim."""
    host = host_of(attempt)
    group = attempt.run.group
    runtime = limits_of(group.container_settings).runtime or "runc"
    return {
        "host": host.name,
        "cpus": attempt.cpus,
        "memory_bytes": attempt.memory_bytes,
        "cpu_model": host.cpu_model,
        "gpus": [
            {"uuid": gpu.uuid, "name": gpu.name, "memory_bytes": gpu.memory_bytes}
            for gpu in gpus_of(attempt)
        ],
        "gpu_driver": host.gpu_driver,
        "engine": host.engine_version,
        "runtime": runtime if group.runtime == ContainerConfig.Runtime.DOCKER else "process",
        "sandboxed": not group.why_unsandboxed,
    }
