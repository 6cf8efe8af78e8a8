"""Reading a folder in mle-bench's layout into values."""

import os
from pathlib import Path

import pytest

from mlebench_web.catalog import checkout, documents
from mlebench_web.catalog.checkout import Contents
from tests.support import checkout as small


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small.make(tmp_path / "mle-bench")


def problems(contents: Contents, level: str = "error") -> list[str]:
    return [str(problem) for problem in contents.problems if problem.level == level]


def test_agents_are_those_with_start_and_dockerfile_and_no_helper_keys(root: Path) -> None:
    contents = checkout.read(root)

    assert [agent.name for agent in contents.agents] == ["aide", "aide/o1-preview", "dummy"]
    assert problems(contents) == []


def test_anchors_and_merge_keys_are_resolved_and_values_keep_their_types(root: Path) -> None:
    aide, preview, dummy = checkout.read(root).agents

    assert aide.kwargs == {"copy_data": False, "exec.timeout": 32400, "agent.steps": 500}
    assert aide.env_vars == {"TIME_LIMIT_SECS": 86400}
    assert preview.env_vars["OPENAI_API_KEY"] == "${{ secrets.OPENAI_API_KEY }}"
    assert (preview.image_name, preview.kwargs_type) == ("aide", "omegaconf")
    assert (dummy.start, dummy.dockerfile, dummy.kwargs, dummy.privileged) == (
        "start.sh", "Dockerfile", {}, False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("config", "line", "said"),
    [
        ("a:\n  start: x/start.sh\n", 1, "dockerfile is missing"),
        ("a:\n  dockerfile: x/Dockerfile\n", 1, "start is missing"),
        ("ok: {}\na:\n  start: no.sh\n  dockerfile: x/Dockerfile\n", 2, "there is no file"),
        (
            "a:\n  start: ../../secret\n  dockerfile: x/Dockerfile\n",
            1,
            "is outside the checkout",
        ),
        ("a:\n  start: x/start.sh\n  dockerfile: x/Dockerfile\n  kwargs: {b: 1}\n", 1,
         "it needs kwargs_type"),
        ("a:\n  start: x/start.sh\n  dockerfile: x/Dockerfile\n  kwargs: [1]\n", 1,
         "kwargs should be a mapping"),
        ("a:\n  start: x/start.sh\n  dockerfile: x/Dockerfile\n  privileged: 'yes'\n", 1,
         "privileged is true or false"),
        ("a b:\n  start: x/start.sh\n  dockerfile: x/Dockerfile\n", 1, "no agent id"),
        ("a/../b:\n  start: x/start.sh\n  dockerfile: x/Dockerfile\n", 1, "no agent id"),
        ("builtin/x:\n  start: x/start.sh\n  dockerfile: x/Dockerfile\n", 1, "mlebench-web itself"),
        ("dummy:\n  start: x/start.sh\n  dockerfile: x/Dockerfile\n", 1,
         "agents/dummy/config.yaml has this id already"),
        ("a:\n  start: !!python/name:os.system\n", 2, "could not determine a constructor"),
        ("a: 1\n b: 2\n", 2, "mapping values are not allowed"),
        ("- a\n- b\n", 1, "should be a mapping"),
        ("a: *nothing\n", 1, "undefined alias"),
        ("[" * 100_000, 1, "nested too deeply"),
        ('a:\n  start: "x\\0"\n  dockerfile: x/Dockerfile\n', 1, "NUL character"),
    ],
)  # fmt: skip
def test_a_broken_agent_is_named_with_file_and_line_and_harms_no_other(
    root: Path, config: str, line: int, said: str
) -> None:
    small.write(root.parent, "secret", "echo\n")
    small.add_agent(root, "x", config)

    contents = checkout.read(root)

    [problem] = problems(contents)
    assert problem.startswith(f"agents/x/config.yaml, line {line}: ")
    assert said in problem
    assert [agent.name for agent in contents.agents] == ["aide", "aide/o1-preview", "dummy"]


def test_a_good_agent_beside_a_broken_one_in_a_file_is_there(root: Path) -> None:
    small.add_agent(
        root,
        "x",
        "bad:\n  start: !!python/object:os.system {}\n  dockerfile: x/Dockerfile\n"
        "good:\n  start: x/start.sh\n  dockerfile: x/Dockerfile\n",
    )

    contents = checkout.read(root)

    assert "good" in [agent.name for agent in contents.agents]
    assert len(problems(contents)) == 1


def test_aliases_that_would_fill_the_memory_are_refused(root: Path) -> None:
    lines = ["a0: &a0 {x: 1}"]
    for number in range(1, 12):
        aliases = ", ".join([f"*a{number - 1}"] * 9)
        lines.append(f"a{number}: &a{number} {{<<: [{aliases}]}}")
    small.add_agent(root, "x", "\n".join(lines))

    [problem] = problems(checkout.read(root))

    assert "with its aliases written out" in problem


def test_an_anchor_that_holds_itself_is_refused(root: Path) -> None:
    small.add_agent(root, "x", "a: &a [*a]\n")

    [problem] = problems(checkout.read(root))

    assert "refers to itself" in problem


def test_an_unknown_kwargs_type_is_noted_and_kept(root: Path) -> None:
    small.add_agent(
        root,
        "x",
        "a:\n  start: x/start.sh\n  dockerfile: x/Dockerfile\n"
        "  kwargs_type: hydra\n  kwargs: {b: 1}\n",
    )

    contents = checkout.read(root)

    assert contents.agents[-1].kwargs_type == "hydra"
    assert any("hands on no kwargs" in note for note in problems(contents, "note"))


