from django.apps import AppConfig


class FleetConfig(AppConfig):
    name = "mlebench_web.fleet"
    label = "fleet"

    def ready(self) -> None:
        # Registers the system checks, and what new connections are told.
        from mlebench_web import checks, database  # noqa: F401
