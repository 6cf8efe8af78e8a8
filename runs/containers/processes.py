"""The agent's processes, listed and signalled from inside their container.

In there an id can name no process outside, and the kernel lets the agent's user signal nothing but
its own. The shell's built-ins alone are used: hundreds of processes start none more.
"""

import contextlib
import threading
from collections.abc import Sequence

from docker.types import CancellableStream

from runs.containers import COMMAND_AT_MOST, PROCESSES_AT_MOST, AgentProcess, EngineFailure
from runs.core.failures import Cause

# One line each: the rest of /proc/<id>/stat behind the name, the id in front, a tab, the command.
LIST = f"""\
cd /proc
for p in [0-9]*; do
  [ -O "$p" ] && [ "$p" != $$ ] || continue
  IFS= read -r -d '' stat < "$p/stat"
  mapfile -d '' -n 64 words < "$p/cmdline"
  command="${{words[*]}}"
  command="${{command:0:{COMMAND_AT_MOST}}}"
  stat="${{stat##*) }}"
  printf '%s %s\\t%s\\n' "$p" "${{stat//$'\\n'/ }}" "${{command//[$'\\n\\t']/ }}"
  count=$((count + 1))
  [ "$count" -lt {PROCESSES_AT_MOST} ] || break
done 2>/dev/null
"""
# `SIGNAL id start id start …`: to those that are alive and began then; prints to how many.
SEND = """\
signal=$1 sent=0
shift
while [ $# -ge 2 ]; do
  stat=
  IFS= read -r -d '' stat < "/proc/$1/stat"
  fields=(${stat##*) })
  [ "${fields[19]}" = "$2" ] && kill "-$signal" "$1" && sent=$((sent + 1))
  shift 2
done 2>/dev/null
echo "$sent"
"""


def read_list(text: str) -> list[AgentProcess]:
    """From what LIST printed. A line of another shape is left out."""
    found = []
    for line in text.split("\n"):
        fields, _, command = line.partition("\t")
        # The id, then from the third field of /proc/<id>/stat on: state, parent, …, start (22nd).
        parts = fields.split()
        if len(parts) < 21 or parts[1] in "ZX":
            continue
        pid, parent, began = parts[0], parts[2], parts[20]
        if pid.isdigit() and parent.isdigit() and began.isdigit():
            found.append(AgentProcess(int(pid), int(parent), float(began), command.strip()))
    return found


def send_arguments(processes: Sequence[AgentProcess], signal: str) -> list[str]:
    pairs = [(str(each.pid), str(int(each.started))) for each in processes]
    return [signal, *(word for pair in pairs for word in pair)]


def output(stream: CancellableStream, *, at_most: int, seconds: float) -> bytes:
    """What a command in a container prints, up to its end or `at_most` bytes.

    The agent can stop whatever runs as its user: reading has an end in any case. Raises
    EngineFailure after `seconds`.
    """
    is_late = threading.Event()

    def give_up() -> None:
        is_late.set()
        stream.close()

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    said = b""
    try:
        for piece in stream:
            said += piece
            if len(said) > at_most:
                break
    finally:
        timer.cancel()
        with contextlib.suppress(OSError):
            stream.close()
        # The stream closes its end of the connection, and only this the object that holds it.
        stream._response.close()  # type: ignore[attr-defined]
    if is_late.is_set():
        raise EngineFailure(
            Cause.ENGINE_ERROR, f"A command in the container did not end in {seconds:g} s."
        )
    return said[:at_most]
