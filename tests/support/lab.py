"""A small installation as rows: a catalog, and one host that has all that its runs need."""

from mlebench_web.catalog.models import Agent, AgentImage, Competition, ContainerConfig, Split
from mlebench_web.fleet.models import Host
from tests import factories


def make_lab() -> Host:
    """Agents baseline and dummy with images, five configs, the demo split and one of the 75.

    In place of the catalog that `migrate` made, so that a test can name all that there is.
    """
    for model in (Agent, AgentImage, Split, ContainerConfig, Competition):
        model.objects.all().delete()
    host = factories.make_host("box-1")
    for name in ("baseline", "dummy"):
        factories.make_image(factories.make_agent(name))
    diamonds = factories.make_competition("demo-diamond-prices")
    trees = factories.make_competition("demo-tree-crowns")
    real = factories.make_competition("spaceship-titanic", is_demo=False)
    factories.make_split("demo", [diamonds, trees], position=0)
    factories.make_split("low", [real], position=1)
    factories.make_config("demo", position=0)
    factories.make_config("demo-process", runtime="process", settings={}, position=1)
    # Upstream's only one: it asks for a runtime that the host does not have.
    default = {"mem_limit": None, "shm_size": "4G", "nano_cpus": 4e9, "runtime": "sysbox-runc"}
    factories.make_config("default", settings=default, position=2)
    factories.make_config("no_sysbox", settings={"nano_cpus": 4e9, "shm_size": "4G"}, position=3)
    gpu = {"mem_limit": "16G", "nano_cpus": 8e9, "gpus": 1}
    factories.make_config("no_sysbox_gpu", settings=gpu, position=4)
    for competition in (diamonds, trees, real):
        factories.make_prepared(host, competition)
    return host
