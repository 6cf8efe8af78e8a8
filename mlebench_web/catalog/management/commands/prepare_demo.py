import sys
from typing import Any

import yaml
from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from mlebench_web.catalog import data
from mlebench_web.catalog.models import Competition


class Command(BaseCommand):
    help = "Prepare the data of the demo competitions on this host."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("competition", nargs="*", help="ids; all of the demo split by default")
        parser.add_argument(
            "--shipped", action="store_true", help="only those whose data ships with the product"
        )
        parser.add_argument(
            "--write-checksums",
            action="store_true",
            help="for who adds a competition: write checksums.yaml into its folder",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        competitions = Competition.objects.filter(is_demo=True)
        if names := options["competition"]:
            competitions = competitions.filter(name__in=names)
            if unknown := set(names) - {row.name for row in competitions}:
                known = Competition.objects.filter(is_demo=True).values_list("name", flat=True)
                raise CommandError(
                    f"No demo competition {', '.join(unknown)}. There are: {', '.join(known)}."
                )
        if options["shipped"]:
            competitions = competitions.filter(ships_data=True)
        write = options["write_checksums"]
        messages = [self.prepare(row, write_checksums=write) for row in competitions]
        failures = [message for message in messages if message]
        if failures:
            raise CommandError("\n".join(failures))

    def prepare(self, competition: Competition, *, write_checksums: bool) -> str | None:
        """Its one line of answer on standard output; the message when it failed."""
        was_there = data.is_prepared(competition)
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=Console(file=sys.stderr),
            transient=True,
        )
        with bar:
            task = bar.add_task(competition.name, total=None, visible=not competition.ships_data)

            def progress(done: int, total: int | None) -> None:
                bar.update(task, completed=done, total=total)

            try:
                data.prepare(competition, progress)
            except data.DataError as error:
                return str(error)
        if write_checksums and (folder := data.folder_of(competition)):
            found = data.checksums(data.prepared_dir(competition))
            (folder / "checksums.yaml").write_text(yaml.safe_dump(found))
        state = "was prepared already" if was_there else "is prepared"
        self.stdout.write(f"{competition.name} {state}: {data.prepared_dir(competition)}")
        return None
