"""Which queued attempt a host takes next, and why one waits. Pure.

A host offers CPUs, memory, GPUs and slots. Slots are only an upper bound; resources decide.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from runs.core.overrides import is_class_of

# CPUs are sums of floats; a difference below this is rounding.
CPU_ROUNDING = 1e-6


@dataclass(frozen=True)
class Need:
    """What an attempt asks of a host. None: whatever the host's share is."""

    attempt_id: int
    runtime: str  # "docker" or "process"
    competition: str
    cpus: float | None = None
    memory_bytes: int | None = None
    # -1: every GPU of the host.
    gpus: int = 0
    # What a re-run asked for: a host by name, a class of GPU ("A10").
    host: str = ""
    gpu_class: str = ""
    # Docker runtime that the config names, such as sysbox-runc.
    engine_runtime: str | None = None
    # Its container is asked for with the engine's `privileged`.
    privileged: bool = False
    # "": the image is still being built. Not looked at in the process runtime.
    image_id: str = ""
    priority: int = 0
    team: int | None = None
    expected_seconds: float = 0
    queued_at: float = 0


@dataclass(frozen=True)
class Offer:
    """What a host has, and what of it is free now."""

    host: str
    slots: int
    cpus: float
    memory_bytes: int
    engine: bool
    engine_runtimes: frozenset[str]
    process_ready: bool
    prepared: frozenset[str]
    image_ids: frozenset[str]
    # Images that some other online host has: this one need not fail for want of them.
    elsewhere_image_ids: frozenset[str] = frozenset()
    gpus: int = 0
    # Model by UUID, of all that can be leased here.
    gpu_models: Mapping[str, str] = field(default_factory=dict)
    free_slots: int = 0
    free_cpus: float = 0
    free_memory_bytes: int = 0
    # UUIDs in the order in which they are given out.
    free_gpus: tuple[str, ...] = field(default=())
    draining: bool = False
    put_aside: str = ""
    accepts_privileged: bool = False
    # Competitions that cannot be graded here, and why: an agent's day must not end without a score.
    ungradable: frozenset[str] = frozenset()
    why_ungradable: str = ""


@dataclass(frozen=True)
class Grant:
    """What the claim reserves: the container's limits."""

    cpus: float
    memory_bytes: int
    gpus: tuple[str, ...]


def share(offer: Offer) -> tuple[float, int]:
    """CPUs and bytes of memory of one slot: the limit of a config that names none."""
    return offer.cpus / offer.slots, offer.memory_bytes // offer.slots


def of_class(need: Need, offer: Offer) -> int:
    """GPUs of the host that the attempt may have."""
    if not need.gpu_class:
        return offer.gpus
    return sum(is_class_of(need.gpu_class, model) for model in offer.gpu_models.values())


def free_of_class(need: Need, offer: Offer) -> tuple[str, ...]:
    if not need.gpu_class:
        return offer.free_gpus
    return tuple(
        uuid
        for uuid in offer.free_gpus
        if is_class_of(need.gpu_class, offer.gpu_models.get(uuid, ""))
    )


def size(need: Need, offer: Offer) -> tuple[float, int, int]:
    """CPUs, bytes and GPUs that the attempt would hold on this host."""
    share_cpus, share_memory = share(offer)
    cpus = share_cpus if need.cpus is None else need.cpus
    memory = share_memory if need.memory_bytes is None else need.memory_bytes
    return cpus, memory, of_class(need, offer) if need.gpus < 0 else need.gpus


def never_fits(need: Need, offer: Offer) -> str:
    """Why this host could not run the attempt even when idle; "" when it could.

    Data and images can still arrive, so they are no reason here.
    """
    cpus, memory, gpus = size(need, offer)
    if need.host and need.host != offer.host:
        return f"the re-run asked for {need.host}"
    if need.runtime == "docker" and not offer.engine:
        return "it has no container engine"
    if need.runtime == "process" and not offer.process_ready:
        return "its Python for agents is not ready"
    if need.engine_runtime and need.engine_runtime not in offer.engine_runtimes:
        return f"its engine has no runtime {need.engine_runtime}"
    if need.privileged and not offer.accepts_privileged:
        return "it does not accept privileged containers"
    if need.gpus and not offer.gpus:
        return "it has no GPU"
    fitting = of_class(need, offer)
    if need.gpus and not fitting:
        return f"it has no GPU of class {need.gpu_class}"
    if gpus > fitting:
        return f"it has {fitting} of {gpus} GPUs"
    if cpus > offer.cpus + CPU_ROUNDING:
        return f"it has {offer.cpus:g} of {cpus:g} CPUs"
    if memory > offer.memory_bytes:
        return f"it offers {offer.memory_bytes / 1e9:.1f} of {memory / 1e9:.1f} GB of memory"
    return ""


def not_now(need: Need, offer: Offer) -> str:
    """Why this host does not take the attempt now; "" when it would."""
    if reason := never_fits(need, offer):
        return reason
    if offer.put_aside:
        return f"it is put aside: {offer.put_aside}"
    if offer.draining:
        return "it is draining"
    if need.competition not in offer.prepared:
        return f"preparing data: {need.competition} is not ready there"
    if need.competition in offer.ungradable:
        return f"it cannot grade {need.competition}: {offer.why_ungradable.rstrip('.')}"
    if need.runtime == "docker":
        if not need.image_id:
            return "the agent's image is still being built"
        if need.image_id not in offer.image_ids and need.image_id in offer.elsewhere_image_ids:
            return "the agent's image is on another host"
    cpus, memory, gpus = size(need, offer)
    if offer.free_slots < 1:
        return "all its slots are taken"
    free = free_of_class(need, offer)
    if gpus > len(free):
        return f"{len(free)} of {gpus} GPUs are free"
    if cpus > offer.free_cpus + CPU_ROUNDING:
        return f"{offer.free_cpus:g} of {cpus:g} CPUs are free"
    if memory > offer.free_memory_bytes:
        return f"{offer.free_memory_bytes / 1e9:.1f} of {memory / 1e9:.1f} GB of memory are free"
    return ""


def grant(need: Need, offer: Offer) -> Grant:
    """What the attempt gets on an offer that it fits."""
    cpus, memory, gpus = size(need, offer)
    return Grant(cpus=cpus, memory_bytes=memory, gpus=free_of_class(need, offer)[:gpus])


def in_order(needs: Iterable[Need], held_by_team: dict[int | None, float]) -> list[Need]:
    """Best first: priority, then the team that holds least, then the longest expected, then age.

    The longest first, since a 24 h run that starts last decides when the whole group ends.
    """
    return sorted(
        needs,
        key=lambda need: (
            -need.priority,
            held_by_team.get(need.team, 0),
            -need.expected_seconds,
            need.queued_at,
            need.attempt_id,
        ),
    )


def why_waiting(need: Need, offers: Sequence[Offer]) -> str:
    """One sentence for the page: why no online host has taken the attempt."""
    if not offers:
        return "No worker host is online."
    reasons = {offer.host: not_now(need, offer) for offer in offers}
    if any(not reason for reason in reasons.values()):
        return "A host has room; it starts within seconds."
    if all(never_fits(need, offer) for offer in offers):
        listed = "; ".join(f"{host}: {reason}" for host, reason in reasons.items())
        return f"No online host can ever run it. {listed}."
    waiting = {
        host: reason
        for host, reason in reasons.items()
        if not never_fits(need, next(o for o in offers if o.host == host))
    }
    return "Waiting. " + "; ".join(f"{host}: {reason}" for host, reason in waiting.items()) + "."
