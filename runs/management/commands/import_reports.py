"""Import grading reports that were made elsewhere."""

import json
from argparse import ArgumentParser
from pathlib import Path

from django.core.management.base import BaseCommand, CommandError

from runs.importing import ImportRefused, import_reports


class Command(BaseCommand):
    help = (
        "Import grading reports into an experiment, which is made when there is none. Each file "
        "is one seed (or several, where a competition stands in it more than once), in the order "
        "given. Importing a file again changes nothing. Prints what was done as JSON."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--experiment", required=True, help="name of the leaderboard row")
        parser.add_argument("report", nargs="+", type=Path, help="*_grading_report.json")

    def handle(self, *, experiment: str, report: list[Path], **_: object) -> None:
        try:
            done = import_reports(experiment, report, by=None)
        except ImportRefused as error:
            raise CommandError(str(error)) from error
        for warning in done.warnings:
            self.stderr.write(f"warning: {warning}")
        for path in done.known:
            self.stderr.write(f"{path}: this experiment has it already.")
        answer = {
            "experiment": done.experiment.name,
            "run_groups": len(done.groups),
            "runs": done.runs,
            "known": [str(path) for path in done.known],
        }
        self.stdout.write(json.dumps(answer))
