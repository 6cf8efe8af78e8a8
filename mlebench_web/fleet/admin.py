from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest

from mlebench_web.fleet.models import Gpu, Host, PreparedData


class Reported(admin.ModelAdmin):
    """What hosts say of themselves; a change here would be overwritten by the next report."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@admin.register(Host)
class HostAdmin(Reported):
    list_display = ["name", "worker_seen_at", "service_seen_at", "is_draining", "slots", "version"]


@admin.register(Gpu)
class GpuAdmin(Reported):
    list_display = ["host", "index", "name", "uuid", "is_present", "fault", "seen_at"]
    list_filter = ["host", "is_present"]
    list_select_related = ["host"]


@admin.register(PreparedData)
class PreparedDataAdmin(Reported):
    list_display = ["competition", "host", "state", "error", "updated_at"]
    list_filter = ["state", "host"]
    list_select_related = ["competition", "host"]
