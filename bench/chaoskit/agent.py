"""The image of the chaos runs, with two agents in it that count steps and print numbered lines.

`count.py` knows no checkpoint. It writes each step to /home/code/steps with the machine's monotonic
clock, which all containers and this bench share: gaps between two steps are agent time that was
lost. The other one is the product's own `marathon`, which goes on from its checkpoints.
"""

import hashlib
import io
import os
import subprocess
import tarfile
from pathlib import Path

import docker
from docker.errors import DockerException, ImageNotFound

from mlebench_web.catalog import folders

ROOT = Path(__file__).resolve().parent.parent.parent
BASE_IMAGE = os.environ.get("TEST_BASE_IMAGE", "mlebench-web-base:trixie-min")
# Kept between calls; the first one needs Debian's packages.
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "/var/cache")) / "mlebench-web"

LINES_A_STEP = 5
STEP_SECONDS = 0.2

DOCKERFILE = """\
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN python3 -c 'import json, shutil' || { apt-get update -q && DEBIAN_FRONTEND=noninteractive \
    apt-get install -q -y --no-install-recommends python3 && rm -rf /var/lib/apt/lists/*; }
RUN useradd --create-home --uid 1000 nonroot && mkdir -p /home/agent && install -d -m 0700 /private
RUN touch /private/grading_server.py
COPY entrypoint.sh /entrypoint.sh
COPY start.sh count.py marathon.py marathon_step.py /home/agent/
ENTRYPOINT ["/entrypoint.sh"]
"""
ENTRYPOINT = """\
#!/bin/bash
exec >> /home/logs/entrypoint.log 2>&1
chmod a+rwX /home/submission /home/logs /home/code /home/ckpt
exec python3 -I -S /private/grading_server.py
"""
START = """\
#!/bin/bash
[ -z "${MARATHON_STEPS:-}" ] || exec python3 /home/agent/marathon.py
exec python3 -u /home/agent/count.py
"""
COUNT = f"""\
import os, sys, time

steps = int(os.environ["STEPS"])
with open("/home/code/steps", "x") as file:  # "x": a second agent in one attempt fails loudly
    line = 0
    for step in range(1, steps + 1):
        file.write("%d %.3f\\n" % (step, time.monotonic()))
        file.flush()
        for _ in range({LINES_A_STEP}):
            line += 1
            sys.stdout.write("line %d of attempt %s\\n" % (line, os.environ["MLE_ATTEMPT"]))
        time.sleep({STEP_SECONDS})
with open("/home/submission/submission.tmp", "w") as file:
    file.write("id,price\\n1,1.0\\n2,2.0\\n3,3.0\\n4,4.0\\n")
os.replace("/home/submission/submission.tmp", "/home/submission/submission.csv")
"""
FILES = {
    "Dockerfile": (DOCKERFILE, 0o644),
    "entrypoint.sh": (ENTRYPOINT, 0o755),
    "start.sh": (START, 0o755),
    "count.py": (COUNT, 0o644),
    **{
        name: ((folders.AGENTS / "marathon" / name).read_text(), 0o644)
        for name in ("marathon.py", "marathon_step.py")
    },
}


def provide(client: docker.DockerClient, url: str) -> str:
    """The id of the agent's image on this engine: from the cache, else made. Raises SystemExit."""
    digest = hashlib.sha256("".join(text for text, _ in FILES.values()).encode()).hexdigest()[:12]
    archive = CACHE / f"chaos-agents-{digest}.tar"
    if archive.exists():
        with archive.open("rb") as file:
            (image,) = client.images.load(file)
        return str(image.id)
    provide_base(client, url)
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for name, (text, mode) in FILES.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text.encode()), mode
            tar.addfile(entry, io.BytesIO(text.encode()))
    context.seek(0)
    # The host's network: our engines have no way out of their own.
    image, _ = client.images.build(
        fileobj=context,
        custom_context=True,
        tag="mlebench-web-chaos-agents",
        buildargs={"BASE_IMAGE": BASE_IMAGE},
        network_mode="host",
        rm=True,
    )
    CACHE.mkdir(parents=True, exist_ok=True)
    temporary = archive.with_suffix(f".{os.getpid()}")
    with temporary.open("wb") as file:
        file.writelines(image.save(named=True))
    temporary.replace(archive)
    for old in CACHE.glob("chaos-agents-*.tar"):
        if old != archive:
            old.unlink()
    return str(image.id)


def provide_base(client: docker.DockerClient, url: str) -> None:
    """The base image: from the machine's engine when it runs and has it, else from Debian."""
    try:
        machines = docker.from_env(timeout=60)
        client.images.load(b"".join(machines.images.get(BASE_IMAGE).save(named=True)))
        machines.close()
        return
    except (DockerException, ImageNotFound, OSError):
        # No engine there, or none that has it.
        pass
    done = subprocess.run(
        [ROOT / ".ci" / "base-image.sh", BASE_IMAGE],
        env={**os.environ, "DOCKER_HOST": url},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{BASE_IMAGE} could not be made: {done.stderr[-1500:]}")


def provide_baseline(client: docker.DockerClient, url: str) -> str:
    """The id of the product's own `baseline` on this engine, which has libraries for learning.

    From the machine's engine when it runs: it need not build what it has built before. Raises
    SystemExit.
    """
    from mlebench_web.catalog import images
    from mlebench_web.catalog.models import Agent

    baseline = Agent.objects.get(name="baseline")
    try:
        builder = docker.from_env(timeout=900)
    except DockerException:
        builder = docker.DockerClient(url, timeout=900)
        provide_base(builder, url)
    try:
        image = images.build(baseline, builder, base_image=BASE_IMAGE, progress=lambda _: None)
        try:
            client.images.get(image.image_id)
        except ImageNotFound:
            copy(builder, client, image.image_id)
    except images.BuildFailed as error:
        raise SystemExit(f"The image of baseline could not be built: {error}") from error
    finally:
        builder.close()
    return image.image_id


def copy(archive_from: docker.DockerClient, to: docker.DockerClient, image_id: str) -> None:
    """save | load; the id stays."""
    to.images.load(archive_from.images.get(image_id).save(named=True))
