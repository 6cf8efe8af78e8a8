from typing import Any

import docker
import docker.errors
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from mlebench_web import base_image
from mlebench_web.accounts import audit
from mlebench_web.catalog import images
from mlebench_web.catalog.models import Agent, AgentImage


class Command(BaseCommand):
    help = "Build images of agents on this machine's container engine; prints their ids."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("agent", nargs="*", help="agent id, such as baseline")
        parser.add_argument("--builtin", action="store_true", help="all built-in agents")
        parser.add_argument(
            "--tag", help="take this existing image for the agent, where it keeps the contract"
        )
        parser.add_argument(
            "--base-image", default=settings.BASE_IMAGE, help="%(default)s by default"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        agents = [self.agent(name) for name in options["agent"]]
        if options["builtin"]:
            agents += Agent.objects.filter(is_builtin=True, is_listed=True)
        if not agents:
            raise CommandError("Name an agent, or write --builtin.", returncode=2)
        if options["tag"] and len(agents) > 1:
            raise CommandError("--tag: an image is of one agent.", returncode=2)
        if settings.ENGINE_URL == "none":
            raise CommandError("ENGINE_URL is none: this host has no container engine.")
        try:
            client = (
                docker.DockerClient(base_url=settings.ENGINE_URL, timeout=600)
                if settings.ENGINE_URL
                else docker.from_env(timeout=600)
            )
            for agent in agents:
                image = images.build(
                    agent,
                    client,
                    base_image=options["base_image"],
                    progress=lambda line: self.stderr.write(line),
                    row=self.row(agent, options["tag"]) if options["tag"] else None,
                )
                self.stdout.write(image.image_id)
                if agent.is_builtin and not options["tag"]:
                    base_image.remember(settings.DATA_DIR, options["base_image"])
        except docker.errors.DockerException as error:
            raise CommandError(f"No container engine: {error}") from error
        except images.BuildFailed as error:
            raise CommandError(f"{error}{self.goes_on_with(agent)}") from error

    def goes_on_with(self, agent: Agent) -> str:
        """A sentence where an older image of the agent is used, since this build failed."""
        image = images.newest_image(agent)
        if image is None:
            return ""
        on = f", on {image.base_image}" if image.base_image else ""
        return f" Runs of {agent.name} go on with the image that was built before{on}."

    def row(self, agent: Agent, tag: str) -> AgentImage:
        return AgentImage.objects.create(
            folder=agent.folder,
            image_name=agent.image_name,
            state=AgentImage.State.BUILDING,
            tag=tag,
            asked_by=audit.SHELL,
        )

    def agent(self, name: str) -> Agent:
        agent = Agent.objects.filter(name=name).first()
        if agent is None:
            known = ", ".join(Agent.objects.values_list("name", flat=True))
            raise CommandError(f"No agent {name}. There are: {known}.")
        return agent
