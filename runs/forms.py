"""The form of the new-run-group page. Its rules are those of the API: runs/request.py."""

from collections.abc import Iterable

from django import forms
from django.conf import settings

from mlebench_web.accounts.models import User
from mlebench_web.catalog.models import Agent, Competition, ContainerConfig, Split
from runs import submit
from runs.preflight import Check
from runs.request import (
    LONGEST_S,
    PRIORITIES,
    SEEDS_AT_MOST,
    FieldError,
    RequestInvalid,
    RunGroupRequest,
)

# Fields of a request that have another name or unit on the page.
ON_THE_PAGE = {"time_limit_s": "time_limit_hours", "step_timeout_s": "step_timeout_hours"}


def _hours(seconds: float) -> float:
    return round(seconds / 3600, 4)


def _within(what: str, least: float, most: float) -> dict[str, str]:
    """What to say where a number is missing, none, or out of its range."""
    message = f"{what}: write a number from {least:g} to {most:g}."
    return dict.fromkeys(("required", "invalid", "min_value", "max_value"), message)


# A second, as hours are shown.
SHORTEST_H = 0.0003
LONGEST_H = LONGEST_S / 3600


class NewRunGroupForm(forms.Form):
    """After `is_valid()`: `asked()` is the request, `checks` the pre-flight, valid or not.

    `plan` is what the request would make, also where something still stands against it; None
    where the request itself is wrong.
    """

    agent = forms.ChoiceField()
    split = forms.ChoiceField(required=False)
    competitions = forms.MultipleChoiceField(
        required=False, help_text="Instead of a split: pick competitions."
    )
    container_config = forms.ChoiceField(required=False, label="Container config")
    seeds = forms.IntegerField(
        min_value=1,
        max_value=SEEDS_AT_MOST,
        initial=3,
        help_text="Comparable means at least 3.",
        error_messages=_within("Seeds", 1, SEEDS_AT_MOST),
    )
    time_limit_hours = forms.FloatField(
        label="Time limit",
        min_value=1 / 3600,
        max_value=LONGEST_H,
        help_text="hours",
        error_messages=_within("Time limit in hours", SHORTEST_H, LONGEST_H),
    )
    step_timeout_hours = forms.FloatField(
        label="Step timeout",
        min_value=1 / 3600,
        max_value=LONGEST_H,
        help_text="hours",
        error_messages=_within("Step timeout in hours", SHORTEST_H, LONGEST_H),
    )
    priority = forms.IntegerField(
        min_value=PRIORITIES[0],
        max_value=PRIORITIES[-1],
        initial=0,
        required=False,
        help_text="Higher goes first.",
        error_messages=_within("Priority", PRIORITIES[0], PRIORITIES[-1]),
    )
    experiment = forms.CharField(
        max_length=200, required=False, help_text="A row of the leaderboard; a new name makes one."
    )
    acknowledge_no_gpu = forms.BooleanField(
        required=False, label="Run without a GPU although the fleet has some"
    )

    def __init__(self, *args: object, by: User, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.by = by
        self.checks: list[Check] = []
        self.plan: submit.Plan | None = None
        self.fields["time_limit_hours"].initial = _hours(
            settings.DEFAULT_TIME_LIMIT.total_seconds()
        )
        self.fields["step_timeout_hours"].initial = _hours(
            settings.DEFAULT_STEP_TIMEOUT.total_seconds()
        )
        self._choose("agent", Agent.objects.filter(is_listed=True).values_list("name", "name"))
        self._choose(
            "split",
            [("", "picked competitions"), *Split.objects.values_list("name", "title")],
        )
        self._choose("competitions", Competition.objects.values_list("name", "name"))
        self._choose(
            "container_config",
            [("", "the first that fits"), *ContainerConfig.objects.values_list("name", "name")],
        )

    def _choose(self, name: str, choices: object) -> None:
        self.fields[name].choices = choices  # type: ignore[attr-defined]

    def clean(self) -> dict[str, object]:
        """The pre-flight; what blocks stands at its field."""
        super().clean()
        if self.errors:
            return self.cleaned_data
        try:
            self.plan = submit.plan(self.asked(), by=self.by)
        except RequestInvalid as invalid:
            self.add_refusals(invalid.errors)
        else:
            self.checks = self.plan.checks
            self.add_refusals(self.plan.refusals)
        return self.cleaned_data

    def add_refusals(self, errors: Iterable[FieldError]) -> None:
        """Each error at its field, or above the form where the page has no such field."""
        for error in errors:
            name = ON_THE_PAGE.get(error.field, error.field)
            self.add_error(name if name in self.fields else None, error.message)

    def asked(self) -> RunGroupRequest:
        data = self.cleaned_data
        return RunGroupRequest(
            agent=data["agent"],
            split=data["split"] or None,
            competitions=tuple(data["competitions"]),
            container_config=data["container_config"] or None,
            seeds=data["seeds"],
            experiment=data["experiment"] or None,
            time_limit_s=round(data["time_limit_hours"] * 3600),
            step_timeout_s=round(data["step_timeout_hours"] * 3600),
            priority=data["priority"] or 0,
            acknowledge_no_gpu=data["acknowledge_no_gpu"],
        )
