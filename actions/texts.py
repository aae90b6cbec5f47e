"""A message in plain words, English or Chinese."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from daemon.alerts import Alert, Deed, Message

PLACES = ("gpu", "port", "engine", "node", "rack", "leaf", "pool", "version", "region")
WORDS: Mapping[str, Mapping[str, str]] = {
    "en": {
        "critical": "CRITICAL",
        "warning": "WARNING",
        "info": "INFO",
        "resolved": "RESOLVED",
        "flapping": "FLAPPING",
        "test": "TEST",
        "heartbeat": "HEARTBEAT",
        "repeat": "still firing",
        "escalation": "nobody has acknowledged it",
        "again": "This may be a repeat: the last try got no answer.",
        "where": "Where",
        "since": "Since",
        "ended": "Over since",
        "more": "and {n} more",
        "firing": "{n} firing",
        "over": "{n} resolved",
        "done": "Done",
        "failed": "Tried",
        "awaiting": "Waits for your approval",
        "details": "Details",
        "runbook": "Runbook",
        "ack": "Acknowledge",
        "approve": "Approve",
        "flap_note": "It comes and goes. Nothing more is said until it has been steady for half an hour.",
        "test_title": "Test message of tidewarden for channel {channel}",
        "test_text": "Nothing has happened. If you can read this, the channel works.",
        "heartbeat_title": "tidewarden is alive",
        "heartbeat_text": "Sent regularly. When it stops, look at the daemon and at the way between.",
        "digest": "{n} groups of alerts",
        ": ": ": ",
        ", ": ", ",
    },
    "zh": {
        "critical": "严重",
        "warning": "警告",
        "info": "提示",
        "resolved": "已恢复",
        "flapping": "反复波动",
        "test": "测试",
        "heartbeat": "心跳",
        "repeat": "仍在持续",
        "escalation": "尚无人确认",
        "again": "可能是重复消息：上次发送没有收到应答。",
        "where": "位置",
        "since": "开始",
        "ended": "恢复于",
        "more": "另有 {n} 条",
        "firing": "{n} 条触发中",
        "over": "{n} 条已恢复",
        "done": "已执行",
        "failed": "已尝试",
        "awaiting": "等待您的批准",
        "details": "详情",
        "runbook": "处置手册",
        "ack": "确认",
        "approve": "批准",
        "flap_note": "反复触发与恢复；稳定半小时之前不再通知。",
        "test_title": "tidewarden 测试消息，渠道 {channel}",
        "test_text": "没有发生任何事件。能看到此消息说明渠道可用。",
        "heartbeat_title": "tidewarden 运行正常",
        "heartbeat_text": "定期发送。一旦停止，请检查守护进程及其间的链路。",
        "digest": "{n} 组告警",
        ": ": "：",
        ", ": "，",
    },
}


@dataclass(frozen=True, slots=True)
class Text:
    """title : one line. lines : (label, text), a label of "" is a paragraph. links : (label, URL). mood : colour name."""

    title: str
    lines: tuple[tuple[str, str], ...]
    links: tuple[tuple[str, str], ...]
    mood: str


def text_of(message: Message, language: str, zone: str, again: bool = False) -> Text:
    """The message as a title, labelled lines and links. again : it may have arrived before, which is said."""
    words = WORDS[language]
    clock = Clock(zone)
    lines: list[tuple[str, str]] = [("", words["again"])] if again else []
    if message.kind in ("test", "heartbeat"):
        lines.append(("", words[f"{message.kind}_text"]))
    for alert in message.alerts:
        lines += _lines(alert, words, language, clock, is_alone=len(message.alerts) == 1)
    hidden = message.firing + message.resolved - len(message.alerts)
    if hidden > 0:
        lines.append(("", words["more"].format(n=hidden)))
    if message.kind == "flapping":
        lines.append(("", words["flap_note"]))
    lines += [_deed(deed, words, language, clock) for deed in message.deeds]
    return Text(
        title=_title(message, words, language),
        lines=tuple(lines),
        links=tuple(_links(message, words)),
        mood=mood(message),
    )


def mood(message: Message) -> str:
    """ "good", "info", "warning" or "critical"."""
    return "good" if message.status == "resolved" else message.severity.value


def plain(text: Text) -> str:
    """As text with no markup at all."""
    rows = [text.title, ""]
    rows += [f"{label}: {line}" if label else line for label, line in text.lines]
    return "\n".join([*rows, "", *(f"{label}: {url}" for label, url in text.links)]).rstrip() + "\n"


def fit(rows: Sequence[str], limit: int, more: str) -> str:
    """Whole rows joined by newlines within `limit` bytes of UTF-8; what is left out is counted by `more` ("{n}").

    >>> fit(["one", "two", "three"], 12, "+{n}")
    'one\\ntwo\\n+1'
    """
    text = "\n".join(rows)
    if len(text.encode()) <= limit:
        return text
    for kept in range(len(rows) - 1, 0, -1):
        text = "\n".join([*rows[:kept], more.format(n=len(rows) - kept)])
        if len(text.encode()) <= limit:
            return text
    return rows[0].encode()[:limit].decode(errors="ignore")


def _title(message: Message, words: Mapping[str, str], language: str) -> str:
    cluster = message.labels.get("cluster", "")
    tail = f" ({cluster})" if cluster and language == "en" else (f"（{cluster}）" if cluster else "")
    if message.kind in ("test", "heartbeat"):
        said = words[f"{message.kind}_title"].format(channel=message.labels.get("channel", ""))
        return f"[{words[message.kind]}] {said}{tail}"
    state = "resolved" if message.status == "resolved" else message.severity.value
    marks = [words[state]]
    marks += [words[message.kind]] if message.kind in ("flapping", "repeat", "escalation") else []
    total = message.firing + message.resolved
    if message.kind == "digest":
        said = words["digest"].format(n=message.labels.get("groups", ""))
    else:
        said = _summary(message.alerts[0], language)
    if total > 1:
        counts = [words["firing"].format(n=message.firing)] if message.firing else []
        counts += [words["over"].format(n=message.resolved)] if message.resolved else []
        said += words[": "] + words[", "].join(counts) if message.kind == "digest" else ""
        said += "" if message.kind == "digest" else words[", "] + words[", "].join(counts)
    return f"[{words[', '].join(marks)}] {said}{tail}"


def _summary(alert: Alert, language: str) -> str:
    said = alert.words.get(language) or alert.words.get("en") or alert.annotations
    return said.get("summary") or alert.labels.get("alertname", "")


def _lines(
    alert: Alert, words: Mapping[str, str], language: str, clock: Clock, is_alone: bool
) -> list[tuple[str, str]]:
    said = alert.words.get(language) or alert.words.get("en") or alert.annotations
    where = words[", "].join(f"{kind} {alert.labels[kind]}" for kind in PLACES if alert.labels.get(kind))
    is_over = alert.status == "resolved"
    when = f"{words['ended']} {clock(alert.ended)}" if is_over else f"{words['since']} {clock(alert.started)}"
    if not is_alone:
        state = words["resolved"] if is_over else words[alert.severity.value]
        return [("", f"[{state}] {_summary(alert, language)}{words[', ']}{when}")]
    lines = [(words["where"], where)] if where else []
    lines.append((words["since"], clock(alert.started)))
    if is_over:
        lines.append((words["ended"], clock(alert.ended)))
    for row in said.get("description", "").splitlines():
        label, colon, rest = row.partition(words[": "].rstrip())
        is_labelled = bool(colon) and len(label) <= 12 and bool(rest.strip())
        lines.append((label, rest.strip()) if is_labelled else ("", row))
    return lines


def _deed(deed: Deed, words: Mapping[str, str], language: str, clock: Clock) -> tuple[str, str]:
    what = deed.what.get(language) or deed.what["en"]
    if deed.result == "awaiting":
        return words["awaiting"], what
    if deed.result == "done":
        return words["done"], f"{what}{words[', ']}{clock(deed.at)}"
    return words["failed"], f"{what}{words[', ']}{deed.result}{words[', ']}{clock(deed.at)}"


def _links(message: Message, words: Mapping[str, str]) -> list[tuple[str, str]]:
    first = message.alerts[0] if message.alerts else None
    links = []
    if first is not None and first.url:
        links.append((words["details"], first.url))
    if first is not None and first.annotations.get("runbook_url"):
        links.append((words["runbook"], first.annotations["runbook_url"]))
    links += [(words.get(label, label), url) for label, url in message.links.items()]
    links += [(words["approve"], deed.url) for deed in message.deeds if deed.url]
    return links


class Clock:
    """Seconds since the epoch as a time in one zone."""

    def __init__(self, zone: str) -> None:
        self._zone = ZoneInfo(zone)

    def __call__(self, at: float) -> str:
        return datetime.fromtimestamp(at, self._zone).strftime("%Y-%m-%d %H:%M:%S %Z")
