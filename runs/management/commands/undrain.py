"""Let a drained host take new runs again. Prints how many runs it has now."""

from mlebench_web.accounts.models import User
from mlebench_web.fleet.models import Host
from runs import draining
from runs.management.host_verb import HostVerb


class Command(HostVerb):
    help = __doc__

    def change(self, host: Host, user: User | None) -> None:
        draining.undrain(host, by=user)
