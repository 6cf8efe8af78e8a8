"""Import run groups that were made elsewhere."""

import json
from argparse import ArgumentParser
from pathlib import Path

from django.core.management.base import BaseCommand, CommandError

from runs import imports
from runs.core.run_groups import Skipped
from runs.importing import ImportRefused
from runs.management.actor import add_user, demand, user_named


class Command(BaseCommand):
    help = (
        "Import run groups in mle-bench's layout: a run group's folder, a folder of many (with "
        "run_group_experiments.csv, where there is one), a tar, tar.gz or zip of either, or a "
        "grading report. Importing again changes nothing. Prints what was made as JSON."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("path", type=Path, help="folder, archive or *_grading_report.json")
        parser.add_argument(
            "--experiment",
            default="",
            help="of all its run groups; left out: what run_group_experiments.csv or harness.json "
            "says, else the group's own name",
        )
        parser.add_argument("--dry-run", action="store_true", help="say what would be made")
        add_user(parser)

    def handle(
        self, *, path: Path, experiment: str, dry_run: bool, user: str | None, **_: object
    ) -> None:
        by = user_named(user)
        demand(by, "runs.import_folder")
        try:
            done = imports.import_path(path, experiment=experiment, by=by, is_dry_run=dry_run)
        except ImportRefused as error:
            raise CommandError(str(error)) from error
        for text in done.plan.warnings:
            self.stderr.write(f"warning: {text}")
        for planned in done.plan.groups:
            name = planned.group.name
            for text in planned.group.warnings:
                self.stderr.write(f"warning: {name}: {text}")
            if planned.known:
                self.stderr.write(f"known: {name}: {planned.known}")
            self.tell(planned.group.skipped, name)
        self.tell(done.plan.skipped)
        self.stdout.write(json.dumps(done.as_json() | {"dry_run": dry_run}))

    def tell(self, skipped: tuple[Skipped, ...], inside: str = "") -> None:
        for each in skipped:
            where = f"{inside}, {each.what}" if inside else each.what
            self.stderr.write(f"skipped: {where}: {each.why}")
