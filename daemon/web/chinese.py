"""The Chinese words of pages and runbooks, by the English ones."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources

import yaml

ZH: Mapping[str, str] = yaml.load(
    resources.files("daemon.web").joinpath("zh.yaml").read_text("utf-8"),
    Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader),
)
"""With the same {names}. What is missing stays English."""
