"""Export run groups in mle-bench's layout."""

import sys
from argparse import ArgumentParser
from pathlib import Path

from django.core.management.base import BaseCommand, CommandError

from runs import exporting
from runs.management.actor import add_user, demand, user_named
from runs.models import Experiment, RunGroup


class Command(BaseCommand):
    help = (
        "Export run groups in mle-bench's layout, so that its scripts read them: a folder each, "
        "and run_group_experiments.csv beside them; with --tar one file. Prints the folders."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("group", nargs="*", type=int, help="ids of run groups")
        parser.add_argument(
            "--experiment", action="append", default=[], help="all run groups of it; repeatable"
        )
        target = parser.add_mutually_exclusive_group(required=True)
        target.add_argument("--to", type=Path, help="the folder that gets a folder each")
        target.add_argument("--tar", type=Path, help="a tar file; - is standard output")
        add_user(parser)

    def handle(
        self,
        *,
        group: list[int],
        experiment: list[str],
        to: Path | None,
        tar: Path | None,
        user: str | None,
        **_: object,
    ) -> None:
        demand(user_named(user), "runs.download")
        groups = self.chosen(group, experiment)
        try:
            if to is not None:
                self.stdout.write("\n".join(map(str, exporting.write(groups, to))))
            elif tar is not None:
                self.write_tar(groups, tar)
        except exporting.ExportRefused as error:
            raise CommandError(str(error)) from error
        except OSError as error:
            raise CommandError(f"{error.filename or to or tar}: {error.strerror}.") from error

    def write_tar(self, groups: list[RunGroup], tar: Path) -> None:
        names = exporting.names_for(groups)
        pieces = exporting.tar_of(exporting.prepare(row, name=names[row.pk]) for row in groups)
        if str(tar) == "-":
            for piece in pieces:
                sys.stdout.buffer.write(piece)
            return
        with tar.open("xb") as file:
            for piece in pieces:
                file.write(piece)
        self.stdout.write(str(tar))

    def chosen(self, ids: list[int], experiments: list[str]) -> list[RunGroup]:
        rows = RunGroup.objects.select_related("experiment", "agent", "split", "container_config")
        found = {row.pk: row for row in rows.filter(pk__in=ids)}
        if unknown := sorted(set(ids) - found.keys()):
            raise CommandError(f"There is no run group {', '.join(map(str, unknown))}.")
        for name in experiments:
            if not Experiment.objects.filter(name=name).exists():
                raise CommandError(f"--experiment: there is no experiment {name!r}.")
            found |= {row.pk: row for row in rows.filter(experiment__name=name)}
        if not found:
            raise CommandError("Name run groups, or an --experiment that has some.")
        return sorted(found.values(), key=lambda row: row.upstream_name)
