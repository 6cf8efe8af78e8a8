import csv
import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from mlebench_web.catalog import competition_config, data, folders
from mlebench_web.catalog.competition_config import CompetitionConfig
from mlebench_web.catalog.models import Competition

COLUMNS = ["rank", "team_name", "score", "kind", "seconds", "code_sha256"]


def run_ladder(config: CompetitionConfig, competition: Competition) -> Iterator[dict[str, Any]]:
    """What run_ladder.py prints, line by line. Raises CommandError when it fails."""
    prepared = data.prepared_dir(competition)
    with subprocess.Popen(
        [
            settings.ML_PYTHON,
            "-B",
            folders.BUILTIN / "run_ladder.py",
            config.folder,
            prepared,
            data.answers(competition),
        ],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout or ():
            yield json.loads(line)
    if process.returncode:
        raise CommandError(f"run_ladder.py ended with {process.returncode}.")


class Command(BaseCommand):
    help = "Run a competition's ten reference baselines and write its leaderboard.csv."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("competition", help="id of a demo competition")
        parser.add_argument("--output", type=Path, help="folder to write into; its own by default")

    def handle(self, *args: Any, **options: Any) -> None:
        competition = Competition.objects.filter(name=options["competition"]).first()
        folder = competition and data.folder_of(competition)
        if not (competition and folder and (folder / "reference_ladder.py").exists()):
            raise CommandError(f"{options['competition']} has no reference ladder.")
        try:
            data.prepare(competition, lambda done, total: None)
        except data.DataError as error:
            raise CommandError(str(error)) from error
        config = competition_config.read(folder)
        code = hashlib.sha256((folder / "reference_ladder.py").read_bytes()).hexdigest()
        rungs, versions = [], {}
        for line in run_ladder(config, competition):
            if "versions" in line:
                versions = line["versions"]
                continue
            rungs.append(line)
            self.stderr.write(
                f"{len(rungs):3} of {line['total']}  {line['score']:.5f}  {line['rung']}"
            )
        rungs.sort(key=lambda rung: rung["score"], reverse=not config.is_lower_better)
        output = options["output"] or folder
        with (output / "leaderboard.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for rank, rung in enumerate(rungs, start=1):
                name = f"reference: {rung['rung']}"
                seconds = f"{rung['seconds']:.1f}"
                writer.writerow([rank, name, rung["score"], "reference-baseline", seconds, code])
        (output / "leaderboard_versions.yaml").write_text(yaml.safe_dump(versions))
        self.stdout.write(str(output / "leaderboard.csv"))
