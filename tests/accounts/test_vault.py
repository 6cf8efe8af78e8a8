"""The store of secrets: sealed, write only, rotated, and never in what is kept."""

import io
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from django.core.management import CommandError, call_command
from django.utils import timezone

from mlebench_web.accounts import placeholders, vault
from mlebench_web.accounts.models import AuditEntry, Secret, Team, User
from tests.factories import make_user

pytestmark = pytest.mark.django_db

VALUE = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def own_keys(settings: object, tmp_path: Path) -> Path:
    settings.DATA_DIR = tmp_path  # type: ignore[attr-defined]
    return tmp_path / "secret-store-keys"


@pytest.fixture
def alice() -> User:
    return make_user("alice")


def team_of(user: User) -> Team:
    assert user.team is not None
    return user.team


def test_a_stored_value_is_sealed_in_the_database_and_comes_back(alice: User) -> None:
    secret = vault.put("API_KEY", VALUE, owner=alice, by=alice)

    assert VALUE not in secret.sealed
    assert vault.values_of(alice, alice.team, {"API_KEY"}) == {"API_KEY": VALUE}


def test_the_key_file_is_its_owners_alone_and_not_the_secret_key(
    alice: User, own_keys: Path, settings: object
) -> None:
    vault.put("API_KEY", VALUE, owner=alice, by=alice)

    assert stat.S_IMODE(own_keys.stat().st_mode) == 0o600
    settings.SECRET_KEY = "another"  # type: ignore[attr-defined]
    assert vault.values_of(alice, None, {"API_KEY"}) == {"API_KEY": VALUE}


def test_a_persons_own_secret_goes_before_the_teams(alice: User) -> None:
    vault.put("API_KEY", "of the team", owner=team_of(alice), by=None)
    assert vault.values_of(alice, alice.team, {"API_KEY"}) == {"API_KEY": "of the team"}

    vault.put("API_KEY", VALUE, owner=alice, by=alice)

    assert vault.values_of(alice, alice.team, {"API_KEY"}) == {"API_KEY": VALUE}
    assert vault.values_of(make_user("bob"), alice.team, {"API_KEY"}) == {"API_KEY": "of the team"}


def test_nobody_elses_secret_is_given_out(alice: User) -> None:
    vault.put("API_KEY", VALUE, owner=alice, by=alice)
    stranger = make_user("eve", team="other")

    assert vault.values_of(stranger, stranger.team, {"API_KEY"}) == {}
    assert vault.values_of(None, None, {"API_KEY"}) == {}
    assert vault.names_of(stranger, stranger.team) == set()
    assert vault.words_to_hide(stranger, stranger.team, {"API_KEY"}) == []


def test_a_replaced_value_is_not_given_out_and_still_hidden(alice: User) -> None:
    vault.put("API_KEY", "the old value", owner=alice, by=alice)
    vault.put("API_KEY", VALUE, owner=alice, by=alice)

    assert vault.values_of(alice, None, {"API_KEY"}) == {"API_KEY": VALUE}
    assert {"the old value", VALUE} <= set(vault.words_to_hide(alice, None, {"API_KEY"}))


def test_a_deleted_value_goes_when_no_run_can_still_have_it(alice: User) -> None:
    secret = vault.put("API_KEY", VALUE, owner=alice, by=alice)
    vault.forget(secret, by=alice)

    assert vault.names_of(alice, None) == set()
    assert vault.purge() == 0
    assert VALUE in vault.words_to_hide(alice, None, {"API_KEY"})

    Secret.objects.update(retired_at=timezone.now() - vault.RETIRED_FOR - timedelta(days=1))
    assert vault.purge() == 1
    assert vault.words_to_hide(alice, None, {"API_KEY"}) == []


def test_the_shapes_in_which_programs_print_a_value_are_hidden(alice: User) -> None:
    vault.put("API_KEY", 'p&"ss wörd/1234', owner=alice, by=alice)

    words = vault.words_to_hide(alice, None, {"API_KEY"})

    assert 'p&\\"ss wörd/1234' in words
    assert 'p&\\"ss w\\u00f6rd/1234' in words
    assert "p%26%22ss%20w%C3%B6rd%2F1234" in words
    assert "cCYic3Mgd8O2cmQvMTIzNA" in words


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("has space", VALUE, "name"),
        ("1KEY", VALUE, "name"),
        ("", VALUE, "name"),
        ("K" * 101, VALUE, "name"),
        ("KEY", "x1y2z", "value"),
        ("KEY", "   \n    ", "value"),
        ("KEY", "a" * 70_000, "value"),
        ("KEY", "with\0nul-character", "value"),
        ("KEY", "half \ud800 pair", "value"),
    ],
)
def test_what_cannot_be_kept_is_refused_naming_the_field(
    alice: User, name: str, value: str, field: str
) -> None:
    with pytest.raises(vault.SecretInvalid) as caught:
        vault.put(name, value, owner=alice, by=alice)

    assert caught.value.field == field
    assert value.strip() == "" or value not in str(caught.value)
    assert not Secret.objects.exists()


