"""System checks about runs: what `manage.py check`, every start and `./run doctor` say."""

from collections.abc import Iterable

from django.conf import settings
from django.core.checks import CheckMessage, Warning, register

from runs.containers import reach


@register()
def agents_reach_a_name_server(**_: object) -> Iterable[CheckMessage]:
    if settings.ENGINE_URL == "none" or settings.AGENT_NAMESERVERS:
        return
    if closed := reach.closed_name_servers():
        yield Warning(
            f"Agents with the internet cannot ask this machine's name server {', '.join(closed)}: "
            "it is an address that is closed to them.",
            hint="Name others in AGENT_NAMESERVERS, or open it with AGENTS_MAY_REACH.",
            id="runs.W001",
        )
