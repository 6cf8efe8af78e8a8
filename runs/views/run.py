"""One run: its state, attempts, submission, files; cancel and re-run."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import BinaryIO

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.db.models import Max, Prefetch
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.safestring import SafeString
from django.views.decorators.cache import never_cache
from django.views.decorators.http import condition, require_GET, require_POST
from django.views.decorators.vary import vary_on_headers

from mlebench_web.accounts.rules import reason_against
from mlebench_web.fleet import hosts
from mlebench_web.fleet.models import Host
from mlebench_web.http import SignedInRequest
from runs import agent_manifest, contact, layout, queue, regrading, resuming, submit
from runs.charts import (
    Piece,
    Scored,
    Stretch,
    Thresholds,
    number_line,
    score_curve,
    timeline,
)
from runs.core.comparability import gibibytes
from runs.core.container_config import ConfigRefused, limits_of
from runs.core.failures import Cause
from runs.core.states import Outcome, RunState, State
from runs.models import Attempt, Checkpoint, GradingReport, Move, Run
from runs.views import marks, run_log, spans, steps
from runs.views.groups import rerun_and_tell
from runs.views.picture import OVER, hardware_words
from runs.views.streaming import streamed
from runs.workspace import Refused, open_beneath

FRESH_FOR_S = 9
CHUNK_BYTES = 1024 * 1024
CHECKPOINTS_SHOWN = 20

OUTCOME_STATUS = {
    Outcome.GRADED: "ok",
    Outcome.AGENT_FAILED: "bad",
    Outcome.INFRASTRUCTURE_FAILED: "bad",
    Outcome.CANCELLED: "idle",
    Outcome.CONTINUED: "idle",
}
OUTCOME_FILL = {
    Outcome.GRADED: "f-a",
    Outcome.AGENT_FAILED: "f-bad",
    Outcome.INFRASTRUCTURE_FAILED: "f-bad",
    Outcome.CANCELLED: "f-b",
    Outcome.CONTINUED: "f-b",
}


def _run(pk: int) -> Run:
    attempts = Attempt.objects.select_related(
        "host", "resumed_from", "graded_snapshot"
    ).prefetch_related(
        Prefetch("reports", GradingReport.objects.filter(is_current=True), to_attr="current")
    )
    return get_object_or_404(
        Run.objects.select_related(
            "competition",
            "counted",
            "group__experiment",
            "group__agent",
            "group__split",
            "group__container_config",
            "group__image",
            "group__created_by",
            "group__team",
        ).prefetch_related(Prefetch("attempts", attempts.order_by("number"))),
        pk=pk,
    )


# ---------------------------------------------------------------------------- the page


def _tag(pk: int, user_pk: int | None) -> str:
    newest = Move.objects.filter(attempt__run=pk).aggregate(pk=Max("pk"))["pk"]
    bucket = int(timezone.now().timestamp() / FRESH_FOR_S)
    parts = repr((pk, newest, user_pk, bucket))
    return f'"{hashlib.sha256(parts.encode()).hexdigest()[:20]}"'


def run_tag(request: HttpRequest, pk: int) -> str | None:
    if not request.headers.get("HX-Request"):
        return None
    return _tag(pk, request.user.pk)


@login_required
@require_GET
@never_cache
@vary_on_headers("HX-Request")
@condition(etag_func=run_tag)
def run_page(request: SignedInRequest, pk: int) -> HttpResponse:
    # Before the rows are read: what moves meanwhile is seen by the next poll.
    tag = _tag(pk, request.user.pk)
    run = _run(pk)
    attempts = list(run.attempts.all())
    shown = _chosen(attempts, request.GET.get("attempt"))
    context = {
        "section": "runs",
        "run": run,
        "group": run.group,
        "competition": run.competition,
        "attempts": attempts,
        "attempt": shown,
        "poll_headers": json.dumps({"If-None-Match": tag}),
        "is_over": run.state in OVER,
        "is_poll": bool(request.htmx),
        **_state(run, attempts, shown),
        **_permissions(request, run),
    }
    context["steps"] = steps.overview(
        attempts,
        active_seconds=attempts[-1].active_seconds_by(hosts.now()),
        want_all=request.GET.get("steps") == "all",
    )
    if request.htmx and request.htmx.target == "log":
        return render(request, "runs/_log.html", context | run_log.context(request, shown))
    if request.htmx:
        return render(request, "runs/run.html#live", context)
    context |= run_log.context(request, shown) | _neighbours(run)
    return render(request, "runs/run.html", context)


def _chosen(attempts: list[Attempt], asked: str | None) -> Attempt:
    """The attempt that was asked for by number, else the newest."""
    if not attempts:
        raise Http404("This run has no attempt.")
    for attempt in attempts:
        if str(attempt.number) == asked:
            return attempt
    return attempts[-1]


def _state(run: Run, attempts: list[Attempt], shown: Attempt) -> dict[str, object]:
    now = hosts.now()
    newest = attempts[-1]
    looked = contact.as_of(now)
    is_lost = newest.has_lost_contact(looked)
    spent = [spans.spent(each, now, agent_seconds=_own_seconds(each, now)) for each in attempts]
    mark = marks.mark_of(run, outcome=newest.outcome, is_lost=is_lost)
    counted = next((each for each in attempts if each.pk == run.counted_id), None)
    report = _report(counted or shown)
    return {
        "now": now,
        "newest": newest,
        "mark": mark,
        "is_lost": is_lost,
        "is_stopping": bool(newest.cancel_requested_at) and not newest.is_ended,
        "waiting": queue.why_waiting(newest) if newest.state == State.QUEUED else "",
        "failure": newest if run.state == RunState.FAILED else None,
        "can_cancel": newest.state in (State.QUEUED, State.STARTING, State.RUNNING)
        and not newest.cancel_requested_at,
        "can_rerun": newest.is_ended and (newest.outcome != Outcome.GRADED or run.is_cut_short),
        "needs_reason": newest.outcome == Outcome.AGENT_FAILED,
        "rows": [_attempt_row(each, now, looked) for each in attempts],
        "timeline": _timeline(run, attempts, now),
        "spent": spent,
        "not_charged": spans.total(spent),
        "paused_seconds": shown.paused_seconds,
        "time_limit": queue.time_limit_of(newest) if run.group.time_limit else None,
        "asked": newest.asked.words(),
        **_curve(run, shown, _report(shown)),
        **_checkpoints(attempts, shown),
        **_grading_again(run),
        "phases": _phases(shown, now),
        "active_seconds": newest.active_seconds_by(now),
        "hardware": hardware_words(shown.hardware),
        "hardware_rows": _hardware(run, shown),
        "counted": counted,
        "report": report,
        "upstream": report.as_upstream().items() if report else (),
        "line": _line(run, report),
        "thresholds": [
            (letter, word, getattr(report or run.competition, f"{word}_threshold"))
            for letter, word in (("G", "gold"), ("S", "silver"), ("B", "bronze"), ("a", "median"))
        ],
        "result_mark": marks.RESULTS.get(report.result) if report else None,
        "kept_bytes": sum(int(each.get("bytes") or 0) for each in shown.artifacts),
    }


def _checkpoints(attempts: list[Attempt], shown: Attempt) -> dict[str, object]:
    """Of the whole run, newest first; and whether a person can have one now, or resume."""
    newest = attempts[-1]
    numbers = {each.pk: each.number for each in attempts}
    of_run = Checkpoint.objects.filter(attempt__in=numbers).order_by("-id")
    # An agent may say one after each step: those that are gone are a number.
    rows = list(of_run.exclude(path="", fault="")[:CHECKPOINTS_SHOWN])
    for row in rows:
        row.of_attempt = numbers[row.attempt_id]  # type: ignore[attr-defined]
    agent = newest.run.group.agent
    return {
        "checkpoints": rows,
        "has_dropped": of_run.filter(path="", fault="").exists(),
        "resume_note": agent_manifest.of(agent).resume_note if agent else "",
        "restored": shown.restored_checkpoint,
        "restored_from_number": (
            numbers.get(shown.restored_checkpoint.attempt_id) if shown.restored_checkpoint else None
        ),
        "can_checkpoint": newest.state == State.RUNNING and resuming.can_resume(newest),
        **_resuming(newest),
    }


def _resuming(newest: Attempt) -> dict[str, str]:
    """Why it cannot be resumed, or can with a larger limit alone: the same dialog offers that."""
    why = resuming.why_not_resumable(newest) if newest.is_ended else ""
    is_used_up = resuming.is_used_up(why)
    return {"no_resume": "" if is_used_up else why, "used_up": why if is_used_up else ""}


def _grading_again(run: Run) -> dict[str, object]:
    """Whether it can be graded again, the last time that it was, and all reports it ever had."""
    history = regrading.history_of(run)
    return {
        "can_regrade": not regrading.why_not(run),
        "regrade_job": run.regrade_jobs.select_related("regrade").last(),
        "history": [(report, marks.RESULTS[report.result]) for report in history],
    }


def _permissions(request: SignedInRequest, run: Run) -> dict[str, object]:
    return {
        "no_cancel": reason_against(request.user, "runs.cancel", run),
        "no_rerun": run.group.why_no_rerun or reason_against(request.user, "runs.rerun", run),
        "no_regrade": reason_against(request.user, "runs.regrade", run),
        "host_names": list(Host.objects.values_list("name", flat=True)),
        "no_download": reason_against(request.user, "runs.download", run),
    }


def _neighbours(run: Run) -> dict[str, object]:
    """The runs before and after it, in the order of the group's grid."""
    ordered = list(
        run.group.runs.order_by("competition__name", "seed").values_list("pk", flat=True)
    )
    at = ordered.index(run.pk)
    return {
        "previous": ordered[at - 1] if at else None,
        "next": ordered[at + 1] if at + 1 < len(ordered) else None,
    }


