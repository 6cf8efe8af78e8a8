"""Every setting once. docs/configuration.md has a heading for each variable (a test compares)."""

import os
import secrets
import socket
from pathlib import Path

import dj_database_url
from django.core.exceptions import ImproperlyConfigured
from django.utils.csp import CSP

from mlebench_web import base_image, env, sockets

BASE_DIR = Path(__file__).resolve().parent.parent

# ---------------------------------------------------------------------------- Data
# Everything that is written lives below this folder.
DATA_DIR = env.folder("MLEBENCH_WEB_DATA", BASE_DIR / "var")
DATA_DIR.mkdir(parents=True, exist_ok=True)
# Agents may write here without limit: a deployment keeps it off the disk of the database.
# Never "<repository>/runs": that is this project's Django app, and mle-bench's default.
RUN_GROUPS_DIR = env.folder("RUN_GROUPS_DIR", DATA_DIR / "run-groups")
# Where running attempts write: bind-mounted into containers, removed after collection.
ATTEMPTS_DIR = env.folder("ATTEMPTS_DIR", DATA_DIR / "attempts")
# Prepared competitions in mle-bench's layout: <id>/prepared/{public,private}.
COMPETITIONS_DIR = env.folder("COMPETITIONS_DIR", DATA_DIR / "competitions")
DOWNLOAD_CACHE_DIR = env.folder("DOWNLOAD_CACHE_DIR", DATA_DIR / "downloads")
# Sockets. Their paths must be short; where the data folder is too deep they are in /tmp.
SOCKETS_DIR = env.folder("SOCKETS_DIR", sockets.folder_for(DATA_DIR))
# A Python with the libraries of requirements/ml.txt: grader children, process runtime.
# Not resolved: a virtual environment's Python is a link, and is known by its own path.
ML_PYTHON = Path(env.text("ML_PYTHON") or BASE_DIR / ".venv-ml" / "bin" / "python").absolute()
# A Python with what the package `mlebench` needs: it prepares and grades mle-bench's competitions.
MLEBENCH_PYTHON = Path(
    env.text("MLEBENCH_PYTHON") or BASE_DIR / ".venv-mlebench" / "bin" / "python"
).absolute()
# Downloads and preparations of hundreds of gigabytes take days.
PREPARE_LIMIT = env.hours("PREPARE_LIMIT_HOURS", 72)
# Checkouts of mle-bench, as a path list; empty: only what ships with the product. Agents of the
# first keep their plain ids.
MLEBENCH_DIR = env.text("MLEBENCH_DIR")
MLEBENCH_DIRS = [
    Path(each).expanduser().absolute() for each in MLEBENCH_DIR.split(os.pathsep) if each
]

# ---------------------------------------------------------------------------- Django


def _secret_key() -> str:
    """From the environment, else from a file in the data folder that is made once."""
    if key := os.environ.get("SECRET_KEY"):
        return key
    path = DATA_DIR / "secret-key"
    try:
        # O_EXCL: of two processes that start at once, one writes and the other reads.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pass
    else:
        temporary = secrets.token_urlsafe(50)
        os.write(handle, temporary.encode())
        os.close(handle)
    return path.read_text().strip()


SECRET_KEY = _secret_key()
DEBUG = env.flag("DEBUG", default=False)
ALLOWED_HOSTS = env.words("ALLOWED_HOSTS", "127.0.0.1,localhost,[::1]")
CSRF_TRUSTED_ORIGINS = env.words("CSRF_TRUSTED_ORIGINS")
# The address that links in invitations and API answers start with, without a final slash.
PUBLIC_URL = env.text("PUBLIC_URL", "http://127.0.0.1:8000")

INSTALLED_APPS = [
    "mlebench_web.accounts",
    "mlebench_web.catalog",
    "mlebench_web.fleet",
    "runs",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.humanize",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "allauth",
    "allauth.account",
    "django_htmx",
    "ninja",
    "rules.apps.AutodiscoverRulesConfig",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.middleware.csp.ContentSecurityPolicyMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
]

ROOT_URLCONF = "mlebench_web.urls"
ASGI_APPLICATION = "mlebench_web.asgi.application"
WSGI_APPLICATION = "mlebench_web.wsgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "mlebench_web.context.page",
            ],
        },
    },
]

SQLITE_OPTIONS = {
    # WAL alone gives 13 % "database is locked" with four writers; with IMMEDIATE, 0 of 50,000.
    "timeout": 20,
    "transaction_mode": "IMMEDIATE",
    "init_command": "PRAGMA journal_mode=WAL;PRAGMA synchronous=NORMAL",
}
DATABASE_URL = env.text("DATABASE_URL", f"sqlite:///{DATA_DIR / 'db.sqlite3'}")
DATABASES = {"default": dj_database_url.parse(DATABASE_URL, conn_max_age=600)}
DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    DATABASES["default"]["OPTIONS"] = SQLITE_OPTIONS
    # A file needs no pool, and a connection that outlives its thread is only in the way.
    DATABASES["default"]["CONN_MAX_AGE"] = 0
