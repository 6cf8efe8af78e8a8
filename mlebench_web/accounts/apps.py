from django.apps import AppConfig


class AccountsConfig(AppConfig):
    name = "mlebench_web.accounts"
    label = "accounts"
