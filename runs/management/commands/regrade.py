"""Grade again what runs handed in. Prints the id of the re-grade; the host services do the work.

With --wait it returns when all is graded and prints what changed; exit status 1 when a run could
not be graded.
"""

import json
import time
from argparse import ArgumentParser
from typing import Any

from django.core.management import BaseCommand, CommandError

from mlebench_web.catalog.models import Competition
from runs import regrading
from runs.api.regrades import RegradeObject
from runs.management.actor import add_user, demand, refused, user_named
from runs.models import Regrade, RegradeJob, Run, RunGroup
from runs.request import FieldError, RequestInvalid

LOOK_EVERY_SECONDS = 1.0


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser: ArgumentParser) -> None:
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("--group", type=int, help="all runs of this run group that have ended")
        which.add_argument("--run", type=int, action="append", help="id of a run; repeatable")
        which.add_argument("--competition", help="all its runs: its grader or answers changed")
        parser.add_argument("--reason", default="", help="kept with the re-grade; audited")
        parser.add_argument("--wait", action="store_true", help="until all is graded")
        parser.add_argument("--format", choices=("text", "json"), default="text")
        add_user(parser)

    def handle(self, **options: Any) -> None:
        user = user_named(options["user"])
        runs = self.runs(options)
        for group in {run.group_id: run.group for run in runs}.values():
            demand(user, "runs.regrade", group)
        try:
            asked = regrading.ask(runs, by=user, reason=options["reason"])
        except regrading.NothingToGrade as nothing:
            raise CommandError(str(nothing)) from nothing
        except RequestInvalid as invalid:
            raise refused(invalid.errors) from invalid
        for each in asked.skipped:
            self.stderr.write(f"run {each.run.pk} ({each.run}) is left alone: {each.why}")
        if options["wait"]:
            self.wait(asked.regrade)
        if options["format"] == "json":
            self.stdout.write(RegradeObject.of(asked.regrade, asked.skipped).model_dump_json())
        elif options["wait"]:
            self.tell(asked.regrade)
        else:
            self.stdout.write(str(asked.regrade.pk))
        if options["wait"] and asked.regrade.jobs.filter(state=RegradeJob.State.FAILED).exists():
            raise CommandError("Not every run could be graded again.")

    def runs(self, options: dict[str, Any]) -> list[Run]:
        rows = Run.objects.select_related("group", "competition")
        if options["run"]:
            found = list(rows.filter(pk__in=options["run"]))
            if unknown := sorted(set(options["run"]) - {run.pk for run in found}):
                names = ", ".join(map(str, unknown))
                raise refused([FieldError("run", f"There is no run {names}.")])
            return found
        if options["group"] is not None:
            if not RunGroup.objects.filter(pk=options["group"]).exists():
                message = f"There is no run group {options['group']}."
                raise refused([FieldError("group", message)])
            return list(rows.filter(group=options["group"]))
        if not Competition.objects.filter(name=options["competition"]).exists():
            message = f"There is no competition {options['competition']}."
            raise refused([FieldError("competition", message)])
        return list(rows.filter(competition__name=options["competition"]))

    def wait(self, regrade: Regrade) -> None:
        said = ""
        while regrade.ended_at is None:
            time.sleep(LOOK_EVERY_SECONDS)
            regrade.refresh_from_db()
            waiting = regrade.jobs.filter(state=RegradeJob.State.WANTED).first()
            why = regrading.why_waiting(waiting) if waiting else ""
            if why and why != said:
                self.stderr.write(f"Waiting. {why}")
            said = why

    def tell(self, regrade: Regrade) -> None:
        for change in regrading.changes(regrade):
            was = words(change.before) if change.before else "no report"
            now = words(change.after) if change.after else change.job.error
            mark = "*" if change.has_changed else " "
            self.stdout.write(f"{mark} run {change.job.run_id} {change.job.run}: {was} -> {now}")
        for row in regrade.moved:
            self.stdout.write(
                f"  {row['split']}: {row['experiment']} rank {row['rank'][0]} -> {row['rank'][1]}, "
                f"any medal {json.dumps(row['any_medal'])}"
            )


def words(report: Any) -> str:
    return f"{report.score} ({report.result.replace('_', ' ')})"
