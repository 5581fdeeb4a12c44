"""Check what cannot be run here: pins, Dockerfile, docker-compose.yml. Exits 1 and prints every problem."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent


def pin_problems(text: str, *, compiled: bool) -> Iterator[str]:
    """What is wrong with a requirements file; a compiled one carries a hash for every pin."""
    # Continuation lines belong to the requirement they continue.
    for line in text.replace("\\\n", " ").splitlines():
        words = line.partition("#")[0].split()
        if not words:
            continue
        if "://" in line:
            yield f"names an address: {words[0]}"
        if words[0].startswith("-") and words[0] != "-r":
            yield f"sets an option: {words[0]}"
        elif compiled and ("==" not in words[0] or not any(word.startswith("--hash=") for word in words)):
            yield f"is not a pin with hashes: {words[0]}"


def dockerfile_problems(text: str, root: Path) -> Iterator[str]:
    """What is wrong with a Dockerfile: a moving or missing base tag, a missing source, a root process."""
    stages: set[str] = set()
    user = None
    for line in text.replace("\\\n", " ").splitlines():
        match line.split():
            case ["FROM", image, *rest]:
                user = None
                stages |= {rest[1]} if len(rest) == 2 else set()
                if image not in stages and (":" not in image or image.endswith(":latest")):
                    yield f"base {image} is not pinned to a tag"
            case ["COPY", *words]:
                yield from _copy_problems(words, stages, root)
            case ["USER", name]:
                user = name
    if user in (None, "root", "0"):
        yield "the image runs as root"


def _copy_problems(words: list[str], stages: set[str], root: Path) -> Iterator[str]:
    flags = [word for word in words if word.startswith("--")]
    stage = next((flag.removeprefix("--from=") for flag in flags if flag.startswith("--from=")), None)
    if stage is not None:
        if stage not in stages:
            yield f"COPY from an unknown stage {stage}"
        return
    for source in words[len(flags) : -1]:
        if not (root / source).exists():
            yield f"COPY of {source}, which does not exist"


def compose_problems(compose: dict[str, Any], root: Path) -> Iterator[str]:
    """What is wrong with a parsed docker-compose.yml."""
    services = compose["services"]
    for name, service in services.items():
        for problem in _service_problems(service, compose, root):
            yield f"{name}: {problem}"
        for other in set(service.get("depends_on", ())) - set(services):
            yield f"{name}: depends on {other}, which does not exist"


def _service_problems(service: dict[str, Any], compose: dict[str, Any], root: Path) -> Iterator[str]:
    runs_to_its_end = service.get("restart") == "no"
    if not runs_to_its_end and not service.get("healthcheck", {}).get("test"):
        yield "has no healthcheck"
    for port in service.get("ports", ()):
        if not re.fullmatch(r"127\.0\.0\.1:\d+:\d+", str(port)):
            yield f"publishes {port} beyond loopback"
    for secret in service.get("secrets", ()):
        if secret not in compose.get("secrets", {}):
            yield f"uses the secret {secret}, which is not declared"
    for volume in service.get("volumes", ()):
        if volume.partition(":")[0] not in compose.get("volumes", {}):
            yield f"mounts {volume}, which is not a declared volume"
    for variable, value in service.get("environment", {}).items():
        if re.search(r"PASSWORD$|SECRETS?$|_KEYS?$", variable) or re.search(r"://[^/]*:[^/]*@", str(value)):
            yield f"holds a secret in {variable} rather than in a file"
    if "build" in service and not (root / service["build"] / "Dockerfile").exists():
        yield "builds from a folder without a Dockerfile"
    if "build" not in service and ":" not in service["image"]:
        yield f"image {service['image']} is not pinned to a tag"


def problems(root: Path) -> Iterator[str]:
    """Every problem of the checkout at `root`."""
    for path in sorted((root / "requirements").iterdir()):
        for problem in pin_problems(path.read_text(), compiled=path.suffix == ".txt"):
            yield f"{path.relative_to(root)} {problem}"
    for problem in dockerfile_problems((root / "Dockerfile").read_text(), root):
        yield f"Dockerfile: {problem}"
    for problem in compose_problems(yaml.safe_load((root / "docker-compose.yml").read_text()), root):
        yield f"docker-compose.yml: {problem}"


def main() -> int:
    found = list(problems(ROOT))
    for problem in found:
        print(problem, file=sys.stderr)
    if not found:
        print("static files: pins, Dockerfile and docker-compose.yml are in order")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
