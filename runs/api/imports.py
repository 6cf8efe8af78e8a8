"""Imports: archives, grading reports, folders of the server."""

import hashlib
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from django.core.files.uploadedfile import UploadedFile
from django.http import Http404, HttpRequest
from ninja import Router
from ninja.responses import Status
from pydantic import BaseModel, Field, ValidationError

from runs import imports
from runs.api.app import ApiRequest, demand
from runs.api.asked import LARGEST_ID, Asked, Limit, Offset, Text
from runs.api.objects import Page, address
from runs.api.once import repeatable
from runs.api.pages import page
from runs.api.problems import Problem
from runs.importing import ImportRefused
from runs.imports import Upload
from runs.models import Import
from runs.request import FieldError, RequestInvalid

router = Router(tags=["imports"])


class ImportedGroup(BaseModel):
    """A run group of an import: made, known already, or what would be made."""

    id: int | None  # null: not made by this import
    experiment: str
    name: str
    known: str  # why it was left alone; empty: it is new
    runs: int
    competitions: int
    seeds: int
    reports: int
    gradings: int
    has_files: bool
    made_at: datetime | None
    warnings: list[str]
    skipped: list[dict[str, str]]  # what, why
    skipped_count: int


class ImportObject(BaseModel):
    id: int
    state: str  # waiting, at_work, done, refused
    dry_run: bool
    source: str
    experiment: str | None
    phase: str | None
    error: str | None
    run_groups: int | None  # new ones, made or that would be made
    runs: int | None
    reports: int | None
    known: int | None
    groups: list[ImportedGroup]
    skipped: list[dict[str, str]]
    warnings: list[str]
    asked_by: str | None
    asked_at: datetime
    ended_at: datetime | None
    url: str

    @classmethod
    def of(cls, row: Import) -> "ImportObject":
        answer: dict[str, Any] = row.answer
        return cls(
            id=row.pk,
            state=row.state,
            dry_run=row.is_dry_run,
            source=row.source,
            experiment=row.experiment or None,
            phase=row.phase or None,
            error=row.error or None,
            run_groups=answer.get("run_groups"),
            runs=answer.get("runs"),
            reports=answer.get("reports"),
            known=answer.get("known"),
            groups=[ImportedGroup(**{"id": None, **each}) for each in answer.get("groups", ())],
            skipped=answer.get("skipped", []),
            warnings=answer.get("warnings", []),
            asked_by=row.asked_by.get_username() if row.asked_by else None,
            asked_at=row.asked_at,
            ended_at=row.ended_at,
            url=address(row.get_absolute_url()),
        )


class FolderToImport(Asked):
    """A folder or an archive of the server; admins only."""

    path: Text = Field(max_length=1000, examples=["/srv/mle-bench/runs"])
    experiment: Text = Field(default="", max_length=200)
    dry_run: bool = False


# Two kinds of body at one address: the description says so by hand.
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "description": "one tar, tar.gz or zip; or grading reports (.json), "
                            "each a seed, in this order",
                        },
                        "experiment": {"type": "string", "maxLength": 200},
                        "dry_run": {"type": "boolean"},
                    },
                }
            },
            "application/json": {"schema": FolderToImport.model_json_schema()},
        },
    }
}


@router.post("/imports", response={201: ImportObject, 202: ImportObject}, openapi_extra=BODY)
def create(request: ApiRequest) -> Status:
    """Import what was run elsewhere: files (multipart), or for admins a path of the server (JSON).

    Small uploads are done at once: 201. The rest is done by a host service: 202; ask for the import
    until its state is `done` or `refused`. Importing again changes nothing. 422 says what is in the
    way; nothing was imported then.
    """
    if request.content_type == "multipart/form-data":
        return upload(request)
    demand(request.auth, "runs.import_folder")
    body = folder_asked(request)
    return repeatable(
        request,
        request.auth,
        lambda: answered(
            "path",
            lambda: imports.ask_folder(
                body.path, experiment=body.experiment, is_dry_run=body.dry_run, by=request.auth
            ),
        ),
        asked=body.model_dump(),
    )


def folder_asked(request: HttpRequest) -> FolderToImport:
    try:
        body = json.loads(request.body)
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"The body is no JSON: {error}.") from error
    try:
        return FolderToImport.model_validate(body)
    except ValidationError as error:
        fields = [
            FieldError(".".join(map(str, each["loc"])) or "body", f"{each['msg']}.")
            for each in error.errors()
        ]
        raise RequestInvalid(fields) from error


def upload(request: ApiRequest) -> Status:
    demand(request.auth, "runs.import")
    if unknown := sorted({*request.POST, *request.FILES} - {"file", "experiment", "dry_run"}):
        allowed = ["file", "experiment", "dry_run"]
        raise RequestInvalid(
            [FieldError(name, "There is no such field.", allowed) for name in unknown]
        )
    dry_run = request.POST.get("dry_run", "false").lower()
    if dry_run not in ("true", "false", "1", "0"):
        raise RequestInvalid([FieldError("dry_run", "Write true or false.", ["true", "false"])])
    files = request.FILES.getlist("file")
    uploads = [Upload(each.name or "", each.size or 0, each) for each in files]
    experiment = request.POST.get("experiment", "")
    return repeatable(
        request,
        request.auth,
        lambda: answered(
            "file",
            lambda: imports.ask_upload(
                uploads,
                experiment=experiment,
                is_dry_run=dry_run in ("true", "1"),
                by=request.auth,
            ),
        ),
        asked=[experiment, dry_run, *(digest_of(each) for each in files)],
    )


def digest_of(upload: UploadedFile) -> str:
    digest = hashlib.sha256()
    for chunk in upload.chunks():
        digest.update(chunk)
    upload.seek(0)
    return f"{upload.name} {digest.hexdigest()}"


def answered(field: str, act: Callable[[], Import]) -> Status:
    try:
        row = act()
    except ImportRefused as error:
        raise RequestInvalid([FieldError(field, str(error))]) from error
    return Status(201 if row.is_over else 202, ImportObject.of(row))


@router.get("/imports", response=Page[ImportObject])
def list_imports(request: ApiRequest, limit: Limit, offset: Offset) -> Page[ImportObject]:
    """Newest first."""
    return page(
        request,
        Import.objects.select_related("asked_by"),
        lambda rows: [ImportObject.of(row) for row in rows],
        limit=limit,
        offset=offset,
    )


@router.get("/imports/{int:pk}", response=ImportObject)
def one(request: ApiRequest, pk: int) -> ImportObject:
    rows = Import.objects.select_related("asked_by")
    row = rows.filter(pk=pk).first() if pk <= LARGEST_ID else None
    if row is None:
        raise Http404(f"There is no import {pk}.")
    return ImportObject.of(row)