def _report(attempt: Attempt) -> GradingReport | None:
    current: list[GradingReport] = attempt.current  # type: ignore[attr-defined]
    if not current:
        return None
    # The report reads its competition from here, without a query.
    current[0].attempt = attempt
    return current[0]


def _line(run: Run, report: GradingReport | None) -> SafeString:
    return number_line(_thresholds(run, report), report.score if report else None)


def _thresholds(run: Run, report: GradingReport | None) -> Thresholds:
    """As they were when it was graded, else as they are now."""
    source = report or run.competition
    return Thresholds(
        gold=source.gold_threshold,
        silver=source.silver_threshold,
        bronze=source.bronze_threshold,
        median=source.median_threshold,
        is_lower_better=source.is_lower_better,
    )


def _own_seconds(attempt: Attempt, now: datetime) -> float | None:
    """Of this attempt alone: without what it was charged for those that it goes on from."""
    active = attempt.active_seconds_by(now)
    return None if active is None else max(0.0, active - attempt.charged_seconds)


def _attempt_row(attempt: Attempt, now: datetime, looked: datetime) -> dict[str, object]:
    if attempt.is_ended:
        outcome = Outcome(attempt.outcome)
        status, word = OUTCOME_STATUS[outcome], outcome.replace("_", " ")
        cause = attempt.cause_sentence if outcome != Outcome.GRADED or attempt.cause else ""
        if attempt.cause == Cause.STEP_TIMEOUT and attempt.cause_detail:
            # Which step, and whether it was the third in a row.
            cause = attempt.cause_detail
    else:
        lost = attempt.has_lost_contact(looked)
        is_queued = attempt.state == State.QUEUED
        status = "warn" if lost else "idle" if is_queued else "run"
        word, cause = "lost contact" if lost else attempt.state, ""
    return {
        "attempt": attempt,
        "status": status,
        "word": word,
        "cause": "" if attempt.cause == Cause.CANCELLED else cause,
        "active_seconds": _own_seconds(attempt, now),
        "hardware": hardware_words(attempt.hardware),
        "report": _report(attempt),
    }


