"""The kinds of receivers that are reached by HTTP."""

from __future__ import annotations

from collections.abc import Mapping

from actions.channel import ChannelKind
from actions.channels.alertmanager import ALERTMANAGER
from actions.channels.dingtalk import DINGTALK
from actions.channels.feishu import FEISHU
from actions.channels.grafana import GRAFANA
from actions.channels.pagerduty import PAGERDUTY
from actions.channels.slack import SLACK
from actions.channels.teams import TEAMS
from actions.channels.webhook import WEBHOOK
from actions.channels.wecom import WECOM
from actions.wire import Vendor

VENDORS: Mapping[ChannelKind, Vendor] = {
    ChannelKind.WEBHOOK: WEBHOOK,
    ChannelKind.ALERTMANAGER: ALERTMANAGER,
    ChannelKind.PAGERDUTY: PAGERDUTY,
    ChannelKind.SLACK: SLACK,
    ChannelKind.TEAMS: TEAMS,
    ChannelKind.FEISHU: FEISHU,
    ChannelKind.DINGTALK: DINGTALK,
    ChannelKind.WECOM: WECOM,
    ChannelKind.GRAFANA: GRAFANA,
}
