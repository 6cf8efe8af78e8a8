"""Typed readers for environment variables: one line a setting, refused loudly when wrong."""

import ipaddress
import os
from datetime import timedelta
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured


def text(name: str, default: str = "") -> str:
    return os.environ.get(name, default)


def flag(name: str, *, default: bool) -> bool:
    value = os.environ.get(name)
    if value is None:
        return default
    if value.lower() in ("1", "true", "yes", "on"):
        return True
    if value.lower() in ("0", "false", "no", "off", ""):
        return False
    raise ImproperlyConfigured(f"{name}={value!r}: write 1 or 0")


def number(name: str, default: int, *, least: int = 0) -> int:
    value = os.environ.get(name, str(default))
    try:
        result = int(value)
    except ValueError as error:
        raise ImproperlyConfigured(f"{name}={value!r}: write a whole number") from error
    if result < least:
        raise ImproperlyConfigured(f"{name}={value!r}: write a number of at least {least}")
    return result


def _span(name: str, default: float, unit: str) -> timedelta:
    value = os.environ.get(name, str(default))
    try:
        amount = float(value)
    except ValueError as error:
        raise ImproperlyConfigured(f"{name}={value!r}: write a number of {unit}") from error
    if not 0 < amount < 1e6:
        raise ImproperlyConfigured(f"{name}={value!r}: write a number of {unit} above 0")
    return timedelta(**{unit: amount})


def days(name: str, default: float) -> timedelta:
    return _span(name, default, "days")


def hours(name: str, default: float) -> timedelta:
    return _span(name, default, "hours")


def minutes(name: str, default: float) -> timedelta:
    return _span(name, default, "minutes")


def seconds(name: str, default: float) -> timedelta:
    return _span(name, default, "seconds")


def gibibytes(name: str, default: float) -> int:
    """A number of GiB in the environment, as bytes."""
    value = os.environ.get(name, str(default))
    try:
        amount = float(value)
    except ValueError as error:
        raise ImproperlyConfigured(f"{name}={value!r}: write a number of GiB") from error
    if amount < 0:
        raise ImproperlyConfigured(f"{name}={value!r}: write a number of GiB of at least 0")
    return int(amount * 2**30)


def folder(name: str, default: Path) -> Path:
    value = os.environ.get(name)
    return Path(value).expanduser().resolve() if value else default


def words(name: str, default: str = "") -> list[str]:
    """A comma-separated list."""
    return [word.strip() for word in os.environ.get(name, default).split(",") if word.strip()]


def networks(name: str) -> list[str]:
    """A comma-separated list of IPv4 addresses, or networks as 10.0.0.0/8."""
    found = words(name)
    for each in found:
        try:
            ipaddress.IPv4Network(each)
        except ValueError as error:
            raise ImproperlyConfigured(
                f"{name}: {each!r} is no IPv4 address (10.0.0.7) or network (10.0.0.0/8): {error}"
            ) from error
    return found
