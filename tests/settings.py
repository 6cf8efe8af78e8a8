"""The product's settings over a data folder of its own, for tests.

The environment is set before the product's settings are read, so that everything that follows
from the data folder (database, sockets, attempts) follows from the test's. Child processes of a
test inherit the environment, and with it the same folder.
"""

import os
from pathlib import Path

from tests.support import temporary

if "MLEBENCH_WEB_TEST_DATA" not in os.environ:
    os.environ["MLEBENCH_WEB_TEST_DATA"] = str(temporary.session_folder())

data = Path(os.environ["MLEBENCH_WEB_TEST_DATA"], os.environ.get("PYTEST_XDIST_WORKER", "main"))
(data / "static").mkdir(parents=True, exist_ok=True)
os.environ["MLEBENCH_WEB_DATA"] = str(data)
os.environ.setdefault("HOST_NAME", "test-host")
os.environ.setdefault("SECRET_KEY", "only-for-tests")
os.environ.setdefault("LOG_LEVEL", "WARNING")
# A bell that nobody hears; a test that needs a broker starts one (fixture `valkey`).
os.environ.setdefault("CELERY_BROKER_URL", "memory://")

from mlebench_web.settings import *  # noqa: E402, F403
from mlebench_web.settings import DATABASES, STORAGES  # noqa: E402

# Pages are rendered without `collectstatic`.
STORAGES["staticfiles"] = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
# A slow hash is the point of a password hasher, and no test's subject.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
MAILERS = {"default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}}
ALLOWED_HOSTS = ["testserver", "127.0.0.1", "localhost"]
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # A file under its usual name: threads and child processes share it as in the product.
    DATABASES["default"]["TEST"] = {"NAME": str(data / "db.sqlite3")}
