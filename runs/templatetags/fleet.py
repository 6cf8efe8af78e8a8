"""How a host is: a shape, a colour and a word."""

from dataclasses import dataclass

from django import template
from django.conf import settings
from django.utils import timezone

from mlebench_web.fleet.models import Host
from runs.templatetags.show import ago

register = template.Library()
DISK_IS_NEARLY_FULL = 0.95


@dataclass(frozen=True)
class Health:
    css: str
    word: str


@register.simple_tag
def health(host: Host) -> Health:
    """The worst first: silence, then what a host says of itself, then what people decided."""
    at = timezone.now()
    if not host.is_online(at):
        seen, silence = host.last_seen(), host.silence(at)
        if silence is None:
            return Health("idle", "Never seen")
        if silence < settings.LEASE_TTL:
            # Its host service answers: the machine is well, the worker is not.
            return Health("bad", f"Worker silent, seen {ago(host.worker_seen_at, at)}")
        if host.is_declared_lost():
            return Health("bad", f"Said to be gone, last seen {ago(seen, at)}")
        if silence < settings.HOST_LOST_AFTER:
            # Reversible: its containers may be well, and nothing is started anew.
            return Health("warn", f"Lost contact, last seen {ago(seen, at)}")
        return Health("bad", f"Silent, last seen {ago(seen, at)}")
    if host.failing:
        return Health("bad", "Failing")
    if host.put_aside:
        return Health("bad", "Put aside")
    if host.is_draining:
        return Health("warn", "Draining")
    if host.gpu_error:
        return Health("warn", "GPU fault")
    if disk_share(host) > DISK_IS_NEARLY_FULL:
        return Health("warn", "Disk nearly full")
    if host.engine_error:
        return Health("warn", "No engine")
    return Health("ok", "Online")


def disk_share(host: Host) -> float:
    if not host.disk_total_bytes or host.disk_free_bytes is None:
        return 0
    return 1 - host.disk_free_bytes / host.disk_total_bytes
