"""People, their roles, and what they did."""

import hashlib
import secrets
from datetime import timedelta

from django.contrib.auth.models import AbstractUser
from django.db import models
from django.utils import timezone


def digest_of(token: str) -> str:
    """What is stored of a token: its SHA-256, so that a stolen database opens nothing."""
    return hashlib.sha256(token.encode()).hexdigest()


class Role(models.TextChoices):
    """From least to most: each may do all that the one before may."""

    VIEWER = "viewer"
    RESEARCHER = "researcher"
    LEAD = "lead"
    ADMIN = "admin"


RANK = {Role.VIEWER: 0, Role.RESEARCHER: 1, Role.LEAD: 2, Role.ADMIN: 3}


class Team(models.Model):
    """Whose runs share: the queue is fair between teams."""

    name = models.CharField(max_length=100, unique=True)

    def __str__(self) -> str:
        return self.name


class User(AbstractUser):
    role = models.CharField(max_length=20, choices=Role.choices, default=Role.VIEWER)
    team = models.ForeignKey(
        Team, on_delete=models.SET_NULL, null=True, blank=True, related_name="members"
    )

    def is_at_least(self, role: Role) -> bool:
        if not self.is_active:
            return False
        return self.is_superuser or RANK[Role(self.role)] >= RANK[role]


class OneTimeLink(models.Model):
    """A link that works once: the first admin's set-up, or an invitation.

    Only the digest is stored; the link is shown when it is made and never again.
    """

    class Purpose(models.TextChoices):
        SETUP = "setup"
        INVITE = "invite"

    purpose = models.CharField(max_length=10, choices=Purpose.choices)
    digest = models.CharField(max_length=64, unique=True)
    role = models.CharField(max_length=20, choices=Role.choices, default=Role.RESEARCHER)
    email = models.EmailField(blank=True)
    made_by = models.ForeignKey(User, on_delete=models.CASCADE, null=True, blank=True)
    made_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return f"{self.purpose} link {self.pk}"

    @classmethod
    def make(
        cls,
        purpose: Purpose,
        *,
        lasts: timedelta,
        role: Role = Role.RESEARCHER,
        email: str = "",
        made_by: User | None = None,
    ) -> str:
        """The token of a new link, the only time that it can be seen."""
        token = secrets.token_urlsafe(24)
        cls.objects.create(
            purpose=purpose,
            digest=digest_of(token),
            role=role,
            email=email,
            made_by=made_by,
            expires_at=timezone.now() + lasts,
        )
        return token

    @classmethod
    def find(cls, purpose: Purpose, token: str) -> "OneTimeLink | None":
        """The unused, unexpired link of this token."""
        return cls.objects.filter(
            purpose=purpose,
            digest=digest_of(token),
            used_at__isnull=True,
            expires_at__gt=timezone.now(),
        ).first()

    def use(self) -> bool:
        """True for the one caller that uses the link up."""
        now = timezone.now()
        return bool(
            OneTimeLink.objects.filter(pk=self.pk, used_at__isnull=True).update(used_at=now)
        )


class ApiToken(models.Model):
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="tokens")
    name = models.CharField(max_length=100)
    digest = models.CharField(max_length=64, unique=True)
    # Enough of the token to recognise it in a list, too little to use it.
    hint = models.CharField(max_length=12)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return f"{self.name} ({self.hint}…)"

    @classmethod
    def make(
        cls, user: User, *, name: str, lasts: timedelta | None = None
    ) -> tuple["ApiToken", str]:
        """A new token and its value, which cannot be seen again."""
        value = f"mlw_{secrets.token_urlsafe(32)}"
        token = cls.objects.create(
            user=user,
            name=name,
            digest=digest_of(value),
            hint=value[:8],
            expires_at=timezone.now() + lasts if lasts else None,
        )
        return token, value


class Secret(models.Model):
    """A value that agents ask for as `${{ secrets.NAME }}`, sealed; see accounts.vault.

    It belongs to a person or to a team. A replaced or deleted one is kept sealed for some weeks,
    so that it can still be taken out of the logs of runs that had it.
    """

    name = models.CharField(max_length=100)
    user = models.ForeignKey(
        User, on_delete=models.CASCADE, null=True, blank=True, related_name="secrets"
    )
    team = models.ForeignKey(
        Team, on_delete=models.CASCADE, null=True, blank=True, related_name="secrets"
    )
    sealed = models.TextField()
    made_by = models.CharField(max_length=150)
    made_at = models.DateTimeField(auto_now_add=True)
    retired_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.CheckConstraint(
                name="one_owner",
                condition=models.Q(user__isnull=False, team__isnull=True)
                | models.Q(user__isnull=True, team__isnull=False),
            ),
            models.UniqueConstraint(
                fields=["name", "user"],
                condition=models.Q(retired_at__isnull=True, user__isnull=False),
                name="one_secret_a_user_name",
            ),
            models.UniqueConstraint(
                fields=["name", "team"],
                condition=models.Q(retired_at__isnull=True, team__isnull=False),
                name="one_secret_a_team_name",
            ),
        ]

    def __str__(self) -> str:
        return self.name


class AuditEntry(models.Model):
    """Who did what to which object, and why. Only ever added to."""

    at = models.DateTimeField(auto_now_add=True)
    actor = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, blank=True)
    # The name as it was: a deleted user's entries still say who.
    actor_name = models.CharField(max_length=150)
    action = models.CharField(max_length=50)
    object_type = models.CharField(max_length=50)
    object_id = models.CharField(max_length=100)
    reason = models.TextField(blank=True)
    detail = models.JSONField(default=dict, blank=True)

    class Meta:
        verbose_name_plural = "audit entries"
        ordering = ["-at"]

    def __str__(self) -> str:
        return f"{self.actor_name} {self.action} {self.object_type} {self.object_id}"
