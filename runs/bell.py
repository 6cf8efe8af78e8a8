"""The bell: a message without content that says "somebody may have work for this host".

A lost bell costs seconds (the control tick rings again), so ringing never raises.
"""

from collections import Counter

import structlog
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from mlebench_web.fleet import hosts
from mlebench_web.fleet.models import Host
from runs import queue
from runs.core.states import SUPERVISED
from runs.models import Attempt

logger = structlog.get_logger(__name__)

# A bell that nobody heard in this time is stale: the next ring counts anew.
BELL_EXPIRES_SECONDS = 30


def queue_of(host_name: str) -> str:
    return f"bells.{host_name}"


def bells_for(host: Host, *, queued: int, adoptable: int) -> int:
    """How many pool children have something to do on this host, at most its slots."""
    wanted = adoptable + (0 if host.is_draining or host.put_aside else queued)
    return min(host.slots, wanted)


def ring(only: Host | None = None) -> int:
    """Ring each online host, or `only` one, as often as it may have work. The bells sent."""
    at = hosts.now()
    online = [only] if only else [host for host in Host.objects.all() if host.is_online(at)]
    queued = Attempt.objects.claimable().count()
    # Gradings of silent hosts, which any other may go on with.
    abandoned = Counter(attempt.host_id for attempt in queue.abandoned_gradings())
    sent = 0
    for host in online:
        unended = Attempt.objects.filter(host=host, state__in=SUPERVISED)
        # Its own worker knows better which of them have a live supervisor; it adopts only those.
        adoptable = unended.count() if only else unended.filter(lease_until__lt=at).count()
        adoptable += abandoned.total() - abandoned[host.pk]
        sent += send(host.name, bells_for(host, queued=queued, adoptable=adoptable))
    return sent


def send(host_name: str, count: int) -> int:
    """Send bells to one host's queue; 0 when the broker does not answer."""
    from runs.tasks import bell

    for number in range(count):
        try:
            bell.apply_async(queue=queue_of(host_name), expires=BELL_EXPIRES_SECONDS)
        except (OperationalError, RedisError, OSError) as error:
            logger.warning("bell.not_sent", host=host_name, error=str(error))
            return number
    return count
