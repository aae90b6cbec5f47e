"""Settings of who is told what, and through which channel."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from daemon.model import Severity
from daemon.units import Tree


class WebhookChannel(Tree):
    name: str
    kind: Literal["webhook", "alertmanager"]
    urls: list[str] = []
    url_file: str = ""
    """A file with one URL a line: URLs are secrets."""
    secret_file: str = ""
    """Key of the HMAC signature of a webhook."""
    severity: Severity = Severity.WARNING
    """Least severity that is sent."""

    @model_validator(mode="after")
    def _addressed(self) -> WebhookChannel:
        if bool(self.urls) == bool(self.url_file):
            raise ValueError("give either urls or url_file")
        return self


class Notify(Tree):
    external_url: str = ""
    """Where people reach the web pages; links in messages start with it."""
    channels: list[WebhookChannel] = []