def _timeline(run: Run, attempts: list[Attempt], now: datetime) -> SafeString:
    """Attempts with what of their time is charged and what not; empty before the first claim."""
    if not any(each.claimed_at for each in attempts):
        return SafeString("")
    origin = min(each.queued_at for each in attempts)
    stretches = []
    for each in attempts:
        outcome = Outcome(each.outcome) if each.outcome else None
        words = each.cause_sentence.rstrip(".") if each.cause else ""
        css = OUTCOME_FILL[outcome] if outcome else "f-run"
        stretches.append(
            Stretch(
                label=f"{each.number} · {each.host.name if each.host else 'no host'}"[:24],
                pieces=[
                    Piece(one.begin, one.end, one.css, one.words)
                    for one in spans.spans_of(each, origin, now, agent_css=css)
                ],
                words=words or (outcome.replace("_", " ") if outcome else each.state),
            )
        )
    limit = queue.time_limit_of(attempts[-1]) if run.group.time_limit else None
    return timeline(stretches, limit_seconds=limit.total_seconds() if limit else None)


def _curve(run: Run, attempt: Attempt, report: GradingReport | None) -> dict[str, object]:
    """Scores over active time, of an ended attempt only: a running agent learns nothing of it."""
    if not attempt.is_ended:
        return {"curve": SafeString(""), "scored": []}
    points = [
        Scored(each.active_seconds, each.score)
        for each in attempt.snapshots.filter(score__isnull=False)
        if each.score is not None
    ]
    last = report if report and report.attempt_id == attempt.pk else None
    if points and last and last.score is not None and not attempt.graded_snapshot_id:
        # What was left at the end is the last of them, also where no copy of it was needed.
        points.append(Scored(attempt.active_seconds, last.score))
    curve = score_curve(points, _thresholds(run, report), end_seconds=attempt.active_seconds)
    return {"curve": curve, "scored": points if curve else []}


