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
