"""The audit log: one entry for each act of a person, written in the act's own transaction."""

from collections.abc import Mapping

from django.db.models import Model

from mlebench_web.accounts.models import AuditEntry, User

# Who acts when nobody signed in: whoever may run commands on the server.
SHELL = "server's shell"


def name_of(by: User | None) -> str:
    return by.get_username() if by else SHELL


def record(
    by: User | None,
    action: str,
    what: Model,
    *,
    reason: str = "",
    by_name: str = "",
    detail: Mapping[str, object] | None = None,
) -> AuditEntry:
    """`by` None: the server's shell, or whoever `by_name` says."""
    return AuditEntry.objects.create(
        actor=by,
        actor_name=by_name or name_of(by),
        action=action,
        object_type=str(what._meta.verbose_name),
        object_id=str(what.pk),
        reason=reason,
        detail=dict(detail or {}),
    )
