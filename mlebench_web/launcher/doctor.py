"""What this machine has of all that runs need, and how to get the rest."""

import platform
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import docker
from django.conf import settings
from django.core import checks
from django.db import DatabaseError, connection
from docker.errors import DockerException

from mlebench_web.catalog import official_data
from mlebench_web.catalog.data import DataError
from mlebench_web.catalog.models import AgentImage, Checkout
from mlebench_web.fleet import gpus, inventory
from mlebench_web.launcher import broker, environment, runfile
from mlebench_web.launcher import engine as docker_engine

GIB = 2**30
ENGINE_HELP = "https://docs.docker.com/engine/install/"
TOOLKIT_HELP = (
    "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html"
)


class Level(StrEnum):
    FINE = "fine"
    ABSENT = "absent"  # something works less well, or a feature is not there
    BROKEN = "broken"  # no run can succeed


@dataclass(frozen=True)
class Finding:
    what: str
    level: Level
    text: str
    fix: str = ""


def examine() -> list[Finding]:
    """Each topic in turn; takes a few seconds where a container is tried."""
    topics: tuple[Callable[[], Iterable[Finding]], ...] = (
        python,
        system_checks,
        database,
        broker_server,
        ml_python,
        engine,
        gpu,
        memory,
        disk,
        port,
        checkout,
        official_grading,
    )
    return [finding for topic in topics for finding in topic()]


def python() -> Iterable[Finding]:
    yield Finding("Python", Level.FINE, f"{platform.python_version()} at {sys.executable}")


def system_checks() -> Iterable[Finding]:
    for message in checks.run_checks():
        level = Level.BROKEN if message.is_serious() else Level.ABSENT
        if message.id != "mlebench_web.W001":  # said by `ml_python`, with more
            yield Finding("settings", level, message.msg, message.hint or "")


def database() -> Iterable[Finding]:
    kind = connection.vendor
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        tables = connection.introspection.table_names()
    except DatabaseError as error:
        yield Finding("database", Level.BROKEN, f"{kind} does not answer: {error}", "DATABASE_URL")
        return
    if "runs_run" in tables:
        yield Finding("database", Level.FINE, f"{kind} answers")
    else:
        yield Finding("database", Level.ABSENT, f"{kind} is empty", "./run makes the tables.")


def broker_server() -> Iterable[Finding]:
    if not settings.CELERY_BROKER_URL.startswith("redis+socket:"):
        yield Finding("broker", Level.FINE, "CELERY_BROKER_URL names one")
        return
    try:
        yield Finding("broker", Level.FINE, f"embedded: {broker.binary()}")
    except broker.NoBroker as error:
        yield Finding("broker", Level.BROKEN, str(error))


def ml_python() -> Iterable[Finding]:
    if error := inventory.ml_python_error():
        yield Finding("machine-learning libraries", Level.BROKEN, error, "./run setup")
    else:
        yield Finding("machine-learning libraries", Level.FINE, str(settings.ML_PYTHON))


def engine() -> Iterable[Finding]:
    if settings.ENGINE_URL == "none":
        yield Finding("Docker Engine", Level.ABSENT, "ENGINE_URL=none: runs are plain processes")
        return
    try:
        with docker_engine.client(timeout_seconds=10) as client:
            runtimes = sorted(client.info().get("Runtimes", {}))
            version = client.version()["Version"]
            yield Finding("Docker Engine", Level.FINE, f"{version}, runtimes {', '.join(runtimes)}")
            yield container(client)
            if gpus.read().gpus:
                yield toolkit(runtimes)
    except DockerException as error:
        yield Finding(
            "Docker Engine",
            Level.ABSENT,
            f"not within reach, so runs are plain processes without a sandbox: {error}",
            f"Install it ({ENGINE_HELP}); if it runs, add this user to its group: "
            "sudo usermod -aG docker $USER, and sign in anew.",
        )


def container(client: docker.DockerClient) -> Finding:
    """Starts a container of a built-in agent's image and looks at its answer."""
    what = "a container"
    try:
        built = AgentImage.objects.filter(state=AgentImage.State.READY).first()
    except DatabaseError:
        built = None
    if built is None:
        return Finding(what, Level.ABSENT, "not tried: no agent's image is built", "./run builds.")
    try:
        client.containers.run(
            built.image_id, ["-c", "exit 0"], entrypoint="/bin/sh", network_mode="none", remove=True
        )
    except DockerException as error:
        return Finding(what, Level.BROKEN, f"does not start: {error}", "Look at the engine's log.")
    return Finding(what, Level.FINE, f"starts and ends well (image of {built.image_name})")


