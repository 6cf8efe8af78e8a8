"""The package index that this machine's pip is set up for: mirrors and proxies keep working."""

import os
import ssl
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PYPI = "https://pypi.org/simple"
SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
)
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


@dataclass(frozen=True)
class PackageIndex:
    """Only addresses: folders of this machine are of no use inside an image."""

    index_url: str
    extra_index_urls: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    timeout_seconds: str = ""
    ca_bundle: Path | None = None

    def pip_conf(self) -> str:
        """For the pip inside an image."""
        lines = ["[global]", f"index-url = {self.index_url}"]
        for name, values in (
            ("extra-index-url", self.extra_index_urls),
            ("trusted-host", self.trusted_hosts),
        ):
            if values:
                lines.append("\n    ".join([f"{name} =", *values]))
        if self.timeout_seconds:
            lines.append(f"timeout = {self.timeout_seconds}")
        return "\n".join(lines) + "\n"

    def ssl_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca_bundle) if self.ca_bundle else None)


def configured() -> PackageIndex:
    """As pip's files and variables say. Takes about 0.3 s: it asks pip itself."""
    options = _pip_options()
    return PackageIndex(
        index_url=options.get("index-url", PYPI).rstrip("/"),
        extra_index_urls=tuple(
            url for url in options.get("extra-index-url", "").split() if url.startswith("http")
        ),
        trusted_hosts=tuple(options.get("trusted-host", "").split()),
        timeout_seconds=options.get("timeout", options.get("default-timeout", "")),
        ca_bundle=_ca_bundle(options.get("cert")),
    )


def proxies() -> dict[str, str]:
    return {name: os.environ[name] for name in PROXY_VARIABLES if os.environ.get(name)}


def _pip_options() -> dict[str, str]:
    """Options by name; a variable wins over a file, as in pip. Empty where there is no pip."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    ).stdout
    found: dict[str, dict[str, str]] = {}
    for line in listed.splitlines():
        name, is_option, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if is_option and section in (":env:", "global", "install", "download"):
            # Several values of a file are printed as one string with \n in it.
            text = value.strip("'\"").replace("\\n", " ").strip()
            found.setdefault(section, {})[option] = text
    options: dict[str, str] = {}
    for section in ("global", "download", "install", ":env:"):
        options |= found.get(section, {})
    # Where pip is missing its variables still count.
    if url := os.environ.get("PIP_INDEX_URL"):
        options["index-url"] = url
    return options


def _ca_bundle(cert: str | None) -> Path | None:
    candidates = [
        os.environ.get("PIP_CERT"),
        cert,
        os.environ.get("SSL_CERT_FILE"),
        os.environ.get("REQUESTS_CA_BUNDLE"),
        ssl.get_default_verify_paths().cafile,
        *SYSTEM_BUNDLES,
    ]
    return next((Path(path) for path in candidates if path and Path(path).is_file()), None)
