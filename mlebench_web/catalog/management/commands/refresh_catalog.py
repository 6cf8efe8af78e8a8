from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from mlebench_web.catalog import checkouts
from mlebench_web.catalog.checkout import Problem
from mlebench_web.catalog.models import Checkout


class Command(BaseCommand):
    help = (
        "Read the checkouts of mle-bench again: those of MLEBENCH_DIR, and those that were added "
        "by git URL. Prints a line for each and what is wrong in it."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--add", metavar="URL", help="clone this git URL, and read it too")
        parser.add_argument("--ref", default="", help="branch, tag or commit of --add")
        parser.add_argument("--name", default="", help="what to call the checkout of --add")
        parser.add_argument("--remove", metavar="NAME", help="take a checkout off the lists")
        parser.add_argument(
            "--fail", action="store_true", help="exit 1 when a checkout or an entry is broken"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["add"]:
            try:
                checkouts.add(options["add"], options["ref"], options["name"])
            except checkouts.CheckoutInvalid as error:
                option = "--add" if error.field == "url" else f"--{error.field}"
                raise CommandError(f"{option}: {error}", returncode=2) from error
        if options["remove"]:
            row = Checkout.objects.filter(name=options["remove"], is_listed=True).first()
            if row is None:
                known = ", ".join(
                    Checkout.objects.filter(is_listed=True).values_list("name", flat=True)
                )
                raise CommandError(
                    f"--remove: there is no checkout {options['remove']}. There are: {known}.",
                    returncode=2,
                )
            checkouts.remove(row)
        rows = checkouts.refresh_all()
        if not rows:
            self.stdout.write("There is no checkout. Set MLEBENCH_DIR, or use --add URL.")
        broken = False
        for row in rows:
            broken = self.tell(row) or broken
        if broken and options["fail"]:
            raise CommandError("Something is broken: see above.")

    def tell(self, row: Checkout) -> bool:
        """Whether something of it is broken."""
        if row.error:
            self.stdout.write(f"{row.name}: {row.error}")
            return True
        commit = row.commit[:12] or "no git repository"
        dirty = ", changed since" if row.is_dirty else ""
        self.stdout.write(
            f"{row.name}: {row.agents.filter(is_listed=True).count()} agents, "
            f"{row.competitions.count()} competitions ({commit}{dirty})"
        )
        broken = False
        for found in row.problems:
            problem = Problem(**found)
            broken = broken or problem.level == "error"
            self.stdout.write(f"  {problem.level}: {problem}")
        return broken
