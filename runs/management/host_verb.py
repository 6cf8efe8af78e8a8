"""What the commands about one host have in common."""

from argparse import ArgumentParser
from typing import Any

from django.core.management import BaseCommand

from mlebench_web.accounts.models import User
from mlebench_web.fleet.models import Host
from runs.management.actor import add_user, demand, refused, user_named
from runs.models import Attempt
from runs.request import FieldError


class HostVerb(BaseCommand):
    """Does `change` to the host that is named, and prints how many unended runs it has."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("host", metavar="HOST", help="its name")
        add_user(parser)

    def asked(self, options: dict[str, Any]) -> tuple[Host, User | None]:
        """The host that is meant, and in whose name. Raises CommandError."""
        user = user_named(options["user"])
        demand(user, "fleet.drain")
        host = Host.objects.filter(name=options["host"]).first()
        if host is None:
            allowed = list(Host.objects.values_list("name", flat=True))
            error = FieldError("host", f"There is no host {options['host']!r}.", allowed)
            raise refused([error], {"host": "HOST"})
        return host, user

    def handle(self, **options: Any) -> None:
        host, user = self.asked(options)
        self.change(host, user)
        self.stdout.write(str(Attempt.objects.unended().filter(host=host).count()))

    def change(self, host: Host, user: User | None) -> None:
        raise NotImplementedError
