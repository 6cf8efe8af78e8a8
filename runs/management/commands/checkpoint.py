"""Save a checkpoint of a running run, within seconds. Its page and its log say how that went."""

from argparse import ArgumentParser
from typing import Any

from django.core.management import BaseCommand, CommandError

from runs import resuming
from runs.management.actor import add_user, demand, refused, user_named
from runs.models import Run
from runs.request import FieldError


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("run", type=int, metavar="RUN", help="id of the run")
        add_user(parser)

    def handle(self, **options: Any) -> None:
        user = user_named(options["user"])
        run = Run.objects.select_related("group__agent").filter(pk=options["run"]).first()
        if run is None:
            raise refused([FieldError("run", f"There is no run {options['run']}.")], {"run": "RUN"})
        demand(user, "runs.rerun", run)
        try:
            resuming.ask_checkpoint(run, by=user)
        except resuming.CannotSave as error:
            raise CommandError(str(error)) from error
