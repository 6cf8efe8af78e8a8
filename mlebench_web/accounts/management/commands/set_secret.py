import getpass
import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from mlebench_web.accounts import vault
from mlebench_web.accounts.models import Team, User


class Command(BaseCommand):
    help = (
        "Store a secret that agents ask for as ${{ secrets.NAME }}, or replace it. The value is "
        "read from standard input, or asked for without an echo; it can never be shown again."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="as a variable: OPENAI_API_KEY")
        owner = parser.add_mutually_exclusive_group(required=True)
        owner.add_argument("--user", help="for the runs of this person")
        owner.add_argument("--team", help="for the runs of this team")
        parser.add_argument("--delete", action="store_true", help="no run gets it any more")

    def handle(self, *args: Any, **options: Any) -> None:
        owner = self.owner(options["user"], options["team"])
        name = options["name"]
        if options["delete"]:
            secret = owner.secrets.filter(name=name, retired_at__isnull=True).first()
            if secret is None:
                raise CommandError(f"{owner} has no secret {name}.", returncode=2)
            vault.forget(secret, by=None)
            self.stdout.write(f"{name} of {owner} is deleted.")
            return
        try:
            vault.put(name, self.value(name), owner=owner, by=None)
        except vault.SecretInvalid as error:
            raise CommandError(f"{error.field}: {error}", returncode=2) from error
        self.stdout.write(f"{name} of {owner} is stored.")

    def owner(self, user: str | None, team: str | None) -> User | Team:
        found: User | Team | None
        if user is not None:
            found = User.objects.filter(username=user).first()
            known = list(User.objects.order_by("username").values_list("username", flat=True))
        else:
            found = Team.objects.filter(name=team).first()
            known = list(Team.objects.order_by("name").values_list("name", flat=True))
        if found is None:
            option = "--user" if user is not None else "--team"
            raise CommandError(
                f"{option}: there is no {user or team}. There are: {', '.join(known)}.",
                returncode=2,
            )
        return found

    def value(self, name: str) -> str:
        """Never an argument: those are seen by everybody on the machine."""
        if sys.stdin.isatty():
            return getpass.getpass(f"Value of {name}: ")
        return sys.stdin.read()
