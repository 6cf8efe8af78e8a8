"""What would stop a run group, or should be known before Start: the panel beside the form.

The same checks decide when the group is made, so that API and shell hear the same.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from mlebench_web.accounts.models import Role, User
from mlebench_web.catalog import images, official_data
from mlebench_web.catalog.models import Agent, AgentImage, ContainerConfig
from mlebench_web.fleet import hosts
from mlebench_web.fleet.models import Gpu, Host, PreparedData
from runs import agent_secrets, queue
from runs.core import placement
from runs.core.comparability import OFFICIAL_SEEDS, Hardware, differences
from runs.core.container_config import SYSBOX, ConfigRefused, Limits, admin_keys, limits_of
from runs.core.isolation import is_root_on_host, what_opens
from runs.core.placement import Need, Offer
from runs.request import FieldError, RunGroupRequest, Wanted, look_up

Level = Literal["block", "acknowledge", "inform"]

# The configs that the demo split uses when nobody names one.
DEMO, DEMO_PROCESS = "demo", "demo-process"
ACCEPT_PRIVILEGED = (
    f"Choose a container config with {SYSBOX}, or set I_ACCEPT_RUNNING_PRIVILEGED_CONTAINERS=1 for "
    "the workers of a host on which an agent may be root."
)


@dataclass(frozen=True)
class Check:
    """One finding. `block` refuses, `acknowledge` needs `acknowledge_no_gpu`, `inform` does not."""

    level: Level
    field: str
    message: str
    fix: str = ""


@dataclass(frozen=True)
class ConfigChoice:
    config: ContainerConfig
    # Why this one, where it is not the usual one; shown on pages.
    note: str = ""


@dataclass(frozen=True)
class Fleet:
    """The hosts that are online; where none is, all that are known.

    One whose host service has not described it yet is not known: what it lacks is not said.
    """

    hosts: list[Host]
    offers: list[Offer]
    is_online: bool

    @property
    def has_gpus(self) -> bool:
        return any(offer.gpus for offer in self.offers)

    def that_fit(self, config: ContainerConfig, agent: Agent | None = None) -> list[Offer]:
        """Offers that could run the config when idle. Raises ConfigRefused."""
        need = need_of(config, agent)
        return [offer for offer in self.offers if not placement.never_fits(need, offer)]


def fleet_now() -> Fleet:
    at = hosts.now()
    known = list(Host.objects.filter(service_seen_at__isnull=False))
    online = [host for host in known if host.is_online(at)]
    shown = online or known
    return Fleet(shown, [queue.offer_of(host) for host in shown], is_online=bool(online))


def need_of(config: ContainerConfig, agent: Agent | None = None) -> Need:
    """What any run with this config asks of a host, or any of this agent; data and image aside.

    Raises ConfigRefused.
    """
    limits = limits_of(config.settings)
    return Need(
        attempt_id=0,
        runtime=config.runtime,
        competition="",
        cpus=limits.cpus,
        memory_bytes=limits.memory_bytes,
        gpus=limits.gpus,
        engine_runtime=limits.runtime,
        privileged=agent is not None
        and is_root_on_host(privileged=agent.privileged, engine_runtime=limits.runtime),
    )


def check(request: RunGroupRequest, *, by: User | None = None) -> list[Check]:
    """All findings, what blocks first. Raises RequestInvalid when the request itself is wrong."""
    wanted = look_up(request)
    fleet = fleet_now()
    return findings(wanted, choose_config(wanted, fleet), fleet, by=by)


def refusals(request: RunGroupRequest, checks: Iterable[Check]) -> list[FieldError]:
    """What of the findings stands against making the group now."""
    return [
        FieldError(check.field, f"{check.message} {check.fix}".strip())
        for check in checks
        if check.level == "block"
        or (check.level == "acknowledge" and not request.acknowledge_no_gpu)
    ]


def findings(wanted: Wanted, choice: ConfigChoice, fleet: Fleet, *, by: User | None) -> list[Check]:
    found = [
        *_agent(wanted, by),
        *_data(wanted, fleet),
        *_grading(wanted, fleet),
        *_seeds(wanted),
    ]
    try:
        limits = limits_of(choice.config.settings)
    except ConfigRefused as refused:
        found += [
            Check("block", "container_config", f"{choice.config} cannot be used: {key}: {text}.")
            for key, text in refused.problems
        ]
    else:
        found += [
            *_admin_keys(choice.config, by),
            *_runtime(wanted, choice.config),
            *_image(wanted, choice.config, fleet),
            *_privileged(wanted.agent, limits, by),
            *_hosts(choice.config, wanted.agent, fleet),
            *_gpu(wanted, choice.config, limits, fleet),
            *_comparable(wanted, choice.config, fleet),
        ]
    order = ("block", "acknowledge", "inform")
    return sorted(found, key=lambda check: order.index(check.level))


# -------------------------------------------------------------------------- container config


def choose_config(wanted: Wanted, fleet: Fleet) -> ConfigChoice:
    """The config that was named, never another; else the usual one.

    Demo competitions use `demo`, or `demo-process` where no host has an engine with the built
    image; an image that is still being built is waited for. The rest uses the first that fits.
    """
    if wanted.container_config:
        return ConfigChoice(wanted.container_config)
    if wanted.is_demo:
        return _demo_config(wanted, fleet)
    configs = list(
        ContainerConfig.objects.filter(is_listed=True)
        .exclude(runtime=ContainerConfig.Runtime.PROCESS)
        .exclude(name=DEMO)
    )
    # One that only admins may use is used only by name.
    configs = [each for each in configs if not admin_keys(each.settings)] or configs
    if not configs:
        raise LookupError("The catalog has no container config: run `manage.py migrate`.")
    for config in configs:
        # One that cannot be used fits nowhere, and stops nobody who did not name it.
        with suppress(ConfigRefused):
            if fleet.that_fit(config, wanted.agent):
                return ConfigChoice(config, f"{config} is the first container config that fits.")
    return ConfigChoice(configs[0])


def _demo_config(wanted: Wanted, fleet: Fleet) -> ConfigChoice:
    demo = ContainerConfig.objects.get(name=DEMO)
    if wanted.is_image_building or not wanted.agent.runs_as_process:
        return ConfigChoice(demo)
    if fleet.offers and not any(offer.engine for offer in fleet.offers):
        why = "No host has a container engine"
    elif wanted.image is None:
        why = f"The image of {wanted.agent} is not built"
    elif fleet.offers and not have_image(fleet, wanted.image):
        why = f"No host has the image of {wanted.agent}"
    else:
        # Also before any host has described itself: an engine did build the image.
        return ConfigChoice(demo)
    return ConfigChoice(
        ContainerConfig.objects.get(name=DEMO_PROCESS),
        f"{why}: runs are processes of the host, without a sandbox.",
    )


def have_image(fleet: Fleet, image: AgentImage) -> list[Host]:
    """Hosts whose engine has the image: as they reported, or because it was built there."""
    return [
        host
        for host in fleet.hosts
        if host.engine_id
        and not host.engine_error
        and (image.image_id in host.image_ids or image.engine_id == host.engine_id)
    ]


# ------------------------------------------------------------------------------------ checks


def _agent(wanted: Wanted, by: User | None) -> Iterable[Check]:
    agent = wanted.agent
    env = {**agent.env_vars, **wanted.request.env}
    missing = agent_secrets.missing(by, by.team if by else None, env, agent.kwargs)
    if missing:
        yield Check(
            "block",
            "agent",
            f"{agent} needs {'the secret' if len(missing) == 1 else 'the secrets'} "
            f"{', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not stored.",
            agent_secrets.fix_for(by),
        )


def _privileged(agent: Agent, limits: Limits, by: User | None) -> Iterable[Check]:
    if not agent.privileged:
        return
    if is_root_on_host(privileged=True, engine_runtime=limits.runtime):
        what = f"{agent} runs privileged: it can take over its host and read every answer there."
        accepted = "By starting it you accept that; its runs are marked unsandboxed."
    else:
        what = f"{agent} asks to run privileged; {SYSBOX} gives it that in a world of its own."
        accepted = ""
    if by and by.is_at_least(Role.ADMIN):
        yield Check("inform", "agent", f"{what} {accepted}".strip())
    else:
        yield Check("block", "agent", what, "Ask an administrator to start it.")


def _admin_keys(config: ContainerConfig, by: User | None) -> Iterable[Check]:
    if opens := what_opens(config.settings, privileged=False):
        yield Check(
            "inform",
            "container_config",
            f"{config} opens the host to agents ({'; '.join(opens)}): its runs are marked "
            "unsandboxed.",
        )
    keys = admin_keys(config.settings)
    if keys and by and not by.is_at_least(Role.ADMIN):
        yield Check(
            "block",
            "container_config",
            f"{config} has settings that open a container up: {', '.join(keys)}. "
            "Only admins may start runs with them.",
            "Choose another container config, or ask an administrator.",
        )


def _runtime(wanted: Wanted, config: ContainerConfig) -> Iterable[Check]:
    if config.runtime == ContainerConfig.Runtime.PROCESS:
        if not (wanted.agent.is_builtin and wanted.agent.runs_as_process):
            yield Check(
                "block",
                "container_config",
                f"{config} runs agents as processes of the host, which only built-in agents may.",
                "Choose a container config with a sandbox.",
            )
        yield Check(
            "inform",
            "container_config",
            f"{config} is unsandboxed: the agent runs as a process of the host.",
        )


def _image(wanted: Wanted, config: ContainerConfig, fleet: Fleet) -> Iterable[Check]:
    if config.runtime == ContainerConfig.Runtime.PROCESS:
        return
    agent = wanted.agent
    # Built-in agents are built again at each start of the product.
    if wanted.image and not agent.is_builtin and images.changed_since(agent, wanted.image):
        yield Check(
            "inform",
            "agent",
            f"The code of {agent} has changed since its image was built on "
            f"{wanted.image.started_at:%Y-%m-%d %H:%M}. The runs have the code of that day.",
            "Build it again on the agent's page to run what is there now.",
        )
    build = f"Build it on a host with an engine: manage.py build_agent {agent.name}"
    if wanted.image is None:
        if wanted.is_image_building:
            yield Check(
                "inform", "agent", f"The image of {agent} is being built. Its runs wait for it."
            )
            return
        failed = images.last_failure(agent)
        why = f" The last build failed: {failed.error}" if failed else ""
        yield Check("block", "agent", f"The image of {agent} is not built.{why}", build)
    elif fleet.is_online and not have_image(fleet, wanted.image):
        yield Check("block", "agent", f"No online host has the image of {agent}.", build)


def _hosts(config: ContainerConfig, agent: Agent, fleet: Fleet) -> Iterable[Check]:
    if not fleet.is_online:
        yield Check(
            "inform", "container_config", "No worker host is online. The runs wait for one."
        )
        return
    fitting = fleet.that_fit(config, agent)
    if not fitting:
        need = need_of(config, agent)
        reasons = "; ".join(
            f"{offer.host}: {placement.never_fits(need, offer)}" for offer in fleet.offers
        )
        yield Check(
            "block",
            "container_config",
            f"No online host can ever run {config}. {reasons}.",
            ACCEPT_PRIVILEGED
            if need.privileged
            else "Choose another container config, or add a host.",
        )
        return
    ready = [offer for offer in fitting if not offer.draining and not offer.put_aside]
    if not ready:
        names = ", ".join(offer.host for offer in fitting)
        yield Check(
            "inform",
            "container_config",
            f"Every host that fits takes no new runs now (draining or put aside): {names}.",
        )


def _gpu(wanted: Wanted, config: ContainerConfig, limits: Limits, fleet: Fleet) -> Iterable[Check]:
    """The complaint that the product starts from: a GPU that stood idle for a whole benchmark."""
    if wanted.is_demo or limits.gpus or not fleet.has_gpus:
        return
    count = sum(offer.gpus for offer in fleet.offers)
    yield Check(
        "acknowledge",
        "acknowledge_no_gpu",
        f"{config} gives runs no GPU, and the fleet has {count}.",
        "Choose a container config with a GPU, or acknowledge it (acknowledge_no_gpu).",
    )


def _data(wanted: Wanted, fleet: Fleet) -> Iterable[Check]:
    ready = set(
        PreparedData.objects.filter(
            host__in=[host.pk for host in fleet.hosts], state=PreparedData.State.READY
        ).values_list("competition", flat=True)
    )
    missing = [each for each in wanted.competitions if each.pk not in ready]
    demo = [each.name for each in missing if each.is_demo]
    others = [each.name for each in missing if not each.is_demo]
    field = "split" if wanted.split else "competitions"
    if others:
        yield Check(
            "block",
            field,
            f"The data of {len(others)} competitions is not prepared on any host: "
            f"{', '.join(others)}.",
            "Prepare it, or leave these out.",
        )
    if demo:
        yield Check(
            "inform", field, f"Runs of {', '.join(demo)} wait until their data is prepared."
        )


def _grading(wanted: Wanted, fleet: Fleet) -> Iterable[Check]:
    """Competitions of a checkout are graded by mle-bench, which each host needs for itself."""
    field = "split" if wanted.split else "competitions"
    facts_only = [each.name for each in wanted.competitions if not (each.is_demo or each.folder)]
    if facts_only:
        yield Check(
            "block",
            field,
            f"There is no grader for {some(facts_only)}: only facts of them are known.",
            "Set MLEBENCH_DIR to an mle-bench checkout that has them.",
        )
    official = [each.name for each in wanted.competitions if official_data.is_official(each)]
    unable = [host for host in fleet.hosts if host.mlebench_error]
    if not official or not unable:
        return
    if len(unable) == len(fleet.hosts):
        yield Check(
            "block",
            field,
            f"No host can grade {some(official)}. {unable[0].name}: {unable[0].mlebench_error}",
            "Demo competitions need nothing of mle-bench's.",
        )
    else:
        names = ", ".join(host.name for host in unable)
        yield Check(
            "inform",
            field,
            f"Runs of {some(official)} do not go to {names}: mle-bench's libraries, which grade "
            "them, are missing there (./run mlebench).",
        )


def some(names: Sequence[str]) -> str:
    """The first five, and how many more."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"