def test_the_audit_log_knows_who_stored_and_deleted_and_no_value(alice: User) -> None:
    vault.forget(vault.put("API_KEY", VALUE, owner=alice, by=alice), by=alice)

    entries = list(AuditEntry.objects.order_by("pk"))
    assert [entry.action for entry in entries] == ["store secret", "delete secret"]
    assert VALUE not in repr([(entry.detail, entry.reason) for entry in entries])


# ----------------------------------------------------------------------------------- keys


def test_rotation_seals_with_a_new_key_alone(alice: User, own_keys: Path) -> None:
    vault.put("API_KEY", VALUE, owner=alice, by=alice)
    old = own_keys.read_bytes().split()
    before = Secret.objects.get().sealed

    assert vault.rotate() == 1

    [new] = own_keys.read_bytes().split()
    assert new not in old
    assert Secret.objects.get().sealed != before
    assert Fernet(new).decrypt(Secret.objects.get().sealed.encode()).decode() == VALUE
    assert stat.S_IMODE(own_keys.stat().st_mode) == 0o600


def test_a_lost_key_is_named_and_rotation_then_changes_nothing(alice: User, own_keys: Path) -> None:
    vault.put("API_KEY", VALUE, owner=alice, by=alice)
    lost = own_keys.read_bytes()
    own_keys.write_bytes(Fernet.generate_key())

    with pytest.raises(vault.Sealed, match=r"API_KEY.*its key is not in"):
        vault.values_of(alice, None, {"API_KEY"})
    with pytest.raises(vault.Sealed, match="nothing was changed"):
        vault.rotate()
    # A value that nobody can open was given to nobody.
    assert vault.words_to_hide(alice, None, {"API_KEY"}) == []

    own_keys.write_bytes(own_keys.read_bytes() + b"\n" + lost)
    assert vault.values_of(alice, None, {"API_KEY"}) == {"API_KEY": VALUE}


# ----------------------------------------------------------------------------------- the shell


def test_the_shell_reads_the_value_from_standard_input(
    alice: User, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{VALUE}\n"))

    call_command("set_secret", "API_KEY", "--user", "alice")

    assert vault.values_of(alice, None, {"API_KEY"}) == {"API_KEY": VALUE}
    assert VALUE not in capsys.readouterr().out
    call_command("set_secret", "API_KEY", "--user", "alice", "--delete")
    assert vault.names_of(alice, None) == set()


def test_the_shell_names_an_unknown_owner(alice: User) -> None:
    with pytest.raises(CommandError, match=r"--team: there is no nobody.*vision"):
        call_command("set_secret", "API_KEY", "--team", "nobody")


def test_the_shell_rotates(alice: User, capsys: pytest.CaptureFixture[str]) -> None:
    vault.put("API_KEY", VALUE, owner=alice, by=alice)

    call_command("rotate_secrets")

    assert "1 secrets are sealed" in capsys.readouterr().out


# ----------------------------------------------------------------------------------- placeholders


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("${{ secrets.KEY }}", "KEY"),
        ("${{secrets.KEY}}", "KEY"),
        # As mle-bench: a prefix is enough, and what follows is dropped.
        ("${{ secrets.KEY }} and more", "KEY"),
        ("x ${{ secrets.KEY }}", None),
        ("${{ secrets.KEY-2 }}", None),
        ("$secrets.KEY", None),
        (500, None),
        (None, None),
    ],
)
def test_placeholders_are_read_as_mle_bench_reads_them(value: object, name: str | None) -> None:
    assert placeholders.name_in(value) == name


def test_a_missing_secret_is_named_before_anything_is_filled_in() -> None:
    wanted = {"A": "${{ secrets.ONE }}", "B": 1, "C": "${{ secrets.TWO }}"}

    assert placeholders.filled(wanted, {"ONE": "1", "TWO": ""}) == {"A": "1", "B": 1, "C": ""}
    with pytest.raises(placeholders.Missing, match="The secret TWO is not stored"):
        placeholders.filled(wanted, {"ONE": "1"})


def test_several_that_need_keys_at_once_agree(own_keys: Path, alice: User) -> None:
    start = threading.Barrier(4)

    def seal(_: int) -> bytes:
        start.wait()
        return vault._keys().encrypt(VALUE.encode())

    with ThreadPoolExecutor(4) as pool:
        sealed = list(pool.map(seal, range(4)))

    [key] = own_keys.read_bytes().split()
    assert [Fernet(key).decrypt(each).decode() for each in sealed] == [VALUE] * 4
