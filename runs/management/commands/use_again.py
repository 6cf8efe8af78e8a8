"""Use a host again that was put aside. What failed on it before is forgiven."""

from typing import Any

from mlebench_web.accounts.models import User
from mlebench_web.fleet.models import Host
from runs import aside
from runs.management.host_verb import HostVerb


class Command(HostVerb):
    help = __doc__

    def handle(self, **options: Any) -> None:
        host, user = self.asked(options)
        self.change(host, user)
        self.stdout.write(host.name)

    def change(self, host: Host, user: User | None) -> None:
        if not aside.use_again(host, by=user):
            self.stderr.write(f"{host} was in use.")