def _seeds(wanted: Wanted) -> Iterable[Check]:
    if wanted.request.seeds < OFFICIAL_SEEDS:
        yield Check("inform", "seeds", f"A comparable result needs {OFFICIAL_SEEDS} seeds or more.")


def _comparable(wanted: Wanted, config: ContainerConfig, fleet: Fleet) -> Iterable[Check]:
    """Each way in which runs differ from the official ones; demo results compare with none."""
    if wanted.is_demo:
        return
    for difference in differences(
        hours=wanted.time_limit.total_seconds() / 3600,
        hardware=_hardware(config, fleet),
        seeds=OFFICIAL_SEEDS,
    ):
        field = "time_limit_s" if difference.name == "time" else "container_config"
        # What no host can tell yet is no difference.
        if not difference.text.endswith("not reported"):
            yield Check("inform", field, f"Not as the official runs: {difference.text}.")


def _hardware(config: ContainerConfig, fleet: Fleet) -> Hardware:
    """What a run would have on the first host that fits."""
    fitting = fleet.that_fit(config)
    if not fitting:
        return Hardware()
    cpus, memory_bytes, gpus = placement.size(need_of(config), fitting[0])
    names = (
        Gpu.objects.filter(host__name=fitting[0].host, is_present=True, fault="")
        .exclude(is_mig_parent=True)
        .order_by("index")
        .values_list("name", flat=True)
    )
    return Hardware(cpus=cpus, memory_bytes=memory_bytes, gpu_names=tuple(names[:gpus]))
