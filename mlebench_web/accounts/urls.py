"""Sign-in by allauth, only the pages that are served; people and tokens."""

from allauth.account import views as allauth
from django.urls import path

from mlebench_web.accounts import secret_views, views

urlpatterns = [
    # No mail server is needed, so there is no password reset by mail: admins help.
    path("login/", allauth.login, name="account_login"),
    path("logout/", allauth.logout, name="account_logout"),
    path("signup/", allauth.signup, name="account_signup"),
    path("inactive/", allauth.account_inactive, name="account_inactive"),
    path("reauthenticate/", allauth.reauthenticate, name="account_reauthenticate"),
    path("password/change/", allauth.password_change, name="account_change_password"),
    path("people/", views.people_page, name="people"),
    path("people/<int:pk>/", views.change_person, name="change_person"),
    path("invitations/<int:pk>/withdraw/", views.withdraw_invitation, name="withdraw_invitation"),
    path("tokens/", views.tokens, name="tokens"),
    path("tokens/<int:pk>/revoke/", views.revoke_token, name="revoke_token"),
    path("secrets/", secret_views.secrets, name="secrets"),
    path("secrets/<int:pk>/delete/", secret_views.delete_secret, name="delete_secret"),
    path("theme/", views.theme, name="theme"),
]
