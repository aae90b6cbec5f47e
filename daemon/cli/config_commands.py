"""`tidewarden config`: check, show, write a configuration."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import indent
from typing import Any

import click

from daemon.cli import show
from daemon.cli.options import config_file, config_of
from daemon.cli.trouble import Trouble

EXIT_CONFIG = 78


@click.group()
def config() -> None:
    """Check, show or write a configuration."""


@config.command("check")
@config_file
@click.option("--live", is_flag=True, help="Ask the systems behind the backends too; changes nothing.")
@click.pass_obj
def config_check(roots: Any, config: Path | None, live: bool) -> int:
    """List every problem with file and line; exit 78 when there is one, 1 when a backend would not work."""
    path = config_of(config)
    settings = _load(path)
    pools = len(settings.pools)
    print(f"{path}: ok, {settings.mode.value} mode, {pools} pool{'s' * (pools != 1)}")
    if not live:
        return 0
    with show.busy("asking the backends"):
        found = roots.look(settings)
    return _check_live(found)


def _check_live(found: Mapping[str, tuple[str, list[Any]]]) -> int:
    """Print what every backend saw, and the least rights it needs. Returns 1 when something is wrong."""
    if not found:
        print("no backend that can be asked is configured; add one under backends")
    for name, (rights, checks) in found.items():
        for check in checks:
            fix = f"; {check.fix}" if check.fix else ""
            print(f"{'ok  ' if check.is_right else 'FAIL'} {name}: {check.what}: {check.found}{fix}")
        print(f"{name}: least rights needed\n{indent(rights, '    ')}")
    return int(any(not check.is_right for _, checks in found.values() for check in checks))


@config.command("show")
@config_file
@click.option("--resolved", is_flag=True, help="With every default and variable filled in.")
@click.option("-o", "--output", "form", type=click.Choice(("yaml", "json")), default="yaml")
def config_show(config: Path | None, resolved: bool, form: str) -> None:
    """Print the configuration with secrets hidden."""
    from daemon.config import given, masked

    settings = _load(config_of(config))
    tree = masked(settings)
    if not resolved:
        tree = given(tree, settings.model_dump(mode="json", exclude_unset=True))
    show.as_data(tree, form)


@config.command("init")
@click.option(
    "--prometheus", default="", metavar="URL", help="Ask this Prometheus for exporters, labels and models."
)
@click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Write here (default: stdout).",
)
@click.option(
    "--channel",
    type=click.Choice(
        ["alertmanager", "webhook", "pagerduty", "slack", "teams", "feishu", "dingtalk", "wecom"]
    ),
    default=None,
    help="Tell people through this kind of channel.",
)
@click.option(
    "--channel-file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    default=None,
    help="File with the channel's URL (pagerduty: its routing key); URLs are secrets.",
)
@click.option(
    "--language", type=click.Choice(["en", "zh"]), default="en", show_default=True, help="Of messages."
)
@click.option("--force", is_flag=True, help="Overwrite the file.")
def config_init(
    prometheus: str,
    path: Path | None,
    channel: str | None,
    channel_file: Path | None,
    language: str,
    force: bool,
) -> None:
    """Write a commented configuration that observes and changes nothing."""
    from daemon.cli import newconfig

    if (channel is None) != (channel_file is None):
        raise click.UsageError("give --channel and --channel-file together, or neither")
    told = (
        newconfig.Told(channel, str(channel_file.absolute()), language) if channel and channel_file else None
    )
    with show.busy("asking Prometheus"):
        found = newconfig.ask_prometheus(prometheus) if prometheus else None
    text = newconfig.render(found, told)
    if path is None:
        print(text, end="")
        return
    if path.exists() and not force:
        raise Trouble(f"{path} exists; give another --file, or --force to overwrite it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Trouble(f"{path}: {error.strerror}; choose a --file you may write") from error
    print(f"wrote {path}; next: tidewarden doctor -c {path}, then tidewarden run -c {path}", file=sys.stderr)


@config.command("schema")
def config_schema() -> None:
    """Print the JSON schema of the configuration, for editors."""
    from daemon.settings import Settings

    print(json.dumps(Settings.model_json_schema(), ensure_ascii=False, indent=1))


def _load(path: Path) -> Any:
    from daemon.config import ConfigError, load

    try:
        return load(path)
    except ConfigError as error:
        count = len(error.problems)
        print(error, file=sys.stderr)
        raise Trouble(f"{count} problem{'s' * (count > 1)} in {path}", EXIT_CONFIG) from error
