"""The Django admin: all models are there, and states are for reading only."""

import pytest
from django.apps import apps
from django.contrib import admin
from django.urls import reverse

from mlebench_web.accounts.models import ApiToken
from runs.core.states import RunState, State
from runs.models import Attempt, Run
from tests.web.conftest import World, signed_in

OURS = [
    model
    for label in ("accounts", "catalog", "fleet", "runs")
    for model in apps.get_app_config(label).get_models()
]


@pytest.mark.parametrize("model", OURS, ids=lambda model: model.__name__)
def test_every_model_is_there(model: type) -> None:
    assert admin.site.is_registered(model)


@pytest.mark.django_db
@pytest.mark.parametrize("model", OURS, ids=lambda model: model.__name__)
def test_every_list_and_every_row_can_be_looked_at(model: type, world: World) -> None:
    client = signed_in(world.admin)
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}"  # type: ignore[attr-defined]

    assert client.get(reverse(f"{name}_changelist")).status_code == 200
    row = model._default_manager.first()  # type: ignore[attr-defined]
    if row is not None:
        assert client.get(reverse(f"{name}_change", args=[row.pk])).status_code == 200


@pytest.mark.django_db
def test_not_even_an_admin_writes_a_state(world: World) -> None:
    client = signed_in(world.admin)
    run = world.by_state[State.QUEUED]
    attempt = run.newest_attempt()

    for name, pk in (("runs_run", run.pk), ("runs_attempt", attempt.pk)):
        response = client.post(
            reverse(f"admin:{name}_change", args=[pk]), {"state": "ended", "outcome": "graded"}
        )
        assert response.status_code == 403

    assert Run.objects.get(pk=run.pk).state == RunState.QUEUED
    assert Attempt.objects.get(pk=attempt.pk).state == State.QUEUED


@pytest.mark.django_db
def test_no_digest_of_a_token_is_shown(world: World) -> None:
    token = ApiToken.objects.get()

    text = (
        signed_in(world.admin)
        .get(reverse("admin:accounts_apitoken_change", args=[token.pk]))
        .content.decode()
    )

    assert token.digest not in text
