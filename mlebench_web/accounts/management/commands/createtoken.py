"""Make an API token, and its user when there is none. Prints the token and nothing else."""

from argparse import ArgumentParser

from django.core.exceptions import ValidationError
from django.core.management import BaseCommand, CommandError
from django.db import transaction

from mlebench_web.accounts import audit, people
from mlebench_web.accounts.models import ApiToken, Role, User

BAD_INPUT = 2


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--user", required=True, metavar="NAME")
        parser.add_argument(
            "--role", choices=Role.values, help="of a new user; an old one keeps what it has"
        )
        parser.add_argument("--name", default="shell", help="what the token is for")

    @transaction.atomic
    def handle(self, **options: object) -> None:
        name, role = str(options["user"]), options["role"]
        user = User.objects.filter(username=name).first()
        if user is None:
            user = self._new_user(name, role)
        elif not user.is_active:
            raise CommandError(f"--user: {name} may not sign in.", returncode=BAD_INPUT)
        elif role and role != user.role:
            raise CommandError(
                f"--role: {name} is {user.role}, and making a token changes no role: "
                "leave --role out.",
                returncode=BAD_INPUT,
            )
        _, value = ApiToken.make(user, name=str(options["name"])[:100])
        audit.record(None, "create token", user, detail={"user": name})
        self.stdout.write(value)

    def _new_user(self, name: str, role: object) -> User:
        if not role:
            raise CommandError(
                f"--role: {name} is new, so name a role: {', '.join(Role.values)}.",
                returncode=BAD_INPUT,
            )
        user = User(username=name)
        people.set_role(user, Role(str(role)))
        # No password: this account works through its tokens, until an admin gives it one.
        user.set_unusable_password()
        try:
            user.full_clean(exclude=["password"])
        except ValidationError as error:
            words = " ".join(error.messages)
            raise CommandError(f"--user: {words}", returncode=BAD_INPUT) from error
        user.save()
        audit.record(None, "create user", user, detail={"user": name, "role": role})
        return user
