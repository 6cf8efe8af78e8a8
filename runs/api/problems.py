"""Error answers: always JSON, always {"detail", "errors": [{"field", "message", "allowed"}]}."""

import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import structlog
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse
from ninja import NinjaAPI
from ninja.errors import AuthenticationError, HttpError, ValidationError

from runs.aside import HostAnswers
from runs.regrading import NothingToGrade
from runs.request import FieldError, RequestInvalid
from runs.resuming import CannotSave
from runs.submit import AlreadyEnded, NotRerunnable

logger = structlog.get_logger(__name__)

# Pydantic's own words speak of Python; these speak of JSON.
MESSAGES = {
    "missing": "This field is needed.",
    "string_type": "Write a text.",
    "string_unicode": "The text is no valid Unicode.",
    "int_type": "Write a whole number.",
    "int_parsing": "Write a whole number.",
    "int_from_float": "Write a whole number.",
    "bool_type": "Write true or false.",
    "bool_parsing": "Write 1 or 0.",
    "dict_type": "Write an object.",
    "list_type": "Write a list.",
    "model_type": "Write an object.",
    "model_attributes_type": "Write an object.",
}
QUOTED = re.compile(r"'([^']*)'")


class Problem(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, detail: str, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors


def answer(status: int, detail: str, errors: Sequence[FieldError] = ()) -> JsonResponse:
    listed = [
        {"field": error.field, "message": error.message, "allowed": error.allowed}
        for error in errors
    ]
    response = JsonResponse({"detail": detail, "errors": listed}, status=status)
    if status == 401:
        response["WWW-Authenticate"] = "Bearer"
    return response


def invalid(errors: Sequence[FieldError]) -> JsonResponse:
    return answer(422, " ".join(f"{error.field}: {error.message}" for error in errors), errors)


def install(api: NinjaAPI) -> None:
    """Make every exception that an operation may raise an answer."""

    def handles(kind: type[Exception], make: Callable[[Any], HttpResponse]) -> None:
        api.add_exception_handler(kind, lambda request, error: make(error))

    handles(Problem, lambda error: answer(error.status, error.detail, error.errors))
    handles(RequestInvalid, lambda error: invalid(error.errors))
    handles(NotRerunnable, lambda error: invalid([FieldError(error.field, str(error))]))
    handles(CannotSave, lambda error: answer(409, str(error)))
    handles(NothingToGrade, lambda error: answer(409, str(error)))
    handles(AlreadyEnded, lambda error: answer(409, str(error)))
    handles(HostAnswers, lambda error: answer(409, str(error)))
    handles(ValidationError, lambda error: invalid(_fields(error.errors)))
    handles(
        AuthenticationError,
        lambda error: answer(
            401, "Send a valid token: Authorization: Bearer <token> (manage.py createtoken)."
        ),
    )
    handles(HttpError, lambda error: answer(error.status_code, str(error)))
    handles(Http404, lambda error: answer(404, str(error) or "There is no such thing."))
    handles(PermissionDenied, lambda error: answer(403, str(error) or "You may not do this."))
    api.add_exception_handler(Exception, _unforeseen)


def _unforeseen(request: HttpRequest, error: Any) -> HttpResponse:
    logger.error("api.failed", method=request.method, path=request.path, exc_info=error)
    return answer(500, "mlebench-web itself failed; its log says how.")


def _fields(found: Sequence[dict]) -> list[FieldError]:
    """Pydantic's errors, one a field. A union's branches, all unhappy, are one complaint."""
    by_field: dict[str, FieldError] = {}
    for each in found:
        if each["type"] == "unknown_fields":
            context = each["ctx"]
            for name in context["names"]:
                by_field[name] = FieldError(
                    name, "There is no such field.", list(context["allowed"])
                )
            continue
        # ("body", <parameter>, <field>, …) or ("query", <parameter>, …)
        where = [str(part) for part in each["loc"]]
        name = (where[2] if len(where) > 2 else "body") if where[0] == "body" else where[-1]
        message = MESSAGES.get(each["type"], f"{each['msg']}.")
        # Pydantic lists the values of an enumeration as text only: 'agent', 'run' or 'grader'.
        is_enum = each["type"] == "enum"
        allowed = QUOTED.findall(each["ctx"]["expected"]) if is_enum else None
        if name in by_field:
            if message in by_field[name].message:
                continue
            message = f"{by_field[name].message} Or: {message}"
        by_field[name] = FieldError(name, message, allowed)
    return list(by_field.values())


def as_json(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """What the router itself refuses (a wrong method) is answered like everything else."""

    @wraps(view)
    def wrapped(request: HttpRequest, *args: object, **kwargs: object) -> HttpResponse:
        if "\0" in request.path or "%00" in request.META.get("QUERY_STRING", ""):
            # PostgreSQL refuses it in a text, SQLite finds nothing; here both say the same.
            return answer(404, "Nothing has a NUL character in its name.")
        response = view(request, *args, **kwargs)
        if isinstance(response, HttpResponseNotAllowed):
            allowed = response["Allow"]
            refused = answer(405, f"{request.method} is not allowed here; allowed: {allowed}.")
            refused["Allow"] = allowed
            return refused
        return response

    return wrapped


def not_found(request: HttpRequest) -> HttpResponse:
    return answer(404, f"There is no {request.path}; /api/v1/docs lists what there is.")
