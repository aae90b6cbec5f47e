#!/usr/bin/env python3
"""Scales services of Docker Compose: a program for tidewarden's command backend.

Usage: compose_scale.py PROJECT_FOLDER POOL=SERVICE ...

A container that is to go gets SIGTERM, then has `stop_grace_period` of its service to end its requests.
"""

import json
import subprocess
import sys

EX_TEMPFAIL = 75


def compose(folder: str, *arguments: str) -> str:
    command = ["docker", "compose", "--project-directory", folder, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        print(ran.stderr.strip(), file=sys.stderr)
        # Without its daemon nothing has happened, and it may come back.
        sys.exit(EX_TEMPFAIL if "daemon" in ran.stderr else 1)
    return ran.stdout


def running(folder: str, service: str) -> int:
    """Containers of a service that run. One JSON object a line, or before Compose 2.21 one list."""
    text = compose(folder, "ps", "--status", "running", "--format", "json", service).strip()
    if not text:
        return 0
    return len(json.loads(text)) if text.startswith("[") else len(text.splitlines())


def main() -> None:
    folder, services = sys.argv[1], dict(pair.split("=", 1) for pair in sys.argv[2:])
    asked = json.load(sys.stdin)
    step = asked["step"]
    if step["verb"] != "scale" or step["target"]["name"] not in services:
        sys.exit(
            f"compose_scale.py scales {', '.join(services)}, not {step['verb']} {step['target']['name']}"
        )
    service, wanted = services[step["target"]["name"]], int(step["amount"])
    if asked["call"] == "observe":
        print(json.dumps({"replicas": running(folder, service)}))
    elif running(folder, service) == wanted:
        print(json.dumps({"detail": f"{service} has {wanted} containers"}))
    else:
        compose(folder, "up", "-d", "--no-recreate", "--no-deps", "--scale", f"{service}={wanted}", service)
        print(json.dumps({"detail": f"{service} set to {wanted} containers"}))


if __name__ == "__main__":
    main()
