"""Probes over files as agents leave them.

The files were made by hand in the shape that the programs write, not recorded from runs of them
(tests/support/agent_files/README.md).
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runs import agent_manifest, probes
from runs.core.probing import News, SeenStep
from runs.core.steps import Ledger, Metric, StepEnd
from runs.probes import files, mlab
from runs.probes.files import Unread

SAMPLES = Path(__file__).resolve().parent.parent / "support/agent_files"
# When the samples play.
T = 1767225600.0


@pytest.fixture
def left_by(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a sample as the folder of an attempt; each file one second newer than the last."""

    def copy(name: str) -> Path:
        root = tmp_path / "attempt"
        shutil.copytree(SAMPLES / name, root)
        for age, path in enumerate(sorted(root.rglob("*.json"))):
            os.utime(path, (T + 1000 + age, T + 1000 + age))
        return root

    return copy


def look(name: str, root: Path) -> list[SeenStep]:
    probe = probes.of(name, root)
    assert probe is not None
    seen = probe.look()
    assert seen is not None
    # Nothing has changed since.
    assert probe.look() is None
    return list(seen)


def short(steps: list[SeenStep]) -> list[tuple[int, str, str]]:
    """Number, name and how it stands."""
    return [
        (
            step.number,
            step.name.partition("\n")[0],
            "runs" if step.is_running else step.error or "ended",
        )
        for step in steps
    ]


# ------------------------------------------------------------------------------ AIDE


def test_the_nodes_of_aides_journal_are_its_steps(left_by: Callable[[str], Path]) -> None:
    steps = look("aide", left_by("aide"))

    assert short(steps) == [
        (1, "A random forest on all columns.", "ended"),
        (2, "Gradient boosting with early stopping.", "KeyError"),
        (3, "Fix the name of the column.", "ended"),
        (4, "A stack of five models.", "TimeoutError"),
        (5, "", "runs"),
    ]
    assert [step.metric for step in steps[:3]] == [
        Metric("validation", 0.81, True),
        None,
        Metric("validation", 0.87, True),
    ]
    # An earlier one ended when its code had run, the last one when the journal was written.
    assert [step.ended_at for step in steps] == [T + 50, T + 82.5, T + 140, T + 1000, None]
    assert [step.began_at for step in steps] == [None, T + 50, T + 82.5, T + 140, T + 1000]


