"""Guards that bench/chaos.py can switch off, one at a time, to prove that it would notice.

Each is asked for in one place. In any other installation all are on: settings.CHAOS_BREAK is
refused without CHAOS=1.
"""

import uuid
from enum import StrEnum

from django.conf import settings
from django.db.models import Q


class Guard(StrEnum):
    # A write about an attempt is conditional on its lease token.
    FENCING = "fencing"
    # After an outage or a clock jump the reaper waits before it takes silence for loss.
    GRACE = "grace"
    # An attempt with a live supervisor is not adopted.
    ADOPTION = "adoption"
    # A checkpoint's manifest is written after its data, and what is read back has its hashes.
    MANIFEST = "manifest"


def is_on(guard: Guard) -> bool:
    return guard != str(settings.CHAOS_BREAK)


def fence(token: uuid.UUID | None) -> Q:
    """The filter of every write under a lease: the row still has this token."""
    return Q(lease_token=token) if is_on(Guard.FENCING) else Q()
