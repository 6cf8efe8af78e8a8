"""`./run` as a whole: it starts, restarts, says where it is, and ends."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from mlebench_web import sockets
from mlebench_web.launcher import runfile
from tests.support.product import ROOT, Product

pytestmark = pytest.mark.slow


def get(url: str) -> tuple[int, str]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.status, answer.read().decode()


def run(product: Product, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(ROOT / "run"), *arguments, "--data", str(product.data)],
        env=product.env,
        capture_output=True,
        text=True,
    )


def parts_of(product: Product) -> list[psutil.Process]:
    found = [runfile.find(part) for part in product.info["parts"].values()]
    return [process for process in found if process]


def is_alive(process: psutil.Process) -> bool:
    # Where nobody collects orphans (containers), a dead one stays as a zombie.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_fresh_folder_becomes_a_product_and_all_of_it_ends(product: Product) -> None:
    product.start()
    product.wait_for_worker()
    info = product.info

    assert get(f"{product.address}/healthz")[0] == 200
    assert set(info["pids"]) == {"broker", "web", "control", "host-service", "worker"}
    assert info["pid"] == product.process.pid
    # The link works, and once.
    assert get(product.setup_link)[0] == 200
    # Neither it nor any key of it is in a log.
    token = product.setup_link.rstrip("/").rpartition("/")[2]
    logs = (product.data / "logs").glob("*.log*")
    assert not [log.name for log in logs if token in log.read_text(errors="replace")]

    # A second one says where the first one is, and changes nothing.
    second = run(product, "start", "--port", "0")
    assert second.returncode == 0
    assert info["address"] in second.stdout
    assert product.info["pids"] == info["pids"]

    processes = parts_of(product)
    children = [child for each in processes for child in each.children(recursive=True)]
    begin = time.monotonic()
    product.stop()

    assert time.monotonic() - begin < 15
    assert not [each for each in (*processes, *children) if is_alive(each)]
    assert product.info == {}

    # Whoever was admin can sign in; the second start asks nothing and takes seconds.
    product.start()
    assert get(f"{product.address}/healthz")[0] == 200


def test_every_part_that_is_killed_comes_back(product: Product) -> None:
    product.start()
    product.wait_for_worker()
    before = product.info["pids"]

    for pid in before.values():
        os.kill(pid, signal.SIGKILL)

    product.wait_for(
        lambda: all(product.info["pids"][name] not in (None, before[name]) for name in before),
        within=60,
    )
    product.wait_for(lambda: healthy(product))
    assert all(part["restarts"] >= 1 for part in product.info["parts"].values())
    assert "! worker ended (signal 9)" in product.output


def healthy(product: Product) -> bool:
    try:
        return get(f"{product.address}/healthz")[0] == 200
    except OSError:
        return False


def test_a_killed_run_leaves_nothing_and_the_next_one_starts(product: Product) -> None:
    product.start()
    product.wait_for_worker()
    processes = parts_of(product)
    assert product.process
    product.process.kill()
    product.process.wait()
    left = product.data / "tmp" / "half-a-file"
    left.touch()

    product.start()

    assert not [each for each in processes if is_alive(each)]
    assert not left.exists()
    assert get(f"{product.address}/healthz")[0] == 200


def test_a_taken_port_is_said_before_anything_starts(product: Product) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        done = run(product, "start", "--port", str(port))

    assert done.returncode == 2
    assert f"--port {port + 1}" in done.stdout
    assert not (product.data / "db.sqlite3").exists()


def test_a_wrong_setting_is_said_with_its_name(product: Product) -> None:
    product.env["LEASE_TTL_SECONDS"] = "20"

    done = run(product, "start", "--port", "0")

    assert done.returncode == 2
    assert "LEASE_TTL_SECONDS" in done.stdout


def test_a_folder_of_another_machine_is_refused(product: Product) -> None:
    (product.data / "machine.json").write_text(json.dumps({"machine_id": "another"}))

    done = run(product, "start", "--port", "0")

    assert done.returncode == 2
    assert "belongs to another machine" in done.stdout
    assert "DATABASE_URL" in done.stdout


def test_a_deep_data_folder_with_a_space_works(product: Product) -> None:
    outer = product.data
    product.data = Path(outer, "a folder " * 12)
    product.data.mkdir(parents=True)
    try:
        product.start()
        product.wait_for_worker()

        assert "the data folder's path is too long" in product.output
        assert get(f"{product.address}/healthz")[0] == 200
        short = sockets.folder_for(product.data)
        product.stop()
        assert not short.exists()
    finally:
        product.stop()
        product.data = outer


def test_a_new_setup_link_replaces_the_old_one(product: Product) -> None:
    product.start()
    old = product.setup_link

    new = run(product, "setup-link").stdout.strip()

    assert new.startswith(product.address)
    assert get(new)[0] == 200
    with pytest.raises(urllib.error.HTTPError) as gone:
        get(old)
    gone.value.close()
    assert gone.value.code in (404, 410)
