"""A running attempt whose agent speaks the protocol, on this process's host."""

from django.conf import settings
from django.utils import timezone

from mlebench_web.fleet import hosts
from runs.core.states import State
from runs.models import Attempt
from tests import factories


def running_attempt() -> Attempt:
    host = factories.make_host(settings.HOST_NAME, boot_id=hosts.boot_id())
    agent = factories.make_agent("speaker", folder="", is_builtin=False)
    group = factories.make_group(agent=agent)
    run = factories.make_run(group, state=State.RUNNING, host=host, began=timezone.now())
    return run.newest_attempt()
