"""The page of secrets: names are shown, values only ever go in."""

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables
from django.views.decorators.http import require_http_methods, require_POST

from mlebench_web.accounts import vault
from mlebench_web.accounts.models import Secret, Team, User
from mlebench_web.accounts.rules import reason_against
from mlebench_web.http import SignedInRequest

MINE = "me"


class SecretForm(forms.Form):
    name = forms.CharField(
        max_length=vault.LONGEST_NAME,
        help_text="As the agent asks for it: <code>OPENAI_API_KEY</code> for "
        "<code>${{ secrets.OPENAI_API_KEY }}</code>.",
        widget=forms.TextInput({"autocomplete": "off", "spellcheck": "false"}),
    )
    value = forms.CharField(
        strip=False,
        max_length=vault.LONGEST,
        widget=forms.PasswordInput({"autocomplete": "new-password"}),
        help_text="It is sealed, and can never be shown again.",
    )
    owner = forms.ChoiceField(label="For the runs of")

    def __init__(self, *args: object, owners: dict[str, str], **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.fields["owner"].choices = list(owners.items())  # type: ignore[attr-defined]


def _owners(user: User) -> dict[str, User | Team]:
    """Whose secrets this person may write, by the value of the choice."""
    found: dict[str, User | Team] = {}
    if user.has_perm("accounts.keep_secret"):
        found[MINE] = user
    for team in Team.objects.order_by("name"):
        if user.has_perm("accounts.keep_secret", team):
            found[f"team-{team.pk}"] = team
    return found


@never_cache
@sensitive_post_parameters("value")
@sensitive_variables("form")
@login_required
@require_http_methods(["GET", "POST"])
def secrets(request: SignedInRequest) -> HttpResponse:
    owners = _owners(request.user)
    words = {
        key: "me alone" if key == MINE else f"everybody in {owner}" for key, owner in owners.items()
    }
    refusal = reason_against(request.user, "accounts.keep_secret")
    form = SecretForm(
        request.POST or None, owners=words, initial={"name": request.GET.get("name", "")}
    )
    if request.method == "POST":
        if not owners:
            raise PermissionDenied(refusal)
        if form.is_valid():
            try:
                vault.put(
                    form.cleaned_data["name"],
                    form.cleaned_data["value"],
                    owner=owners[form.cleaned_data["owner"]],
                    by=request.user,
                )
            except vault.SecretInvalid as error:
                form.add_error(error.field, str(error))
            else:
                messages.success(request, f"{form.cleaned_data['name']} is stored.")
                return redirect("secrets")
    rows = [
        {
            "secret": secret,
            "may_delete": request.user.has_perm("accounts.keep_secret", secret.team),
        }
        for secret in vault.listed(request.user)
    ]
    status = 422 if form.is_bound and form.errors else 200
    context = {"form": form, "rows": rows, "refusal": refusal if not owners else ""}
    return render(request, "accounts/secrets.html", context, status=status)


@require_POST
@login_required
def delete_secret(request: SignedInRequest, pk: int) -> HttpResponse:
    secret = get_object_or_404(
        Secret.objects.filter(pk__in=vault.listed(request.user)).select_related("team"), pk=pk
    )
    if why := reason_against(request.user, "accounts.keep_secret", secret.team):
        raise PermissionDenied(why)
    vault.forget(secret, by=request.user)
    messages.success(request, f"{secret.name} is deleted: no run gets it any more.")
    return redirect("secrets")
