"""The first admin: who there is, and the one-time link that makes one."""

from datetime import timedelta

from django.contrib.auth.hashers import UNUSABLE_PASSWORD_PREFIX
from django.db import transaction
from django.urls import reverse

from mlebench_web.accounts.models import OneTimeLink, Role, User

LINK_LASTS = timedelta(hours=24)


def admins() -> list[str]:
    """Names of the admins who can sign in. One that has tokens only opens no page."""
    able = User.objects.filter(role=Role.ADMIN, is_active=True) | User.objects.filter(
        is_superuser=True, is_active=True
    )
    return list(
        able.exclude(password__startswith=UNUSABLE_PASSWORD_PREFIX)
        .order_by("username")
        .values_list("username", flat=True)
    )


@transaction.atomic
def new_link_path() -> str:
    """The path of a new link that makes an admin; older unused ones stop working."""
    OneTimeLink.objects.filter(purpose=OneTimeLink.Purpose.SETUP, used_at__isnull=True).delete()
    token = OneTimeLink.make(OneTimeLink.Purpose.SETUP, lasts=LINK_LASTS, role=Role.ADMIN)
    return reverse("setup", args=[token])
