"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from daemon.cli.client import DEFAULT_URL, Client
from daemon.cli.show import FORMATS
from daemon.cli.trouble import Trouble

F = TypeVar("F", bound=Callable[..., Any])

CONFIG = Path("/etc/tidewarden/config.yaml")


def duration(value: str | float) -> float:
    """Seconds of "30m", "2h"; a bare number is seconds. Raises click.BadParameter."""
    from daemon.units import duration_s

    try:
        return float(value)
    except ValueError:
        pass
    try:
        return duration_s(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


config_file = click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    envvar="TIDEWARDEN_CONFIG",
    help=f"Configuration file (default: $TIDEWARDEN_CONFIG, else {CONFIG}).",
)
output = click.option(
    "-o", "--output", "form", type=click.Choice(FORMATS), default="table", help="How to print."
)


def talks(function: F) -> F:
    """Options of a command that asks the running daemon; it gets `client`."""

    @click.option(
        "--url",
        envvar="TIDEWARDEN_URL",
        default=None,
        help=f"Address of the daemon (default: {DEFAULT_URL}).",
    )
    @click.option(
        "--token-file", envvar="TIDEWARDEN_TOKEN_FILE", default=None, help="File with the token for changes."
    )
    @config_file
    @click.pass_context
    def wrapped(
        ctx: click.Context, /, url: str | None, token_file: str | None, config: Path | None, **rest: Any
    ) -> Any:
        return ctx.invoke(function, client=client_of(url, token_file, config), **rest)

    wrapped.__name__, wrapped.__doc__ = function.__name__, function.__doc__
    # Options declared below this one stay in force.
    wrapped.__click_params__ += getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    return wrapped  # type: ignore[return-value]


def client_of(url: str | None, token_file: str | None, config: Path | None) -> Client:
    """Where the daemon is: as told, as the configuration says, else the default. Raises Trouble, ConfigError's text."""
    found_url, found_token = url or DEFAULT_URL, token_file or ""
    if config is None and (url is None or token_file is None) and CONFIG.is_file():
        config = CONFIG
    if config is not None and (url is None or token_file is None):
        web = _web_of(config)
        found_url = url or web[0]
        found_token = token_file or web[1]
    return Client(found_url.rstrip("/"), found_token)


def _web_of(config: Path) -> tuple[str, str]:
    """URL and token file as the web section says; read alone, so that another user's secrets elsewhere do not matter."""
    import yaml
    from pydantic import ValidationError

    from daemon.settings import Web

    try:
        tree = yaml.safe_load(config.read_text("utf-8")) or {}
        web = Web.model_validate(tree.get("web") or {})
    except OSError as error:
        raise Trouble(f"{config}: {error.strerror}; give --url instead", 78) from error
    except (yaml.YAMLError, ValidationError, AttributeError) as error:
        raise Trouble(f"{config} is not usable; see `tidewarden config check -c {config}`", 78) from error
    host, _, port = web.listen.rpartition(":")
    if host in ("", "0.0.0.0", "[::]"):
        host = "127.0.0.1"
    strongest = sorted(web.tokens, key=lambda t: ("admin", "approve", "read").index(t.scope))
    return f"http://{host}:{port}", web.token_file or (strongest[0].token_file if strongest else "")


def config_of(config: Path | None) -> Path:
    """The file to use. Raises Trouble (exit 78) when none was given and none is in its place."""
    if config is not None:
        return config
    if CONFIG.is_file():
        return CONFIG
    raise Trouble(
        f"no configuration: give -c FILE, or put one at {CONFIG} (tidewarden config init writes one)", 78
    )
