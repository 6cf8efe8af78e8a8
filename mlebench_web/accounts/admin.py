from django.contrib import admin
from django.contrib.auth.admin import UserAdmin
from django.db.models import Model
from django.http import HttpRequest

from mlebench_web.accounts.models import ApiToken, AuditEntry, OneTimeLink, Team, User


@admin.register(User)
class PersonAdmin(UserAdmin):
    """Also where an admin sets somebody's new password."""

    list_display = ["username", "email", "role", "team", "is_active", "last_login"]
    list_filter = ["role", "team", "is_active"]
    list_select_related = ["team"]
    fieldsets = (
        (None, {"fields": ("username", "password")}),
        ("Person", {"fields": ("email", "role", "team")}),
        ("Account", {"fields": ("is_active", "is_staff", "is_superuser")}),
        ("Times", {"fields": ("last_login", "date_joined")}),
    )
    readonly_fields = ["last_login", "date_joined"]


@admin.register(Team)
class TeamAdmin(admin.ModelAdmin):
    search_fields = ["name"]


class Kept(admin.ModelAdmin):
    """Made by the product; here to look at, and where it is safe to delete."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@admin.register(OneTimeLink)
class OneTimeLinkAdmin(Kept):
    list_display = ["purpose", "role", "email", "made_by", "made_at", "expires_at", "used_at"]
    list_select_related = ["made_by"]
    exclude = ["digest"]


@admin.register(ApiToken)
class ApiTokenAdmin(Kept):
    list_display = ["name", "user", "hint", "created_at", "expires_at", "last_used_at"]
    list_select_related = ["user"]
    exclude = ["digest"]


@admin.register(AuditEntry)
class AuditEntryAdmin(Kept):
    list_display = ["at", "actor_name", "action", "object_type", "object_id", "reason"]
    list_filter = ["action", "object_type"]
    search_fields = ["actor_name", "object_id", "reason"]

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False
