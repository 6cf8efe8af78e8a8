"""Drain a host: it takes no new runs, and finishes what it has. Prints how many it still has.

How long that takes at most is said on standard error.

--move: runs that can go on from a checkpoint are saved, stopped and queued for other hosts.
"""

from argparse import ArgumentParser
from typing import Any

from mlebench_web.accounts.models import User
from mlebench_web.fleet.models import Host
from runs import draining, resuming
from runs.management.host_verb import HostVerb
from runs.templatetags.show import duration


class Command(HostVerb):
    help = __doc__
    is_moving = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--move", action="store_true", help="checkpoint its runs and move them to other hosts"
        )

    def handle(self, **options: Any) -> None:
        self.is_moving = options["move"]
        super().handle(**options)

    def change(self, host: Host, user: User | None) -> None:
        draining.drain(host, by=user, move=self.is_moving)
        if self.is_moving and (refused := resuming.not_moved(host)):
            self.stderr.write(resuming.words_of_not_moved(refused))
        left = draining.longest_left(host)
        if left is not None:
            self.stderr.write(
                f"What it has is finished after at most {duration(left)} of agent time."
            )
