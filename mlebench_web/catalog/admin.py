from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest

from mlebench_web.catalog.models import Agent, AgentImage, Competition, ContainerConfig, Split


@admin.register(Competition)
class CompetitionAdmin(admin.ModelAdmin):
    list_display = ["name", "category", "metric", "is_lower_better", "is_demo", "known_issue"]
    list_filter = ["is_demo", "category"]
    search_fields = ["name", "title"]


@admin.register(Split)
class SplitAdmin(admin.ModelAdmin):
    list_display = ["name", "title", "position"]
    filter_horizontal = ["competitions"]


@admin.register(Agent)
class AgentAdmin(admin.ModelAdmin):
    list_display = ["name", "image_name", "network", "privileged", "is_builtin", "is_listed"]
    search_fields = ["name"]


@admin.register(ContainerConfig)
class ContainerConfigAdmin(admin.ModelAdmin):
    list_display = ["name", "runtime", "description", "position", "is_builtin"]


@admin.register(AgentImage)
class AgentImageAdmin(admin.ModelAdmin):
    """Built by `manage.py build_agent`; a row that nobody built would be a lie."""

    list_display = ["image_name", "state", "image_id", "base_image", "started_at", "ended_at"]
    list_filter = ["state"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False
