"""Rows of runs in the Django admin. States and outcomes are for reading: they change by the one
door only (Attempt.move), which keeps the history and what follows from it."""

from django.apps import apps
from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest

from runs.models import (
    Attempt,
    Experiment,
    GpuLease,
    GradingReport,
    IdempotencyKey,
    Import,
    Installation,
    LogSegment,
    Move,
    Run,
    RunGroup,
    SubmissionSnapshot,
)


class ReadOnly(admin.ModelAdmin):
    """To look at. What changes these rows is code, with its rules."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@admin.register(Experiment)
class ExperimentAdmin(admin.ModelAdmin):
    list_display = ["name", "agent", "created_by", "created_at"]
    search_fields = ["name"]
    list_select_related = ["agent", "created_by"]
    # A group's agent is its experiment's.
    readonly_fields = ["agent", "created_by", "created_at"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False


@admin.register(RunGroup)
class RunGroupAdmin(ReadOnly):
    list_display = ["pk", "experiment", "agent", "container_config", "created_by", "created_at"]
    list_filter = ["runtime", "split"]
    search_fields = ["experiment__name", "folder"]
    list_select_related = ["experiment", "agent", "container_config", "created_by"]


@admin.register(Run)
class RunAdmin(ReadOnly):
    list_display = ["pk", "group", "competition", "seed", "state", "result", "score", "tries_used"]
    list_filter = ["state", "result"]
    search_fields = ["competition__name", "uuid"]
    list_select_related = ["group__experiment", "competition"]


class MoveInline(admin.TabularInline):
    model = Move
    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Attempt | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Attempt | None = None) -> bool:
        return False


@admin.register(Attempt)
class AttemptAdmin(ReadOnly):
    list_display = ["pk", "run", "number", "state", "outcome", "cause", "host", "ended_at"]
    list_filter = ["state", "outcome", "cause", "host"]
    search_fields = ["run__competition__name", "container_id"]
    list_select_related = ["run__competition", "host"]
    inlines = [MoveInline]


@admin.register(Move)
class MoveAdmin(ReadOnly):
    list_display = ["at", "attempt", "old", "new", "outcome", "cause", "by"]
    list_filter = ["new", "outcome"]
    list_select_related = ["attempt__run__competition"]


@admin.register(GradingReport)
class GradingReportAdmin(ReadOnly):
    list_display = ["pk", "attempt", "score", "any_medal", "valid_submission", "is_current"]
    list_filter = ["is_current", "any_medal", "valid_submission"]
    list_select_related = ["attempt__run__competition"]


@admin.register(SubmissionSnapshot)
class SubmissionSnapshotAdmin(ReadOnly):
    list_display = ["attempt", "taken_at", "active_seconds", "size", "is_valid", "score"]
    list_filter = ["is_valid"]
    list_select_related = ["attempt__run__competition"]


@admin.register(GpuLease)
class GpuLeaseAdmin(ReadOnly):
    list_display = ["pk", "gpu", "attempt", "released_at"]
    list_select_related = ["gpu", "attempt__run__competition"]


@admin.register(LogSegment)
class LogSegmentAdmin(ReadOnly):
    list_display = ["attempt", "source", "first_byte", "length", "first_line", "shipped_at"]
    list_filter = ["source"]
    list_select_related = ["attempt__run__competition"]


@admin.register(Installation)
class InstallationAdmin(ReadOnly):
    list_display = ["name", "created_at"]


@admin.register(Import)
class ImportAdmin(ReadOnly):
    list_display = ["source", "state", "experiment", "asked_by", "asked_at"]
    list_select_related = ["asked_by"]


@admin.register(IdempotencyKey)
class IdempotencyKeyAdmin(ReadOnly):
    list_display = ["key", "user", "status", "created_at"]
    list_select_related = ["user"]


# What has no page of its own above can at least be looked at. Last: `runs` is loaded after the
# apps below it.
for label in ("accounts", "catalog", "fleet", "runs"):
    for model in apps.get_app_config(label).get_models():
        if not admin.site.is_registered(model):
            admin.site.register(model, ReadOnly)
