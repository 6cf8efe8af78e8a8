"""What every page needs."""

from django.apps import apps
from django.conf import settings
from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject

import mlebench_web
from mlebench_web.fleet.models import Gpu

THEMES = ("auto", "light", "dark")


def page(request: HttpRequest) -> dict[str, object]:
    theme = request.COOKIES.get("theme", "auto")
    user = getattr(request, "user", None)
    return {
        "theme": theme if theme in THEMES else "auto",
        "themes": THEMES,
        "debug": settings.DEBUG,
        "version": mlebench_web.__version__,
        # Lazy: a fragment does not ask for it.
        "busy": SimpleLazyObject(_busy),
        "may_rerun_all": bool(user and user.has_perm("runs.rerun_all")),
        "may_manage_people": bool(user and user.has_perm("accounts.manage_people")),
    }


def _busy() -> str:
    """The one line of the header: how much of the fleet is at work. Costs two queries."""
    gpus = Gpu.objects.filter(is_present=True, is_mig_parent=False)
    if total := gpus.count():
        busy = gpus.filter(leases__released_at__isnull=True, leases__isnull=False).distinct()
        return f"{busy.count()} of {total} GPUs busy"
    # By name: this module wires the project and imports none of its runs.
    attempts = apps.get_model("runs", "Attempt").objects.holding().count()
    return f"{attempts or 'no'} run{'' if attempts == 1 else 's'} at work"