@dataclass(frozen=True)
class Phase:
    status: str
    word: str
    seconds: float | None
    is_current: bool = False


PHASES = (
    # word, the state in which it is at work, keys of Attempt.timings
    ("Start container", State.STARTING, ("prepare", "create", "start", "ready", "exec")),
    ("Agent", State.RUNNING, ()),
    ("Collect outputs", State.COLLECTING, ("collect",)),
    ("Grade", State.GRADING, ("grade",)),
)


def _phases(attempt: Attempt, now: datetime) -> list[Phase]:
    order = [State.QUEUED, State.STARTING, State.RUNNING, State.COLLECTING, State.GRADING]
    waited = ((attempt.claimed_at or attempt.ended_at or now) - attempt.queued_at).total_seconds()
    is_queued = attempt.state == State.QUEUED
    phases = [Phase("run" if is_queued else "ok", "Wait in the queue", waited, is_queued)]
    at = order.index(State(attempt.state)) if not attempt.is_ended else len(order)
    for number, (word, state, keys) in enumerate(PHASES, start=1):
        measured = [attempt.timings[key] for key in keys if key in attempt.timings]
        seconds = sum(measured) if measured else None
        if state == State.RUNNING:
            seconds = _own_seconds(attempt, now)
        if attempt.is_ended:
            # Without a time it never came to that.
            status = "ok" if seconds is not None else "idle"
            if (
                status == "ok"
                and state == State.RUNNING
                and attempt.cause
                and attempt.outcome != Outcome.GRADED
            ):
                status = "bad"
        else:
            status = "ok" if number < at else "run" if number == at else "idle"
        phases.append(Phase(status, word, seconds, is_current=number == at))
    return phases


