"""Drain a host: it takes no new runs, and finishes what it has. Prints how many it still has.

--move: runs that can go on from a checkpoint are saved, stopped and queued for other hosts.
"""

from argparse import ArgumentParser
from typing import Any

from mlebench_web.accounts.models import User
from mlebench_web.fleet.models import Host
from runs import draining
from runs.management.host_verb import HostVerb


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
