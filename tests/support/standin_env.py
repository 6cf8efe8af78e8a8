"""What stands in for mle-bench's environment image where no conda can be downloaded.

The four files of a checkout's `environment/` go in as they stand, so that its entrypoint and its
agents' start scripts run unchanged.
"""

import io
import tarfile
from pathlib import Path

import docker

# What start scripts and mle-bench's entrypoint ask of conda, over folders with a Python in them.
CONDA = """\
#!/bin/bash
envs=/opt/conda/envs
case "$1" in
  shell.bash)
    cat <<'FUNCTION'
conda() {
  if [ "$1" = activate ]; then
    export PATH="/opt/conda/envs/$2/bin:$PATH" CONDA_DEFAULT_ENV="$2"
  else
    /opt/conda/bin/conda "$@"
  fi
}
FUNCTION
    ;;
  run)
    shift
    while [ $# -gt 0 ]; do
      case "$1" in
        -n) name="$2"; shift 2 ;;
        --no-capture-output) shift ;;
        *) break ;;
      esac
    done
    export PATH="$envs/$name/bin:$PATH"
    exec "$@"
    ;;
  clean|tos|init) ;;
  *) echo "conda stand-in: $1 is not played" >&2; exit 2 ;;
esac
"""
DOCKERFILE = """\
FROM {base}
COPY conda /opt/conda/bin/conda
RUN chmod 0755 /opt/conda/bin/conda && mkdir -p /opt/conda/envs \
    && ln -s /opt/mlebench/python /opt/conda/envs/agent \
    && ln -s /opt/mlebench/python /opt/conda/envs/mleb
ENV PATH=/opt/conda/bin:/usr/local/bin:/usr/bin:/bin
COPY environment/entrypoint.sh /entrypoint.sh
COPY environment/instructions.txt environment/instructions_obfuscated.txt \
    environment/validate_submission.sh /home/
COPY environment/grading_server.py /private/grading_server.py
RUN chmod +x /entrypoint.sh
ENTRYPOINT ["/entrypoint.sh"]
"""
FILES = (
    "entrypoint.sh",
    "instructions.txt",
    "instructions_obfuscated.txt",
    "validate_submission.sh",
    "grading_server.py",
)


def build(engine: docker.DockerClient, base: str, checkout: Path, tag: str) -> str:
    """The id of a stand-in on `base`, the id of an image with the built-in agents' environment."""
    files = {"Dockerfile": DOCKERFILE.format(base=base).encode(), "conda": CONDA.encode()}
    for name in FILES:
        files[f"environment/{name}"] = (checkout / "environment" / name).read_bytes()
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    context.seek(0)
    image, _ = engine.images.build(
        fileobj=context, custom_context=True, tag=tag, network_mode="none", rm=True
    )
    return str(image.id)
