"""The API object: tokens, error answers, documentation."""

from typing import Any

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest
from django.views.decorators.csp import csp_override
from ninja import NinjaAPI
from ninja.security import HttpBearer

from mlebench_web import __version__
from mlebench_web.accounts import tokens
from mlebench_web.accounts.models import User
from mlebench_web.accounts.rules import reason_against
from runs.api import problems


class Bearer(HttpBearer):
    """`Authorization: Bearer <token>`. No session cookie: a page of another site has none of ours
    to send, so no request needs a CSRF token."""

    def authenticate(self, request: HttpRequest, token: str) -> User | None:
        return tokens.user_of(token.strip())


class ApiRequest(HttpRequest):
    """What an operation gets: `auth` is the token's user."""

    auth: User


def demand(user: User, permission: str, thing: Any = None) -> None:
    """The same rules as the pages'. Raises PermissionDenied with the reason."""
    if why := reason_against(user, permission, thing):
        raise PermissionDenied(why)


api = NinjaAPI(
    title="mlebench-web API",
    version=__version__,
    description="Submit, watch, cancel and re-run MLE-bench runs; read the leaderboard. "
    "Get a token on the account page, or with `manage.py createtoken --user NAME --role ROLE`.",
    auth=Bearer(),
    urls_namespace="api",
    # Swagger's arrows are images inside its style sheet; scripts and styles stay as strict.
    docs_decorator=csp_override(
        {**settings.SECURE_CSP, "img-src": [*settings.SECURE_CSP["img-src"], "data:"]}
    ),
)
problems.install(api)
