"""Cancel a run or a run group. Prints how many runs were cancelled or asked to stop."""

from argparse import ArgumentParser
from typing import Any

from django.core.management import BaseCommand, CommandError

from runs import submit
from runs.management.actor import add_user, demand, refused, user_named
from runs.models import Run, RunGroup
from runs.request import FieldError


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser: ArgumentParser) -> None:
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument("--group", type=int, help="id of a run group")
        what.add_argument("--run", type=int, help="id of a run")
        parser.add_argument(
            "--queued-only", action="store_true", help="of a group: let finish what has started"
        )
        add_user(parser)

    def handle(self, **options: Any) -> None:
        user = user_named(options["user"])
        if options["run"] is not None:
            if options["queued_only"]:
                raise refused([FieldError("queued_only", "It goes with --group only.")])
            run = Run.objects.filter(pk=options["run"]).select_related("group").first()
            if run is None:
                raise refused([FieldError("run", f"There is no run {options['run']}.")])
            demand(user, "runs.cancel", run)
            try:
                count = int(submit.cancel_run(run, by=user))
            except submit.AlreadyEnded as error:
                raise CommandError(str(error)) from error
        else:
            group = RunGroup.objects.filter(pk=options["group"]).first()
            if group is None:
                raise refused([FieldError("group", f"There is no run group {options['group']}.")])
            demand(user, "runs.cancel", group)
            count = submit.cancel_group(group, by=user, queued_only=bool(options["queued_only"]))
        self.stdout.write(str(count))
