"""Forms about people. Fields and messages only; who may is in rules.py."""

from datetime import timedelta

from django import forms
from django.contrib.auth.forms import BaseUserCreationForm

from mlebench_web.accounts.models import Role, Team, User


class PersonForm(BaseUserCreationForm):
    """Somebody's own name and password, behind a one-time link."""

    class Meta:
        model = User
        fields = ("username", "email")

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.fields["email"].required = False
        self.fields["username"].help_text = "Letters, digits and @ . + - _"
        self.fields["password1"].help_text = "At least 10 characters, and not a common password."
        self.fields["password2"].help_text = ""

    def clean_email(self) -> str:
        email = str(self.cleaned_data["email"]).strip()
        # Sign-in works by e-mail too, so two people must not share one.
        if email and User.objects.filter(email__iexact=email).exists():
            raise forms.ValidationError("Somebody here has this address already.")
        return email


class InviteForm(forms.Form):
    role = forms.ChoiceField(choices=Role.choices, initial=Role.RESEARCHER)
    email = forms.EmailField(
        required=False, label="Email address", help_text="Optional; fills the field in for them."
    )
    days = forms.IntegerField(
        min_value=1, max_value=30, initial=7, label="Works for", help_text="days, once"
    )

    def lasts(self) -> timedelta:
        return timedelta(days=self.cleaned_data["days"])


class MemberForm(forms.Form):
    """An admin changes what somebody is."""

    role = forms.ChoiceField(choices=Role.choices)
    team = forms.CharField(max_length=100, required=False)
    is_active = forms.BooleanField(required=False, label="May sign in")

    def team_row(self) -> Team | None:
        name = str(self.cleaned_data["team"]).strip()
        return Team.objects.get_or_create(name=name)[0] if name else None


class TokenForm(forms.Form):
    name = forms.CharField(
        max_length=100, help_text="What it is for, so that you know it in a year."
    )
    days = forms.IntegerField(
        min_value=1,
        max_value=3650,
        required=False,
        label="Works for",
        help_text="days; empty: until it is revoked",
    )

    def lasts(self) -> timedelta | None:
        days = self.cleaned_data["days"]
        return timedelta(days=days) if days else None
