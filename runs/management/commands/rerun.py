"""Run failed runs of a group again. Prints the ids of the runs that were queued, one a line."""

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management import BaseCommand

from runs import overriding, submit
from runs.management.actor import add_user, demand, refused, user_named
from runs.models import RunGroup
from runs.request import FieldError, RequestInvalid
from runs.submit import NotRerunnable

OPTIONS = {"group": "GROUP"}
OVERRIDES = {
    "overrides.host": "--host",
    "overrides.gpu": "--gpu",
    "overrides.time_limit_s": "--time-limit-hours",
    "overrides.step_timeout_s": "--step-timeout-hours",
    "overrides.memory_bytes": "--memory-gib",
}


def overrides_in(options: dict[str, Any]) -> dict[str, Any]:
    def whole(name: str, unit: int) -> int | None:
        value = options[name]
        return None if value is None else round(value * unit)

    return {
        "host": options["host"],
        "gpu": options["gpu"],
        "time_limit_s": whole("time_limit_hours", 3600),
        "step_timeout_s": whole("step_timeout_hours", 3600),
        "memory_bytes": whole("memory_gib", 2**30),
    }


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("group", type=int, metavar="GROUP", help="id of the run group")
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("--which", choices=("failed", "infrastructure"))
        which.add_argument("--run", type=int, action="append", help="id of a run; repeatable")
        parser.add_argument(
            "--mode",
            default="restart",
            help="restart: from zero (default); resume: from the newest checkpoint",
        )
        parser.add_argument(
            "--reason", default="", help="needed where an agent failed by its own doing; audited"
        )
        parser.add_argument("--host", help="run on this host only")
        parser.add_argument("--gpu", help="class of GPU, as A10, for configs that ask for one")
        parser.add_argument("--time-limit-hours", type=float, help="in place of the group's")
        parser.add_argument("--step-timeout-hours", type=float, help="in place of the group's")
        parser.add_argument("--memory-gib", type=float, help="in place of the container config's")
        parser.add_argument("--format", choices=("text", "json"), default="text")
        add_user(parser)

    def handle(self, **options: Any) -> None:
        user = user_named(options["user"])
        group = RunGroup.objects.filter(pk=options["group"]).first()
        if group is None:
            missing = FieldError("group", f"There is no run group {options['group']}.")
            raise refused([missing], OPTIONS)
        demand(user, "runs.rerun", group)
        asked = options["run"] or options["which"]
        try:
            runs = submit.chosen(group, asked)
            attempts = submit.rerun(
                runs,
                by=user,
                reason=options["reason"],
                mode=options["mode"],
                overrides=overriding.look_up(overrides_in(options), runs),
            )
        except RequestInvalid as invalid:
            raise refused(invalid.errors, {**OPTIONS, **OVERRIDES, "which": "--run"}) from invalid
        except NotRerunnable as error:
            names = {**OPTIONS, **OVERRIDES, "which": "--run" if options["run"] else "--which"}
            raise refused([FieldError(error.field, str(error))], names) from error
        queued = [attempt.run_id for attempt in attempts]
        skipped = [run.pk for run in runs if run.pk not in set(queued)]
        if options["format"] == "json":
            self.stdout.write(json.dumps({"queued": queued, "skipped": skipped}))
            return
        for run in queued:
            self.stdout.write(str(run))
        if skipped:
            self.stderr.write(f"{len(skipped)} runs have not ended and were left alone.")