def _hardware(run: Run, attempt: Attempt) -> list[tuple[str, str, str]]:
    """What the config asked for beside what the host measured; "" where unknown."""
    try:
        asked = limits_of(run.group.container_settings)
    except ConfigRefused:
        asked = None
    share = "the host's share"
    if run.group.is_imported and not run.group.container_settings:
        # Its source does not say.
        asked, share = None, ""
    had = attempt.hardware
    gpus = had.get("gpus")
    gpu_words = ""
    if isinstance(gpus, list):
        gpu_words = ", ".join(str(gpu.get("name", "")) for gpu in gpus) or "none"
    rows = [
        ("GPUs", _gpus_asked(asked.gpus) if asked else "", gpu_words),
        (
            "CPUs",
            f"{asked.cpus:g}" if asked and asked.cpus else share,
            f"{had['cpus']:g}" if isinstance(had.get("cpus"), int | float) else "",
        ),
        (
            "Memory",
            _gib(asked.memory_bytes) if asked and asked.memory_bytes else share,
            _gib(had.get("memory_bytes")),
        ),
        ("CPU model", "", str(had.get("cpu_model") or "")),
        ("GPU driver", "", str(had.get("gpu_driver") or "")),
        (
            "Runtime",
            (asked.runtime if asked else None) or run.group.runtime,
            str(had.get("runtime") or ""),
        ),
    ]
    return [row for row in rows if row[1] or row[2]]


def _gpus_asked(count: int) -> str:
    return "all" if count < 0 else str(count) if count else "none"


def _gib(value: object) -> str:
    return gibibytes(value) if isinstance(value, int | float) else ""


# ---------------------------------------------------------------------------- verbs


@require_POST
@login_required
def cancel(request: SignedInRequest, pk: int) -> HttpResponse:
    run = get_object_or_404(Run.objects.select_related("group", "competition"), pk=pk)
    if refusal := reason_against(request.user, "runs.cancel", run):
        raise PermissionDenied(refusal)
    try:
        changed = submit.cancel_run(run, by=request.user)
    except submit.AlreadyEnded as ended:
        messages.error(request, str(ended))
        return redirect(run)
    if changed:
        messages.success(request, "It is cancelled, or stops now.")
    else:
        messages.info(request, "It was cancelled already.")
    return redirect(run)


@require_POST
@login_required
def checkpoint(request: SignedInRequest, pk: int) -> HttpResponse:
    run = get_object_or_404(Run.objects.select_related("group__agent", "competition"), pk=pk)
    if refusal := reason_against(request.user, "runs.rerun", run):
        raise PermissionDenied(refusal)
    try:
        asked = resuming.ask_checkpoint(run, by=request.user)
    except resuming.CannotSave as refused:
        messages.error(request, str(refused))
        return redirect(run)
    if asked:
        messages.success(request, "A checkpoint is made now.")
    else:
        messages.info(request, "One is asked for already.")
    return redirect(run)


@require_POST
@login_required
def rerun(request: SignedInRequest, pk: int) -> HttpResponse:
    run = get_object_or_404(Run.objects.select_related("group", "competition"), pk=pk)
    if refusal := reason_against(request.user, "runs.rerun", run):
        raise PermissionDenied(refusal)
    return rerun_and_tell(request, [run], back_to=run)


# ---------------------------------------------------------------------------- files


@login_required
@require_GET
def artifact(request: SignedInRequest, pk: int, number: int, path: str) -> StreamingHttpResponse:
    """A file that the agent left: only one that was kept, as a download, never as a page of ours.

    The name must be in the attempt's own list, and it is opened beneath the attempt's folder
    without following links: what lies there was written by a hostile program.
    """
    attempt = get_object_or_404(
        Attempt.objects.select_related("run__group", "run__competition"), run=pk, number=number
    )
    if refusal := reason_against(request.user, "runs.download", attempt.run):
        raise PermissionDenied(refusal)
    if path not in {each.get("path") for each in attempt.artifacts}:
        raise Http404("The attempt left no such file.")
    try:
        file = open_beneath(layout.attempt_folder(attempt), path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Http404("The file is no longer there.") from error
    except Refused as refused:
        raise PermissionDenied(str(refused)) from refused
    return streamed(
        request,
        _chunks(file),
        content_type="application/octet-stream",
        filename=PurePosixPath(path).name,
    )


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
