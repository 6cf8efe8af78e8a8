"""/api/v1/: every answer is JSON, also for an address or a method that is not there."""

from django.urls import path, re_path
from django.urls.resolvers import URLPattern

from runs.api import catalog, groups, health, imports, leaderboard, regrades, runs
from runs.api.app import api
from runs.api.problems import as_json, not_found

for part in (catalog, groups, runs, regrades, leaderboard, imports):
    api.add_router("", part.router)

_patterns, _app_name, _namespace = api.urls
for _pattern in _patterns:
    if isinstance(_pattern, URLPattern):
        _pattern.callback = as_json(_pattern.callback)

urlpatterns = [
    path("healthz", health.healthz),
    path("", (_patterns, _app_name, _namespace)),
    re_path("", not_found),
]
