from django.apps import AppConfig


class FleetConfig(AppConfig):
    name = "mlebench_web.fleet"
    label = "fleet"
