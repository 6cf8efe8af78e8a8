"""Set-up, invitations, people, API tokens, and the theme."""

from django.contrib import messages
from django.contrib.auth import login
from django.contrib.auth.decorators import login_required, permission_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_POST

from mlebench_web.accounts import audit, people
from mlebench_web.accounts.forms import InviteForm, MemberForm, PersonForm, TokenForm
from mlebench_web.accounts.models import ApiToken, OneTimeLink, Role, User
from mlebench_web.context import THEMES
from mlebench_web.http import SignedInRequest

DJANGO_BACKEND = "django.contrib.auth.backends.ModelBackend"
A_YEAR_S = 365 * 24 * 3600
managers_only = permission_required("accounts.manage_people", raise_exception=True)


# ---------------------------------------------------------------------------- one-time links


@never_cache
@sensitive_post_parameters()
@require_http_methods(["GET", "POST"])
def setup(request: HttpRequest, token: str) -> HttpResponse:
    """Makes the first admin, or another one when all others are locked out."""
    return _come_in(request, OneTimeLink.Purpose.SETUP, token)


@never_cache
@sensitive_post_parameters()
@require_http_methods(["GET", "POST"])
def invitation(request: HttpRequest, token: str) -> HttpResponse:
    return _come_in(request, OneTimeLink.Purpose.INVITE, token)


def _come_in(request: HttpRequest, purpose: OneTimeLink.Purpose, token: str) -> HttpResponse:
    link = OneTimeLink.find(purpose, token)
    if link is None:
        return render(request, "accounts/link_gone.html", {"purpose": purpose}, status=410)
    form = PersonForm(request.POST or None, initial={"email": link.email})
    if request.method == "POST" and form.is_valid():
        try:
            user = people.come_in(link, form)
        except people.LinkGone:
            return render(request, "accounts/link_gone.html", {"purpose": purpose}, status=410)
        login(request, user, backend=DJANGO_BACKEND)
        messages.success(request, f"Welcome, {user.get_username()}. You are signed in.")
        return redirect("home")
    return render(request, "accounts/come_in.html", {"form": form, "link": link})


# ---------------------------------------------------------------------------- people


@login_required
@managers_only
@require_http_methods(["GET", "POST"])
def people_page(request: SignedInRequest) -> HttpResponse:
    """POST makes an invitation and shows its link, the only time that it can be seen."""
    form = InviteForm(request.POST or None)
    made = None
    if request.method == "POST" and form.is_valid():
        token = OneTimeLink.make(
            OneTimeLink.Purpose.INVITE,
            lasts=form.lasts(),
            role=Role(form.cleaned_data["role"]),
            email=form.cleaned_data["email"],
            made_by=request.user,
        )
        link = OneTimeLink.find(OneTimeLink.Purpose.INVITE, token)
        if link is not None:
            audit.record(request.user, "invited", link, detail={"role": link.role})
        made = request.build_absolute_uri(reverse("invitation", args=[token]))
        form = InviteForm()
    return _people(request, form, made=made)


def _people(
    request: SignedInRequest,
    form: InviteForm,
    *,
    made: str | None = None,
    changed: tuple[User, MemberForm] | None = None,
) -> HttpResponse:
    members = []
    for user in User.objects.select_related("team").order_by("-is_active", "username"):
        if changed and changed[0].pk == user.pk:
            members.append((user, changed[1]))
            continue
        initial = {"role": user.role, "team": user.team or "", "is_active": user.is_active}
        members.append((user, MemberForm(initial=initial, prefix=f"u{user.pk}")))
    open_links = OneTimeLink.objects.filter(
        purpose=OneTimeLink.Purpose.INVITE, used_at=None, expires_at__gt=timezone.now()
    ).select_related("made_by")
    context = {"form": form, "made": made, "members": members, "links": open_links}
    return render(request, "accounts/people.html", context)


@require_POST
@login_required
@managers_only
def change_person(request: SignedInRequest, pk: int) -> HttpResponse:
    user = get_object_or_404(User, pk=pk)
    form = MemberForm(request.POST, prefix=f"u{user.pk}")
    if form.is_valid():
        try:
            people.change(
                user,
                role=Role(form.cleaned_data["role"]),
                team=form.team_row(),
                is_active=form.cleaned_data["is_active"],
                by=request.user,
            )
        except people.LastAdmin as refused:
            form.add_error("role", str(refused))
        else:
            messages.success(request, f"{user.get_username()} was changed.")
            return redirect("people")
    return _people(request, InviteForm(), changed=(user, form))


@require_POST
@login_required
@managers_only
def withdraw_invitation(request: SignedInRequest, pk: int) -> HttpResponse:
    link = get_object_or_404(OneTimeLink, pk=pk, purpose=OneTimeLink.Purpose.INVITE)
    if link.use():
        audit.record(request.user, "withdrew", link)
        messages.success(request, "The invitation no longer works.")
    return redirect("people")


# ---------------------------------------------------------------------------- tokens


@login_required
@require_http_methods(["GET", "POST"])
def tokens(request: SignedInRequest) -> HttpResponse:
    """POST makes a token and shows its value, the only time that it can be seen."""
    form = TokenForm(request.POST or None)
    value = None
    if request.method == "POST" and form.is_valid():
        token, value = ApiToken.make(
            request.user, name=form.cleaned_data["name"], lasts=form.lasts()
        )
        audit.record(request.user, "made", token)
        form = TokenForm()
    context = {
        "form": form,
        "value": value,
        "tokens": request.user.tokens.order_by("-created_at"),
        "now": timezone.now(),
    }
    return render(request, "accounts/tokens.html", context)


@require_POST
@login_required
def revoke_token(request: SignedInRequest, pk: int) -> HttpResponse:
    # Somebody else's token is "not found": its existence is nobody's business.
    token = get_object_or_404(request.user.tokens, pk=pk)
    audit.record(request.user, "revoked", token, detail={"name": token.name})
    token.delete()
    messages.success(request, f"The token {token.name!r} no longer works.")
    return redirect("tokens")


# ---------------------------------------------------------------------------- theme


@require_POST
def theme(request: HttpRequest) -> HttpResponse:
    """Without script the button posts here; with it the browser sets the same cookie."""
    back = request.POST.get("next", "")
    if not url_has_allowed_host_and_scheme(back, {request.get_host()}, request.is_secure()):
        back = reverse("home")
    response = redirect(back)
    wanted = request.POST.get("theme", "auto")
    if wanted in THEMES:
        response.set_cookie("theme", wanted, max_age=A_YEAR_S, samesite="Lax")
    return response
