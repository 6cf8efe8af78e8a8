"""A frozen worker is replaced by one that hears, and what waited for it goes on."""

import os
import signal
import time

import psutil
import pytest

from tests.support.product import Product

pytestmark = pytest.mark.slow

# An attempt whose supervisor died, of a competition that does not exist: adopted, it ends at once.
LEAVE = """
import uuid
from django.utils import timezone
from datetime import timedelta
from mlebench_web.fleet.models import Host
from runs.core.states import State
from tests import factories
host = Host.objects.get(name="{host}")
config = factories.make_config("guard", runtime="process")
group = factories.make_group(config=config, runtime="process")
run = factories.make_run(
    group, competition=factories.make_competition("demo-gone"), state=State.STARTING, host=host,
    lease_until=timezone.now() - timedelta(minutes=1), container_id="",
)
print("MADE", run.pk)
"""
LOOK = """
from runs.models import Attempt
print("SEEN", [(a.number, a.state) for a in Attempt.objects.order_by("pk")])
"""


def test_a_frozen_worker_is_replaced_and_its_attempt_is_adopted(product: Product) -> None:
    product.env |= {
        "WORKER_DEAF_AFTER_SECONDS": "5",
        "RING_EVERY_SECONDS": "2",
        "ENGINE_URL": "none",
    }
    product.start()
    product.wait_for_worker()
    identity = product.data / "s" / f"worker-{product.host}.json"
    product.wait_for(identity.exists)
    frozen = product.info["pids"]["worker"]
    began = time.monotonic()
    for process in [psutil.Process(frozen), *psutil.Process(frozen).children(recursive=True)]:
        os.kill(process.pid, signal.SIGSTOP)

    product.manage("shell", "-c", LEAVE.format(host=product.host))

    product.wait_for(lambda: product.info["pids"].get("worker") not in (None, frozen), within=120)
    product.wait_for(lambda: "(1, 'ended')" in product.manage("shell", "-c", LOOK), within=60)
    print(
        f"A frozen worker was replaced and its attempt taken up in {time.monotonic() - began:.0f} s"
    )