def test_before_its_journal_aide_is_at_its_first_step(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/aide.log").touch()

    assert look("aide", tmp_path) == [SeenStep(1, is_running=True, is_assumed=True)]


def test_a_journal_one_folder_below_is_found(left_by: Callable[[str], Path]) -> None:
    root = left_by("aide")
    (root / "logs/0-exp").mkdir()
    (root / "logs/journal.json").rename(root / "logs/0-exp/journal.json")

    assert len(look("aide", root)) == 5


def test_a_half_written_journal_keeps_the_last_reading(left_by: Callable[[str], Path]) -> None:
    root = left_by("aide")
    journal = root / "logs/journal.json"
    whole = journal.read_text()
    probe = probes.PROBES["aide"](root)
    assert len(probe.look() or ()) == 5

    journal.write_text(whole[: len(whole) // 2])
    assert probe.look() is None

    content = json.loads(whole)
    content["nodes"].append(content["nodes"][0])
    journal.write_text(json.dumps(content))
    assert len(probe.look() or ()) == 6


@pytest.mark.parametrize("folder", ["logs", "logs/0-exp"])
def test_a_half_written_journal_is_no_first_step(
    left_by: Callable[[str], Path], folder: str
) -> None:
    """A worker that takes over knows its steps already: nothing of them begins anew."""
    root = left_by("aide")
    whole = (root / "logs/journal.json").read_text()
    (root / "logs/journal.json").unlink()
    journal = root / folder / "journal.json"
    journal.parent.mkdir(exist_ok=True)
    journal.write_text(whole[: len(whole) // 2])
    probe = probes.PROBES["aide"](root)

    for _ in range(2):
        assert probe.look() is None

    journal.write_text(whole)
    assert len(probe.look() or ()) == 5


def test_a_journal_that_is_too_large_is_not_read(
    left_by: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 100)
    probe = probes.PROBES["aide"](left_by("aide"))

    for _ in range(2):
        with pytest.raises(Unread, match=r"^logs/journal\.json is larger than 0 MiB$"):
            probe.look()


# ------------------------------------------------------------------------------ MLAgentBench


def test_a_half_written_trace_is_no_first_step(left_by: Callable[[str], Path]) -> None:
    root = left_by("mlab")
    trace = root / mlab.TRACE
    whole = trace.read_text()
    trace.write_text(whole[: len(whole) // 2])
    probe = probes.PROBES["mlab"](root)

    for _ in range(2):
        assert probe.look() is None

    trace.write_text(whole)
    assert probe.look()


def test_the_actions_of_mlagentbenchs_trace_are_its_steps(left_by: Callable[[str], Path]) -> None:
    steps = look("mlab", left_by("mlab"))

    assert short(steps) == [
        (1, "List Files", "ended"),
        (2, "Execute Script train.py", "ended"),
        (3, "Edit Script (AI) trian.py", "EnvError: cannot read script trian.py"),
        (4, "Final Answer", "ended"),
        (5, "", "runs"),
    ]
    assert (steps[1].began_at, steps[1].ended_at) == (T + 8.5, T + 95)


def test_without_its_trace_the_files_of_mlagentbenchs_steps_are_counted(
    left_by: Callable[[str], Path],
) -> None:
    root = left_by("mlab")
    shutil.rmtree(root / "state")

    steps = look("mlab", root)

    assert short(steps) == [*((number, "", "ended") for number in (1, 2, 3, 4)), (5, "", "runs")]


# ------------------------------------------------------------------------------ OpenHands


def test_the_actions_of_openhands_are_its_steps(left_by: Callable[[str], Path]) -> None:
    steps = look("openhands", left_by("openhands"))

    assert short(steps) == [
        (1, "look at the first rows of the table", "ended"),
        (2, "terminal python train.py", "The command was refused."),
        (3, "terminal python train.py --slow", "runs"),
    ]
    # No time of its own word: when its files were written.
    assert (steps[0].began_at, steps[0].ended_at) == (T + 1003, T + 1004)
    assert not steps[2].is_assumed


def test_the_actions_of_openhands_0_are_its_steps(left_by: Callable[[str], Path]) -> None:
    steps = look("openhands", left_by("openhands0"))

    assert short(steps) == [(1, "Look at the data.", "ended"), (2, "read", "File not found: x.py")]


def test_openhands_events_are_read_as_they_come(left_by: Callable[[str], Path]) -> None:
    root = left_by("openhands")
    events = next((root / "ckpt/openhands/conversations").iterdir()) / "events"
    last = sorted(events.iterdir())[-1]
    late = last.read_bytes()
    last.unlink()
    probe = probes.PROBES["openhands"](root)
    assert len(probe.look() or ()) == 2

    # Half written, then whole.
    last.write_bytes(late[:50])
    assert probe.look() is None
    last.write_bytes(late)
    assert len(probe.look() or ()) == 3


# ------------------------------------------------------------------------------ hostile files


PLACES = {
    "aide": "logs/journal.json",
    "mlab": "state/home-agent-logs/env_log/trace.json",
    "openhands": "ckpt/openhands/conversations/x/events/event-00001-a.json",
}


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_no_probe_follows_a_link(name: str, kind: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / Path(PLACES[name]).name).write_text('{"nodes": [{}], "steps": [{}]}')
    place = tmp_path / "attempt" / PLACES[name]
    (tmp_path / "attempt/logs").mkdir(parents=True)
    if kind == "file":
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(secret / place.name)
    else:
        place.parent.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(place.parent, ignore_errors=True)
        place.parent.symlink_to(secret)

    with pytest.raises(Unread, match="link"):
        probes.PROBES[name](tmp_path / "attempt").look()


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\x00", b"[" * 100_000, b"null", b"[]", b'{"nodes": 3, "steps": {"a": 1}}'],
    ids=["empty", "bytes", "nested", "null", "list", "wrong kinds"],
)
def test_a_file_of_anything_is_no_step(name: str, content: bytes, tmp_path: Path) -> None:
    place = tmp_path / PLACES[name]
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    (tmp_path / "logs").mkdir(exist_ok=True)

    seen = probes.PROBES[name](tmp_path).look()

    assert [step for step in seen or () if not step.is_running] == []


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)
KEYS = (
    *("plan", "metric", "is_buggy", "exc_type", "ctime", "exec_time"),
    *("action", "args", "observation", "timestamp", "name"),
    *("kind", "id", "action_id", "cause", "source", "summary", "tool_name", "error"),
)
VALUES = ANYTHING | st.sampled_from(["ActionEvent", "ObservationEvent", "agent"])
ROW = st.dictionaries(st.sampled_from(KEYS), VALUES)


@pytest.mark.parametrize("name", PLACES)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.lists(ROW, max_size=4) | ANYTHING)
def test_whatever_stands_in_the_files_gives_steps_that_a_row_can_hold(
    name: str, content: object, tmp_path: Path
) -> None:
    place = tmp_path / PLACES[name]
    place.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "logs").mkdir(exist_ok=True)
    row = content[0] if name == "openhands" and isinstance(content, list) and content else content
    written = row if name == "openhands" else {"nodes": content, "steps": content}
    place.write_text(json.dumps(written))

    ledger = Ledger()
    for event in News(since=0).of({}, probes.PROBES[name](tmp_path).look() or ()):
        ledger.take(event, 1.0)

    for step in ledger.steps.values():
        assert "\0" not in step.name + step.error
        (step.name + step.error).encode()


# ------------------------------------------------------------------------------ what is new


def seen(*ends: str) -> list[SeenStep]:
    """One letter a step: e ended, r runs, a runs as far as we assume."""
    return [
        SeenStep(number, name=f"s{number}", is_running=end in "ra", is_assumed=end == "a")
        for number, end in enumerate(ends, start=1)
    ]


def told(ledger: Ledger, news: News, steps: list[SeenStep], at: float) -> str:
    """What each look says: S a start, F an end, with the number."""
    events = news.of(ledger.steps, steps)
    for event in events:
        ledger.take(event, at)
    return " ".join(
        f"{'S' if event.word == 'step_started' else 'F'}{event.step}" for event in events
    )


def test_each_look_tells_only_what_is_new() -> None:
    ledger, news = Ledger(), News(since=0)

    assert told(ledger, news, seen("a"), 1) == "S1"
    assert told(ledger, news, seen("a"), 2) == ""
    assert told(ledger, news, seen("e", "a"), 3) == "F1 S2"
    assert told(ledger, news, seen("e", "e", "e", "a"), 4) == "F2 S3 F3 S4"


def test_several_at_once_are_told_once() -> None:
    """OpenHands runs calls of one answer together; a ledger has one running step."""
    ledger, news = Ledger(), News(since=0)

    assert told(ledger, news, seen("r", "r"), 1) == "S1 S2"
    assert told(ledger, news, seen("r", "r"), 2) == ""
    assert told(ledger, news, seen("e", "e"), 3) == "F1 F2"
    assert [step.end for step in ledger.steps.values()] == [StepEnd.FINISHED] * 2


def test_a_step_that_was_timed_out_is_not_started_again_by_what_its_files_still_show() -> None:
    ledger, news = Ledger(), News(since=0)
    told(ledger, news, seen("a"), 1)
    ledger.time_out(2)

    assert told(ledger, news, seen("a"), 3) == ""
    assert told(ledger, news, seen("e", "a"), 4) == "F1 S2"
    assert ledger.steps[1].end == StepEnd.TIMED_OUT


def test_an_agent_that_starts_again_in_its_container_counts_anew() -> None:
    ledger, news = Ledger(), News(since=0)
    told(ledger, news, seen("e", "e", "e", "a"), 1)

    assert told(ledger, news, seen("e", "a"), 2) == "S1 F1 S2"


def test_what_had_ended_before_the_agent_started_is_of_the_attempt_before() -> None:
    ledger, news = Ledger(), News(since=100)
    carried = SeenStep(1, ended_at=50)

    assert told(ledger, news, [carried, SeenStep(2, ended_at=150)], 1) == "S2 F2"


def test_every_manifest_names_a_probe_that_there_is() -> None:
    names = {manifest.probe for _, manifest in agent_manifest._known()}

    assert names <= {*probes.PROBES, *probes.SILENT}
