from django.apps import AppConfig


class FleetConfig(AppConfig):
    name = "mlebench_web.fleet"
    label = "fleet"

    def ready(self) -> None:
        # Registers the system checks.
        from mlebench_web import checks  # noqa: F401
