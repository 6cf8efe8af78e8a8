"""Say that a silent host is gone: its runs are queued again at once. Prints their ids.

For a machine that somebody has looked at: burnt, sold, wiped. A host that still answers is
refused. When it comes back after all, its containers are stopped and their outputs kept.
"""

from typing import Any

from django.core.management import CommandError

from runs import aside
from runs.management.host_verb import HostVerb


class Command(HostVerb):
    help = __doc__

    def handle(self, **options: Any) -> None:
        host, user = self.asked(options)
        try:
            sealed = aside.declare_lost(host, by=user)
        except aside.HostAnswers as refused:
            raise CommandError(str(refused)) from refused
        for attempt in sealed:
            self.stdout.write(str(attempt.run_id))
