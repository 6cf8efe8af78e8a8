from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("", include("runs.urls")),
    path("account/", include("mlebench_web.accounts.urls")),
    path("account/", include("allauth.account.urls")),
    path("fleet/", include("mlebench_web.fleet.urls")),
    path("api/v1/", include("runs.api.urls")),
    path("django-admin/", admin.site.urls),
]
