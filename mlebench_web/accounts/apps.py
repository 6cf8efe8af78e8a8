from django.apps import AppConfig


class AccountsConfig(AppConfig):
    name = "mlebench_web.accounts"
    label = "accounts"
    # In the Django admin, where allauth's app is called Accounts.
    verbose_name = "People"
