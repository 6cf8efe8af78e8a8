"""Whether a container holds its agent: what opens its host to it. Pure.

A container of a plain engine shares the host's kernel. What is named here makes root in it root on
the host, or near enough: the host's disks, with every answer and key on them, are then one mount
away, and no check inside the container can prove otherwise. sysbox gives each container a user
namespace of its own, so that nothing in it is root outside.
"""

from collections.abc import Mapping

from runs.core.container_config import SYSBOX

# Capabilities with which root in a container of a plain engine leaves it, or takes the kernel's
# place: capabilities(7), and the engine's own list of what it does not give by default.
OPENING = frozenset(
    {
        "ALL",
        "BPF",
        "CHECKPOINT_RESTORE",
        "DAC_READ_SEARCH",
        "MAC_ADMIN",
        "MAC_OVERRIDE",
        "NET_ADMIN",
        "PERFMON",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_TIME",
        "SYSLOG",
    }
)
PRIVILEGED = "its container is privileged"


def is_root_on_host(*, privileged: bool, engine_runtime: str | None) -> bool:
    """Whether the agent's container is asked for with the engine's `privileged`.

    Never with sysbox: it refuses the flag, and gives what agents want it for (an engine of their
    own) without.
    """
    return privileged and engine_runtime != SYSBOX


def what_opens(settings: Mapping[str, object], *, privileged: bool) -> list[str]:
    """What opens the host to an agent, a few words each; empty: its container holds it.

    `settings` is a container config's JSON, also one that would be refused by now.
    """
    runtime = settings.get("runtime")
    found = ["it has devices of the host"] if settings.get("devices") else []
    if runtime == SYSBOX:
        # Devices are the host's own, whatever namespace looks at them.
        return found
    if is_root_on_host(privileged=privileged, engine_runtime=None):
        found.append(PRIVILEGED)
    added = settings.get("cap_add")
    names = {str(name).upper().removeprefix("CAP_") for name in _listed(added)}
    if opening := sorted(names & OPENING):
        found.append(f"it has {', '.join(opening)}")
    mode = str(settings.get("ipc_mode") or "")
    if mode == "host" or mode.startswith("container:"):
        found.append(f"it shares memory with others ({mode})")
    return found


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []
