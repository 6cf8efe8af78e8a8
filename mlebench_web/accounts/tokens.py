"""Who a bearer token belongs to."""

from datetime import timedelta

from django.db.models import Q
from django.utils import timezone

from mlebench_web.accounts.models import ApiToken, User, digest_of

# "Last used" is for people: a write a minute is exact enough, one a request would be a load.
LAST_USED_EVERY = timedelta(minutes=1)
# Longer than any token that was ever made: nobody's megabyte is hashed.
LONGEST = 200


def user_of(token: str) -> User | None:
    """The active user of a valid token.

    The digest is looked up, so the time that it takes says nothing about the token's characters.
    """
    if not token or len(token) > LONGEST:
        return None
    now = timezone.now()
    row = (
        ApiToken.objects.select_related("user", "user__team")
        .filter(digest=digest_of(token), user__is_active=True)
        .filter(Q(expires_at__isnull=True) | Q(expires_at__gt=now))
        .first()
    )
    if row is None:
        return None
    if row.last_used_at is None or now - row.last_used_at > LAST_USED_EVERY:
        ApiToken.objects.filter(pk=row.pk).update(last_used_at=now)
    return row.user
