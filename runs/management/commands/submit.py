"""Start a run group from the server's shell. Prints its id, and nothing else."""

import json
import time
from argparse import ArgumentParser
from collections import Counter
from typing import Any

from django.core.management import BaseCommand, CommandError

from runs import submit
from runs.api.objects import RunGroupObject
from runs.core.states import RunState
from runs.management.actor import add_user, demand, refused, user_named
from runs.models import RunGroup
from runs.request import FieldError, RequestInvalid, RunGroupRequest

LOOK_EVERY_SECONDS = 1.0
OPTIONS = {"competitions": "--competition"}


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--agent", required=True)
        parser.add_argument("--split")
        parser.add_argument(
            "--competition", action="append", default=[], help="instead of a split; repeatable"
        )
        parser.add_argument("--container-config", help="left out: the first that fits")
        parser.add_argument("--seeds", type=int, default=1, help="how many (default: 1)")
        parser.add_argument("--experiment", help="left out: the agent's name")
        parser.add_argument("--time-limit-s", type=int, metavar="SECONDS")
        parser.add_argument("--step-timeout-s", type=int, metavar="SECONDS")
        parser.add_argument("--priority", type=int, default=0, help="higher goes first")
        parser.add_argument(
            "--env", action="append", default=[], metavar="NAME=VALUE", help="repeatable"
        )
        parser.add_argument("--acknowledge-no-gpu", action="store_true")
        parser.add_argument(
            "--wait",
            action="store_true",
            help="until all has ended; exit status 0 only when every run finished",
        )
        parser.add_argument("--format", choices=("text", "json"), default="text")
        add_user(parser)

    def handle(self, **options: Any) -> None:
        user = user_named(options["user"])
        demand(user, "runs.add_group")
        request = RunGroupRequest(
            agent=options["agent"],
            split=options["split"],
            competitions=tuple(options["competition"]),
            container_config=options["container_config"],
            seeds=options["seeds"],
            experiment=options["experiment"],
            time_limit_s=options["time_limit_s"],
            step_timeout_s=options["step_timeout_s"],
            priority=options["priority"],
            env=_variables(options["env"]),
            acknowledge_no_gpu=options["acknowledge_no_gpu"],
        )
        try:
            group = submit.create_run_group(request, by=user)
        except RequestInvalid as invalid:
            raise refused(invalid.errors, OPTIONS) from invalid
        if group.config_note:
            self.stderr.write(group.config_note)
        as_json = options["format"] == "json"
        if not as_json:
            self.stdout.write(str(group.pk))
            self.stdout.flush()
        unfinished = self._wait(group) if options["wait"] else 0
        if as_json:
            shown = RunGroupObject.of(group).model_dump(mode="json")
            self.stdout.write(json.dumps(shown, indent=2))
        if unfinished:
            raise CommandError(f"{unfinished} of {group.runs.count()} runs did not finish.")

    def _wait(self, group: RunGroup) -> int:
        """Until the group is over, with a line for each change; runs that did not finish."""
        said = ""
        while True:
            counts = Counter(group.runs.values_list("state", flat=True))
            line = ", ".join(
                f"{counts[state]} {state.value}" for state in RunState if counts[state]
            )
            if line != said:
                self.stderr.write(line)
                self.stderr.flush()
                said = line
            if group.is_over():
                return counts.total() - counts[RunState.FINISHED]
            time.sleep(LOOK_EVERY_SECONDS)


def _variables(pairs: list[str]) -> dict[str, str]:
    variables = {}
    for pair in pairs:
        name, is_there, value = pair.partition("=")
        if not is_there:
            raise refused([FieldError("env", f"{pair!r}: write NAME=VALUE.")])
        variables[name] = value
    return variables
