"""Idempotency keys: a request that is sent again, or twice at once, changes nothing more.

The key is inserted in the transaction of the act itself. Of two requests at once the second waits
for the first one's commit, finds the key taken and gives the stored answer; after a rollback (an
error) the key is free, and a corrected request may use it.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from django.db import IntegrityError, transaction
from django.http import HttpRequest
from ninja.responses import Status
from pydantic import BaseModel

from mlebench_web.accounts.models import User
from runs.api.problems import Problem
from runs.models import IdempotencyKey
from runs.request import FieldError, RequestInvalid

HEADER = "Idempotency-Key"
LONGEST = 200


def once(request: HttpRequest, by: User, act: Callable[[], BaseModel], *, status: int) -> Status:
    """Do `act` in one transaction and answer with its result, or repeat an earlier answer."""
    key = request.headers.get(HEADER)
    if key is None:
        with transaction.atomic():
            return Status(status, act())
    _check(key)
    digest = _digest(request)
    with transaction.atomic():
        try:
            with transaction.atomic():
                row = IdempotencyKey.objects.create(user=by, key=key, request_digest=digest)
        except IntegrityError:
            return _earlier_answer(IdempotencyKey.objects.get(user=by, key=key), digest)
        made = act()
        row.status = status
        row.answer = made.model_dump(mode="json")
        row.save(update_fields=["status", "answer"])
    return Status(status, made)


def repeatable(request: HttpRequest, by: User, act: Callable[[], Status], *, asked: Any) -> Status:
    """The same for an act that changes nothing when it is repeated, and that must not wait for, or
    be undone with, the key's transaction. `asked`: what the request asks for, in place of its body.

    Of two such requests at once both act; the second finds nothing left to do.
    """
    key = request.headers.get(HEADER)
    if key is None:
        return act()
    _check(key)
    text = json.dumps([request.method, request.get_full_path(), asked], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if row := IdempotencyKey.objects.filter(user=by, key=key).first():
        return _earlier_answer(row, digest)
    made = act()
    row, _ = IdempotencyKey.objects.get_or_create(
        user=by,
        key=key,
        defaults={
            "request_digest": digest,
            "status": made.status_code,
            "answer": made.value.model_dump(mode="json"),
        },
    )
    return _earlier_answer(row, digest)


def _check(key: str) -> None:
    if not 1 <= len(key) <= LONGEST or not key.isprintable():
        raise RequestInvalid([FieldError(HEADER, f"Write 1 to {LONGEST} printable characters.")])


def _earlier_answer(row: IdempotencyKey, digest: str) -> Status:
    if row.request_digest != digest:
        raise Problem(
            409,
            f"This {HEADER} was used for another request. Send a new one for a new request.",
            [FieldError(HEADER, "It belongs to another request.")],
        )
    if row.status is None:
        raise Problem(409, "The first request with this key is still at work.")
    return Status(row.status, row.answer)


def _digest(request: HttpRequest) -> str:
    """Of what was asked; two spellings of one JSON text ask the same."""
    try:
        body: Any = json.loads(request.body) if request.body else None
    except (ValueError, RecursionError):
        body = request.body.hex()
    text = json.dumps([request.method, request.get_full_path(), body], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
