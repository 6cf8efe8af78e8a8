import json
import sys
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from mlebench_web.launcher import doctor

MARKS = {doctor.Level.FINE: "✓", doctor.Level.ABSENT: "·", doctor.Level.BROKEN: "✗"}


class Command(BaseCommand):
    help = "What is missing on this machine, and how to get it. Exit status 1: no run can succeed."
    # A setting that is wrong is a finding, not a reason to say nothing.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--format", choices=["text", "json"], default="text")

    def handle(self, *args: Any, **options: Any) -> None:
        findings = doctor.examine()
        if options["format"] == "json":
            self.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2))
        else:
            for finding in findings:
                self.stdout.write(f"{MARKS[finding.level]} {finding.what}: {finding.text}")
                if finding.fix:
                    self.stdout.write(f"    {finding.fix}")
        if any(finding.level is doctor.Level.BROKEN for finding in findings):
            sys.exit(1)
