"""What people do to the catalog: refresh, build, change a container config. Page, API and shell.

Each writes the audit log in its own transaction. Raises RequestInvalid naming the field.
"""

from typing import Any

from django.db import transaction

from mlebench_web.accounts import audit
from mlebench_web.accounts.models import Role, User
from mlebench_web.catalog import checkouts, images
from mlebench_web.catalog.checkout import NAME
from mlebench_web.catalog.models import Agent, AgentImage, Checkout, ContainerConfig
from mlebench_web.fleet.models import Host
from runs.core.container_config import ConfigRefused, admin_keys, limits_of
from runs.request import FieldError, RequestInvalid

# The demo and its checks stand on these.
FIXED = ("demo", "demo-process")
LONGEST_NAME = 100


def refused(field: str, message: str, allowed: list[str] | None = None) -> RequestInvalid:
    return RequestInvalid([FieldError(field, message, allowed)])


@transaction.atomic
def refresh(*, by: User | None) -> list[Checkout]:
    """Have every checkout read again by a host service."""
    checkouts.ask()
    rows = list(Checkout.objects.filter(is_listed=True))
    for row in rows:
        audit.record(by, "refresh", row)
    return rows


@transaction.atomic
def add_checkout(url: str, ref: str, name: str, *, by: User | None) -> Checkout:
    try:
        row = checkouts.add(url, ref, name)
    except checkouts.CheckoutInvalid as error:
        raise refused(error.field, str(error)) from error
    audit.record(by, "add checkout", row, detail={"url": url, "ref": ref})
    return row


@transaction.atomic
def change_checkout(
    row: Checkout, *, env_image: str, installs_heavy: bool, by: User | None
) -> Checkout:
    """What its agents are built on: an image that exists, or environment/ of the checkout."""
    row.env_image = env_image.strip()
    row.installs_heavy = installs_heavy
    row.save(update_fields=["env_image", "installs_heavy"])
    detail = {"env_image": row.env_image, "installs_heavy": installs_heavy}
    audit.record(by, "change checkout", row, detail=detail)
    return row


@transaction.atomic
def remove_checkout(row: Checkout, *, by: User | None) -> None:
    if not row.url:
        raise refused("checkout", "It is named by MLEBENCH_DIR: take it out there, and restart.")
    checkouts.remove(row)
    audit.record(by, "remove checkout", row)


@transaction.atomic
def build(agent: Agent, *, by: User | None, tag: str = "", host: str = "") -> AgentImage:
    """Have a host build the agent's image, or take the existing image `tag`."""
    if host and not Host.objects.filter(name=host).exists():
        names = list(Host.objects.values_list("name", flat=True))
        raise refused("host", f"There is no host {host!r}.", names)
    tag = tag.strip()
    if len(tag) > 200 or not tag.isprintable() or " " in tag:
        raise refused("tag", "Write a name as docker does: registry/name:tag.")
    row = images.want(agent, by=audit.name_of(by), tag=tag, host_name=host)
    audit.record(by, "build image", row, detail={"agent": agent.name, "tag": tag, "host": host})
    return row


@transaction.atomic
def choose_context(agent: Agent, context: str, *, by: User | None) -> None:
    if context not in Agent.BuildContext.values:
        raise refused("build_context", "That is no choice.", list(Agent.BuildContext.values))
    Agent.objects.filter(folder=agent.folder, checkout=agent.checkout).update(build_context=context)
    audit.record(by, "change agent", agent, detail={"build_context": context})


@transaction.atomic
def save_config(
    name: str, settings: dict[str, Any], *, description: str = "", by: User | None
) -> ContainerConfig:
    """Make a container config, or a new version of one.

    A config of a checkout that is changed here is the team's own from then on; the next refresh
    offers the checkout's under the checkout's name.
    """
    name = name.strip()
    if len(name) > LONGEST_NAME or not all(NAME.fullmatch(part) for part in name.split("/")):
        raise refused("name", "Letters, digits, dots, dashes and _; / between parts.")
    if name in FIXED:
        raise refused("name", f"{name} is for the demo and stays as it is: take another name.")
    if len(description) > 300 or not description.isprintable():
        raise refused("description", "At most 300 characters, on one line.")
    try:
        limits_of(settings)
    except ConfigRefused as error:
        raise RequestInvalid(
            [FieldError("settings", f"{key}: {text}") for key, text in error.problems]
        ) from error
    before = ContainerConfig.objects.filter(name=name).first()
    keys = set(admin_keys(settings)) | set(admin_keys(before.settings if before else {}))
    if keys and by and not by.is_at_least(Role.ADMIN):
        raise refused("settings", f"Only admins may write a config with {', '.join(sorted(keys))}.")
    config = checkouts.put_config(name, settings, description=description, by=audit.name_of(by))
    if config.checkout_id:
        ContainerConfig.objects.filter(pk=config.pk).update(checkout=None)
    audit.record(by, "change config", config, detail={"version": config.version})
    return config
