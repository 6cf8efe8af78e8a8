"""Print a new one-time link that makes the first admin. Older ones stop working."""

from django.conf import settings
from django.core.management import BaseCommand, CommandError
from django.urls import reverse

from mlebench_web.accounts import setup


class Command(BaseCommand):
    help = __doc__

    def handle(self, **options: object) -> None:
        if admins := setup.admins():
            sign_in = f"{settings.PUBLIC_URL}{reverse('account_login')}"
            raise CommandError(
                f"There is an admin already: {', '.join(admins)}. Sign in at {sign_in}. "
                "Admins invite others on the page People. A forgotten password: "
                f"manage.py changepassword {admins[0]}"
            )
        self.stdout.write(f"{settings.PUBLIC_URL}{setup.new_link_path()}")
