import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from mlebench_web.launcher import demo


class Command(BaseCommand):
    help = "Submit the demo to a running product, show it, and print its leaderboard."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--exit", action="store_true", help="start nothing that must be downloaded"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        sys.exit(demo.main(ends=options["exit"]))
