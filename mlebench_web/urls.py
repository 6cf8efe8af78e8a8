from allauth.account.decorators import secure_admin_login
from allauth.account.models import EmailAddress
from django.contrib import admin
from django.contrib.auth.models import Group
from django.urls import include, path

from mlebench_web.accounts import views as accounts
from runs.api.health import healthz

admin.site.site_header = "mlebench-web"
admin.site.site_title = "mlebench-web"
# Nothing reads these: permissions follow from the role, and mail addresses stand with the people.
admin.site.unregister([EmailAddress, Group])
# One door for signing in: allauth's, with its limit on wrong passwords.
admin.site.login = secure_admin_login(admin.site.login)  # type: ignore[method-assign]

urlpatterns = [
    path("", include("runs.urls")),
    path("setup/<str:token>/", accounts.setup, name="setup"),
    path("invitation/<str:token>/", accounts.invitation, name="invitation"),
    path("account/", include("mlebench_web.accounts.urls")),
    path("api/v1/", include("runs.api.urls")),
    # Without the prefix too: where probes look first.
    path("healthz", healthz, name="healthz"),
    path("django-admin/", admin.site.urls),
]
