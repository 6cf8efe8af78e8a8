"""Everything that needs Django before the first page: one child process of the supervisor.

Prints what it does, a line each; the last line is `RESULT ` and what the supervisor must know.
"""

import hashlib
import json
import os
import sys

from mlebench_web.launcher.processes import RESULT


def main() -> None:
    import django

    django.setup()
    from django.conf import settings
    from django.core.management import call_command

    from mlebench_web import checks

    settings.SOCKETS_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
    say("checking the settings")
    call_command("check", "--fail-level", "ERROR")
    checks.mark_machine(settings.DATA_DIR)
    say("the database")
    # Also brings the catalog up to date (signal post_migrate).
    call_command("migrate", verbosity=0, interactive=False)
    if settings.MLEBENCH_DIRS:
        say("the checkouts of mle-bench")
        read_checkouts()
    say("static files")
    collect_static()
    say(RESULT + json.dumps(result()))


def say(text: str) -> None:
    print(text, flush=True)


def result() -> dict[str, object]:
    from mlebench_web.accounts import setup
    from mlebench_web.fleet import hosts
    from runs.core.states import State
    from runs.models import Attempt

    host = hosts.this_host()
    unended = Attempt.objects.filter(host=host).exclude(state=State.ENDED).count()
    return {
        "host": host.name,
        # Resources decide; slots only must not stand in the way of adopting what runs here.
        "slots": max(hosts.slots(), unended + 1),
        "setup_path": "" if setup.admins() else setup.new_link_path(),
        "engine_error": engine_error(),
    }


def read_checkouts() -> None:
    """What is broken in one is said, and stops nothing: the rest of it is there."""
    from mlebench_web.catalog import checkouts

    # Those of git URLs are read again on demand: a silent network must not hold up the start.
    for row in checkouts.sync_settings():
        checkouts.refresh(row)
        if row.error:
            say(f"{row.name}: {row.error}")
        for problem in row.problems:
            if problem["level"] == "error":
                say(f"{problem['file']}, line {problem['line']}: {problem['message']}")


def engine_error() -> str:
    """Why no container can be started here; "" when one can."""
    from django.conf import settings
    from docker.errors import DockerException

    from mlebench_web.launcher import engine

    if settings.ENGINE_URL == "none":
        return "ENGINE_URL=none says so"
    try:
        with engine.client(timeout_seconds=5):
            return ""
    except DockerException as error:
        return str(error)


def collect_static() -> None:
    """As `collectstatic`, when a file was added, changed or removed since the last time."""
    from django.conf import settings
    from django.contrib.staticfiles.finders import get_finders
    from django.core.management import call_command

    digest = hashlib.sha256()
    for finder in get_finders():
        for name, storage in sorted(finder.list([]), key=lambda found: found[0]):
            stat = os.stat(storage.path(name))
            digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    stamp = settings.STATIC_ROOT / "collected"
    if stamp.exists() and stamp.read_text() == digest.hexdigest():
        return
    call_command("collectstatic", verbosity=0, interactive=False, clear=True)
    stamp.write_text(digest.hexdigest())


if __name__ == "__main__":
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management.base import CommandError

    try:
        main()
    except (CommandError, ImproperlyConfigured) as error:
        # The user's to repair, and said in full: a traceback would hide it.
        sys.exit(str(error))
