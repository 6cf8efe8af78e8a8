"""A small folder in mle-bench's layout, made by the test itself. Nothing in it is mle-bench's."""

import json
from pathlib import Path

AIDE = """\
vars:
  steps: &steps 500
defaults: &defaults
  start: aide/start.sh
  dockerfile: aide/Dockerfile
  kwargs_type: omegaconf
  env_vars: &env_vars
    TIME_LIMIT_SECS: 86400
kwargs_common: &kwargs_common
  copy_data: False
  exec.timeout: 32400
aide:
  <<: *defaults
  kwargs:
    <<: *kwargs_common
    agent.steps: *steps
aide/o1-preview:
  <<: *defaults
  kwargs:
    <<: *kwargs_common
    agent.steps: 8
  env_vars:
    <<: *env_vars
    OPENAI_API_KEY: ${{ secrets.OPENAI_API_KEY }}
"""
COMPETITION = """\
id: {name}
name: Pears of {name}
competition_type: simple
awards_medals: true
prizes: null
description: mlebench/competitions/{name}/description.md
dataset:
  answers: {name}/prepared/private/test.csv
  sample_submission: {name}/prepared/public/sample_submission.csv
grader:
  name: accuracy
  grade_fn: mlebench.competitions.{name}.grade:grade
preparer: mlebench.competitions.{name}.prepare:prepare
"""
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
GRADE = """\
def grade(submission, answers):
    return float((submission["ripe"] == answers["ripe"]).mean())
"""


def write(root: Path, path: str, text: str) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def add_agent(root: Path, folder: str, config: str) -> Path:
    write(root, f"agents/{folder}/start.sh", "echo hello\n")
    write(root, f"agents/{folder}/Dockerfile", "FROM mlebench-env\nCOPY . ${AGENT_DIR}\n")
    return write(root, f"agents/{folder}/config.yaml", config)


def add_competition(root: Path, name: str, leaderboard: str | None = None) -> Path:
    base = f"mlebench/competitions/{name}"
    write(root, f"{base}/description.md", f"# {name}\n")
    write(root, f"{base}/grade.py", GRADE)
    if leaderboard is None:
        scores = [1 - number / 100 for number in range(50)]
        leaderboard = "score\n" + "".join(f"{score}\n" for score in scores)
    write(root, f"{base}/leaderboard.csv", leaderboard)
    return write(root, f"{base}/config.yaml", COMPETITION.format(name=name))


def make(root: Path) -> Path:
    """Three agents, a competition of mle-bench's (a pointer) and one of the team's own."""
    add_agent(root, "aide", AIDE)
    add_agent(root, "dummy", "dummy:\n  start: dummy/start.sh\n  dockerfile: dummy/Dockerfile\n")
    add_competition(root, "spaceship-titanic", leaderboard=POINTER)
    add_competition(root, "our-pears")
    write(root, "experiments/splits/ours.txt", "our-pears\nspaceship-titanic")
    write(
        root,
        "environment/config/container_configs/gpu.json",
        json.dumps({"mem_limit": "80G", "nano_cpus": 8e9, "gpus": 1, "labels": {"a": "b"}}),
    )
    return root


# ------------------------------------------------------------------ what an image is built from

ENVIRONMENT = {
    # The shape of mle-bench's: root opens /home, then serves below conda, all into one log.
    "entrypoint.sh": """\
#!/bin/bash
{
  mkdir -p /home/logs
  find /home -path /home/data -prune -o -exec chmod a+rw {} \\;
  /opt/conda/bin/conda run -n mleb python /private/grading_server.py
} 2>&1 | tee /home/logs/entrypoint.log
""",
    "instructions.txt": "Hand in /home/submission/submission.csv.\n",
    "instructions_obfuscated.txt": "Hand in a file.\n",
    "validate_submission.sh": """\
#!/bin/bash
curl -X POST -F "file=@$1" http://localhost:5000/validate
""",
    "grading_server.py": "raise SystemExit('the answers are not here')\n",
}
DUMMY = {
    "Dockerfile": """\
FROM mlebench-env
ARG SUBMISSION_DIR
ENV SUBMISSION_DIR=${SUBMISSION_DIR}
ARG LOGS_DIR
ENV LOGS_DIR=${LOGS_DIR}
ARG CODE_DIR
ENV CODE_DIR=${CODE_DIR}
ARG AGENT_DIR
ENV AGENT_DIR=${AGENT_DIR}
RUN mkdir -p ${LOGS_DIR} ${CODE_DIR} ${AGENT_DIR}
RUN conda run -n agent python3 -c "print('the agent environment is there')" && conda clean -afy
COPY . ${AGENT_DIR}
""",
    "start.sh": """\
#!/bin/bash
set -x
eval "$(conda shell.bash hook)"
conda activate agent
python ${AGENT_DIR}/main.py
ls /private
touch $CODE_DIR/code.py
bash /home/validate_submission.sh /home/submission/submission.csv
""",
    "main.py": """\
import shutil

shutil.copy("/home/data/sample_submission.csv", "/home/submission/submission.csv")
""",
}


def make_buildable(root: Path) -> Path:
    """The small checkout with an environment and a dummy agent that can be built and run."""
    make(root)
    for name, text in ENVIRONMENT.items():
        write(root, f"environment/{name}", text)
    for name, text in DUMMY.items():
        write(root, f"agents/dummy/{name}", text)
    return root