elif DATABASES["default"]["ENGINE"] == "django.db.backends.postgresql":
    # A network that was cut says nothing, and the kernel would wait a quarter of an hour for it: a
    # supervisor must notice within one lease. What DATABASE_URL says of these wins.
    DATABASES["default"]["OPTIONS"] = {
        "connect_timeout": 5,
        "tcp_user_timeout": 20_000,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 2,
        **DATABASES["default"].get("OPTIONS", {}),
    }

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LANGUAGE_CODE = "en-gb"
TIME_ZONE = "UTC"
USE_I18N = False
USE_TZ = True

STATIC_URL = "/static/"
STATIC_ROOT = DATA_DIR / "static"
STATICFILES_DIRS = [BASE_DIR / "static"]
MEDIA_ROOT = DATA_DIR / "media"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}
WHITENOISE_USE_FINDERS = DEBUG

# ---------------------------------------------------------------------------- Security
SECURE_CSP = {
    "default-src": [CSP.NONE],
    "script-src": [CSP.SELF],
    "style-src": [CSP.SELF],
    "img-src": [CSP.SELF],
    "font-src": [CSP.SELF],
    "connect-src": [CSP.SELF],
    "form-action": [CSP.SELF],
    "base-uri": [CSP.NONE],
    "frame-ancestors": [CSP.NONE],
}
# TLS ends at a proxy in front. HTTPS=1 says so; without it cookies must work over plain HTTP.
HTTPS = env.flag("HTTPS", default=False)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = HTTPS
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
# What holds for the whole domain is its owner's to say, not one site's.
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021"]
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
SESSION_COOKIE_HTTPONLY = True

AUTH_USER_MODEL = "accounts.User"
AUTHENTICATION_BACKENDS = [
    "rules.permissions.ObjectPermissionBackend",
    "django.contrib.auth.backends.ModelBackend",
    "allauth.account.auth_backends.AuthenticationBackend",
]
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.Argon2PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {
        "NAME": "django.contrib.auth.password_validation.MinimumLengthValidator",
        "OPTIONS": {"min_length": 10},
    },
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "account_login"
LOGIN_REDIRECT_URL = "/"
ACCOUNT_ADAPTER = "mlebench_web.accounts.adapter.ClosedSignup"
ACCOUNT_LOGIN_METHODS = {"username", "email"}
ACCOUNT_SIGNUP_FIELDS = ["username*", "email*", "password1*", "password2*"]
ACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_LOGOUT_ON_GET = False
MAILERS = {
    "default": {
        "BACKEND": env.text("EMAIL_BACKEND", "django.core.mail.backends.console.EmailBackend")
    }
}

# ---------------------------------------------------------------------------- Queue
# Empty: the embedded broker of `./run`, a socket in the data folder.
CELERY_BROKER_URL = env.text("CELERY_BROKER_URL") or f"redis+socket://{SOCKETS_DIR / 'broker'}"
# The database is the truth and a message is only a bell (DESIGN: "The path of a run"), so a
# message is acknowledged at once, never kept by a busy worker, and its result is nobody's business.
CELERY_TASK_ACKS_LATE = False
CELERY_WORKER_DISABLE_PREFETCH = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_TASK_IGNORE_RESULT = True
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
# A web request that rings must not hang on a frozen broker.
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "socket_timeout": 3,
    "socket_connect_timeout": 2,
    "visibility_timeout": 3600,
}
CELERY_TASK_PUBLISH_RETRY_POLICY = {"max_retries": 1, "interval_start": 0, "interval_max": 0.2}
# SIGTERM to a worker lets go of its attempts within seconds; their containers run on.
CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT = 1.0
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_SEND_TASK_EVENTS = True
CELERY_TASK_DEFAULT_QUEUE = "control"
CELERY_TIMEZONE = "UTC"

# ---------------------------------------------------------------------------- Fleet
# The name of this worker host. A second worker on one machine gets its own.
HOST_NAME = env.text("HOST_NAME", socket.gethostname())
# Empty: the engine of the environment (DOCKER_HOST or the usual socket). "none": no engine.
ENGINE_URL = env.text("ENGINE_URL")
# An upper bound of runs at once on this host; resources decide below it.
SLOTS = env.number("SLOTS", 0)  # 0: one per two CPUs, at least two, at most eight
# What stays for the system when a run's memory limit is worked out.
MEMORY_RESERVE_BYTES = env.gibibytes("MEMORY_RESERVE_GIB", 2)
DISK_RESERVE_BYTES = env.gibibytes("DISK_RESERVE_GIB", 2)
# "nvidia" for the NVIDIA container toolkit's driver, "cdi" for CDI device names.
GPU_REQUEST_MODE = env.text("GPU_REQUEST_MODE", "nvidia")
BASE_IMAGE = env.text("BASE_IMAGE") or base_image.of(DATA_DIR)
# What agents with the internet may reach although it is this host's, a server's or the cloud's own.
AGENTS_MAY_REACH = env.networks("AGENTS_MAY_REACH")
# Empty: the engine's own.
AGENT_NAMESERVERS = env.networks("AGENT_NAMESERVERS")
# Upstream's name for the same decision. A privileged agent on a plain engine is root on its host.
ACCEPTS_PRIVILEGED = env.flag("I_ACCEPT_RUNNING_PRIVILEGED_CONTAINERS", default=False)