def test_a_file_that_a_link_takes_out_of_the_checkout_is_refused(root: Path) -> None:
    outside = small.write(root.parent, "outside.sh", "echo\n")
    (root / "agents" / "dummy" / "start.sh").unlink()
    os.symlink(outside, root / "agents" / "dummy" / "start.sh")

    contents = checkout.read(root)

    assert "is outside the checkout" in problems(contents)[0]
    assert "dummy" not in [agent.name for agent in contents.agents]


@pytest.mark.parametrize(
    "text", ["our-pears\nspaceship-titanic", "our-pears, spaceship-titanic\n",
             "\n\nour-pears\r\n  spaceship-titanic \n\n"],
)  # fmt: skip
def test_a_split_is_read_with_commas_or_lines_and_without_a_last_line_end(
    root: Path, text: str
) -> None:
    small.write(root, "experiments/splits/ours.txt", text)

    [split] = checkout.read(root).splits

    assert split.competitions == ("our-pears", "spaceship-titanic")


def test_a_config_keeps_floats_and_keys_that_nobody_knows(root: Path) -> None:
    [config] = checkout.read(root).configs

    assert config.name == "gpu"
    assert config.settings == {
        "mem_limit": "80G", "nano_cpus": 8e9, "gpus": 1, "labels": {"a": "b"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{\n"a": 1,\n}', "line 3: is no JSON"),
        ("[]", "should be an object"),
        ('{"nano_cpus": NaN}', "NaN is no JSON number"),
        ('{"a": "\\u0000"}', "NUL character"),
        ('{"a": "\\ud800"}', "no Unicode text"),
        ("[" * 100_000, "nested too deeply"),
        (small.POINTER, "Git LFS pointer"),
        ("x" * 600_000, "larger than"),
    ],
    ids=range(8),
)
def test_a_broken_config_is_named_and_harms_no_other(root: Path, text: str, said: str) -> None:
    small.write(root, "environment/config/container_configs/bad.json", text)

    contents = checkout.read(root)

    [problem] = problems(contents)
    assert problem.startswith("environment/config/container_configs/bad.json")
    assert said in problem
    assert [config.name for config in contents.configs] == ["gpu"]


def test_a_competition_has_upstreams_thresholds_and_direction(root: Path) -> None:
    pears, titanic = checkout.read(root).competitions

    assert pears.thresholds is not None
    # 50 teams: places 5, 10 and 20; the best is first, and higher.
    assert (pears.thresholds.gold, pears.thresholds.silver, pears.thresholds.bronze) == (
        0.96, 0.91, 0.81,
    )  # fmt: skip
    assert not pears.thresholds.is_lower_better
    assert pears.answers == "our-pears/prepared/private/test.csv"
    assert titanic.thresholds is None
    assert titanic.leaderboard_is_pointer


def test_a_pointer_in_place_of_a_leaderboard_is_told_with_the_way_out(root: Path) -> None:
    notes = problems(checkout.read(root), "note")

    assert any("Git LFS pointers" in note and "git lfs pull" in note for note in notes)


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("id: our-pears", "id: their-pears", 1, "is not the folder's name"),
        ("grade_fn", "grade_me", 10, "grade_fn is missing"),
        ("preparer:", "prepare:", None, "preparer is missing"),
        ("answers: our-pears/", "answers: ../our-pears/", 7, "answers should be a path"),
        ("answers: our-pears/prepared", "answers: /etc", 7, "answers should be a path"),
        ("dataset:", "dataset: [", None, "is no YAML"),
    ],
)
def test_a_broken_competition_is_named_with_file_and_line_and_harms_no_other(
    root: Path, old: str, new: str, line: int | None, said: str
) -> None:
    config = root / "mlebench/competitions/our-pears/config.yaml"
    config.write_text(config.read_text().replace(old, new, 1))

    contents = checkout.read(root)

    [problem] = problems(contents)
    assert "mlebench/competitions/our-pears/config.yaml" in problem
    assert said in problem
    if line:
        assert f"line {line}:" in problem
    assert [each.name for each in contents.competitions] == ["spaceship-titanic"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rank\n1\n", "has no column `score`"),
        ("score\n1.0\nbest\n", "line 3: 'best' is no score"),
        ("score\n1.0\nnan\n", "line 3: 'nan' is no score"),
        ("score\n", "at least one score"),
        ("score\n1\n1\n", "are equal"),
    ],
)
def test_a_broken_leaderboard_costs_only_the_thresholds(root: Path, text: str, said: str) -> None:
    small.add_competition(root, "our-pears", leaderboard=text)

    contents = checkout.read(root)

    pears = contents.competitions[0]
    assert (pears.name, pears.thresholds) == ("our-pears", None)
    assert said in pears.leaderboard_error
    assert any(said in note for note in problems(contents, "note"))


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(checkout.NoCheckout, match="neither agents nor mlebench/competitions"):
        checkout.read(tmp_path)


def test_what_json_has_no_type_for_becomes_what_mle_bench_would_print() -> None:
    values = documents.yaml_mapping("day: 2024-01-02\nmost: .inf\nno: ~\nbig: 1_000\n")

    assert values == {"day": "2024-01-02", "most": "inf", "no": None, "big": 1000}
