"""`./run check`: linters, types, migrations and deployment checks; what CI calls too."""

import os
import subprocess
import sys
import tempfile

from mlebench_web.launcher.environment import BASE_DIR

PYTHON = sys.executable
MANAGE = [PYTHON, "manage.py"]
CHECKS = {
    "style": [PYTHON, "-m", "ruff", "check", "."],
    "format": [PYTHON, "-m", "ruff", "format", "--check", "."],
    "types": [PYTHON, "-m", "mypy", "mlebench_web", "runs"],
    "migrations": [*MANAGE, "makemigrations", "--check", "--dry-run"],
    "deployment": [*MANAGE, "check", "--deploy", "--fail-level", "WARNING"],
}
# As a deployment behind TLS would be set up.
DEPLOYED = {
    "HTTPS": "1",
    "PUBLIC_URL": "https://mlebench.example.org",
    "ALLOWED_HOSTS": "mlebench.example.org",
    # Whether this machine can grade is no question of style: a fresh clone has no such Python yet.
    "ML_PYTHON": PYTHON,
    "SECRET_KEY": "only for this check, and long enough for Django to believe in it: 0123456789",
    "EMAIL_BACKEND": "django.core.mail.backends.smtp.EmailBackend",
    "DJANGO_SETTINGS_MODULE": "mlebench_web.settings",
}


def main() -> int:
    failed = []
    with tempfile.TemporaryDirectory(prefix="mlw-") as data:
        env = os.environ | DEPLOYED | {"MLEBENCH_WEB_DATA": data}
        for name, command in CHECKS.items():
            print(f"· {name}", flush=True)
            if subprocess.run(command, cwd=BASE_DIR, env=env).returncode:
                failed.append(name)
    print(f"✗ {', '.join(failed)}" if failed else "✓ all checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