# ---------------------------------------------------------------------------- Runs
DEFAULT_TIME_LIMIT = env.hours("DEFAULT_TIME_LIMIT_HOURS", 24)
DEFAULT_STEP_TIMEOUT = env.hours("DEFAULT_STEP_TIMEOUT_HOURS", 9)
HEARTBEAT = env.seconds("HEARTBEAT_SECONDS", 15)
LEASE_TTL = env.seconds("LEASE_TTL_SECONDS", 90)
# A heartbeat is sent only while the supervising loop itself has moved this recently.
LOOP_STUCK_AFTER = env.seconds("LOOP_STUCK_AFTER_SECONDS", 60)
# Silence is no proof: only after this long may another host take over.
HOST_LOST_AFTER = env.minutes("HOST_LOST_AFTER_MINUTES", 15)
# A worker that for so long leaves undone what it should do is restarted by its host service.
WORKER_DEAF_AFTER = env.seconds("WORKER_DEAF_AFTER_SECONDS", 60)
RING_EVERY = env.seconds("RING_EVERY_SECONDS", 30)
STOP_GRACE = env.seconds("STOP_GRACE_SECONDS", 30)
START_LIMIT = env.minutes("START_LIMIT_MINUTES", 10)
STALL_LIMIT = env.hours("STALL_LIMIT_HOURS", 3)
# Infrastructure failures of a run, counted since a person last queued it.
MAX_TRIES = env.number("MAX_TRIES", 3, least=1)
# What an attempt may write in all; above it the agent is stopped with that cause.
OUTPUT_QUOTA_BYTES = env.gibibytes("OUTPUT_QUOTA_GIB", 100)
LOG_MAX_BYTES = env.gibibytes("LOG_MAX_GIB", 1)
PIDS_LIMIT = env.number("PIDS_LIMIT", 4096, least=64)

# ---------------------------------------------------------------------------- Grading
GRADING_TIME_LIMIT = env.minutes("GRADING_TIME_LIMIT_MINUTES", 30)
GRADING_MEMORY_BYTES = env.gibibytes("GRADING_MEMORY_GIB", 8)
SUBMISSION_MAX_BYTES = env.gibibytes("SUBMISSION_MAX_GIB", 1)
VALIDATIONS_PER_MINUTE = env.number("VALIDATIONS_PER_MINUTE", 30, least=1)

# ---------------------------------------------------------------------------- Logs
LOG_LEVEL = env.text("LOG_LEVEL", "INFO")
LOGGING_CONFIG = "mlebench_web.logs.configure"
LOGGING = {"level": LOG_LEVEL}

# ---------------------------------------------------------------------------- Control tick
CELERY_BEAT_SCHEDULE = {
    "tick": {
        "task": "runs.tasks.tick",
        "schedule": RING_EVERY,
        # Two ticks in a row say the same: a late one is dropped.
        "options": {"queue": "control", "expires": RING_EVERY.total_seconds()},
    }
}
CELERY_BEAT_SCHEDULE_FILENAME = str(DATA_DIR / "beat-schedule")

# ---------------------------------------------------------------------------- Chaos
# Both are for bench/chaos.py alone.
CHAOS = env.flag("CHAOS", default=False)
CHAOS_BREAK = env.text("MLEBENCH_WEB_CHAOS_BREAK")
if CHAOS_BREAK and not CHAOS:
    raise ImproperlyConfigured(
        "MLEBENCH_WEB_CHAOS_BREAK switches a guard of running agents off: leave it out. "
        "Only bench/chaos.py sets it, with CHAOS=1, for a fleet of its own."
    )

# ---------------------------------------------------------------------------- Snapshots
# Copies of the submission while a run lasts, for each attempt.
SNAPSHOTS_KEPT = env.number("SNAPSHOTS_KEPT", 60, least=2)
SNAPSHOTS_MAX_BYTES = env.gibibytes("SNAPSHOTS_MAX_GIB", 4)

# ---------------------------------------------------------------------------- Checkpoints
# By the clock, for agents that do not say when; an agent's own manifest may say another time.
CHECKPOINT_EVERY = env.minutes("CHECKPOINT_EVERY_MINUTES", 15)
# What the state of one attempt may have; above it nothing is saved and the page says so.
CHECKPOINT_QUOTA_BYTES = env.gibibytes("CHECKPOINT_QUOTA_GIB", 20)
# Of a run that ended without a result; one with a result needs none.
CHECKPOINTS_KEPT = env.days("CHECKPOINTS_KEPT_DAYS", 14)

# ---------------------------------------------------------------------------- Imports
# What an archive may unpack to, and what of a folder is copied for one run.
IMPORT_MAX_BYTES = env.gibibytes("IMPORT_MAX_GIB", 50)
# Larger ones are imported from a folder of the server.
IMPORT_UPLOAD_MAX_BYTES = env.gibibytes("IMPORT_UPLOAD_MAX_GIB", 4)