def toolkit(runtimes: list[str]) -> Finding:
    what = "NVIDIA container toolkit"
    if settings.GPU_REQUEST_MODE == "cdi":
        return Finding(what, Level.FINE, "GPU_REQUEST_MODE=cdi: the engine's CDI devices are used")
    if "nvidia" in runtimes or shutil.which("nvidia-container-runtime-hook"):
        return Finding(what, Level.FINE, "the engine can hand out GPUs")
    return Finding(
        what,
        Level.BROKEN,
        "this machine has GPUs, but the engine cannot hand them out",
        TOOLKIT_HELP,
    )


def gpu() -> Iterable[Finding]:
    found = gpus.read()
    if found.fault:
        yield Finding("GPU driver", Level.BROKEN, found.fault)
    elif not found.gpus:
        yield Finding("GPU driver", Level.ABSENT, "none: agents run on the CPU")
    for each in found.gpus:
        level = Level.BROKEN if each.fault else Level.FINE
        yield Finding("GPU", level, f"{each.name} {each.uuid} {each.fault}".strip())


def memory() -> Iterable[Finding]:
    total = inventory.memory_bytes()
    text = f"{total / GIB:.1f} GiB, {inventory.cpus():g} CPUs, {inventory.slots()} runs at once"
    if total <= settings.MEMORY_RESERVE_BYTES:
        yield Finding(
            "memory", Level.BROKEN, f"{text}: nothing is left for runs", "Lower MEMORY_RESERVE_GIB."
        )
    else:
        yield Finding("memory", Level.FINE, text)


def disk() -> Iterable[Finding]:
    free = shutil.disk_usage(settings.DATA_DIR).free
    text = f"{free / GIB:.1f} GiB free at {settings.DATA_DIR}"
    if free < settings.DISK_RESERVE_BYTES:
        fix = "Free some, or put the data folder elsewhere: --data DIR."
        yield Finding("disk", Level.BROKEN, f"{text}, less than DISK_RESERVE_GIB", fix)
    else:
        yield Finding("disk", Level.FINE, text)


def port() -> Iterable[Finding]:
    running = runfile.read(settings.DATA_DIR).get("address")
    if running:
        yield Finding("address", Level.FINE, f"mlebench-web runs at {running}")
        return
    try:
        environment.free_port("127.0.0.1", 8000)
    except environment.PortTaken as error:
        yield Finding("address", Level.ABSENT, str(error))
    else:
        yield Finding("address", Level.FINE, "port 8000 is free")


def checkout() -> Iterable[Finding]:
    for folder in settings.MLEBENCH_DIRS:
        yield Finding("mle-bench checkout", Level.FINE, str(folder))
    if not settings.MLEBENCH_DIRS:
        yield Finding(
            "mle-bench checkout",
            Level.ABSENT,
            "none: the demo competitions and built-in agents are there",
            "Clone https://github.com/openai/mle-bench and set MLEBENCH_DIR to the folder.",
        )


def official_grading() -> Iterable[Finding]:
    """Loads every grader of each checkout: some seconds."""
    what = "mle-bench's graders"
    folders = [folder for folder in checkouts() if (folder / "mlebench").is_dir()]
    if not folders:
        return
    if why := official_data.cannot_grade():
        yield Finding(
            what,
            Level.ABSENT,
            f"{why} Until then only the demo competitions are graded here.",
            f"./run mlebench {folders[0]}",
        )
        return
    for folder in folders:
        try:
            tried = official_data.try_graders(folder)
        except DataError as error:
            yield Finding(what, Level.ABSENT, str(error), f"./run mlebench {folder}")
            continue
        good = tried.graders - len(tried.broken)
        text = f"{good} of {tried.graders} competitions of {folder} can be graded"
        if tried.broken:
            name, why = next(iter(tried.broken.items()))
            yield Finding(what, Level.ABSENT, f"{text}; {name}: {why}", f"./run mlebench {folder}")
        else:
            yield Finding(what, Level.FINE, text)


def checkouts() -> list[Path]:
    """Folders of MLEBENCH_DIR, and clones of git URLs where the database can be asked."""
    try:
        clones = Checkout.objects.filter(is_listed=True).exclude(url="").order_by("position")
        return [*settings.MLEBENCH_DIRS, *(Path(row.path) for row in clones)]
    except DatabaseError:
        return list(settings.MLEBENCH_DIRS)
