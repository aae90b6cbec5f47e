"""Telling on-call: a notify step rendered in words and handed to the desk."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from actions.desk import Desk
from actions.gojson import alert_name
from daemon.alerts import Alert
from daemon.model import NAN, Hopeless, Outcome, Result, Severity, Step

LABEL_ARGS = ("severity", "cluster", "kind", "family", "pool", "node", "rack", "leaf", "region")
"""Args that become labels. All others become annotations: a label that changes makes a new alert every time."""
FACT_ARGS = ("evidence", "sure")
"""Args that are said again in the description."""
NOT_ANNOTATIONS = {*LABEL_ARGS, *FACT_ARGS, "status", "scope", "scope_kind", "starts_at", "ends_at", "url"}


@dataclass(frozen=True, slots=True)
class KindWords:
    """An incident's kind in one language: what it is, what the daemon does by itself, what is left to people."""

    title: str
    response: str = ""
    to_do: str = ""


def no_words(kind: str, language: str) -> KindWords | None:
    return None


@dataclass(slots=True)
class Notify:
    """Renders a notify step and hands it to the desk; `actions.postman.Postman` carries the letters out.

    step.args : status ("firing" or "resolved"), kind, scope ("gpu n03/gpu5", or its name beside scope_kind),
    severity, summary are needed; description, evidence (a line each), sure (0..1), cluster, family, pool, incident,
    starts_at (seconds since the epoch), url, runbook_url, dashboard_url and any other are optional.
    words : (kind, language) -> its words where it has any. pages : URL of the web pages, "" = no links. said : a line of evidence -> the
    same in Chinese.
    """

    desk: Desk
    words: Callable[[str, str], KindWords | None] = no_words
    pages: str = ""
    said: Callable[[str], str] = str

    async def apply(self, step: Step) -> Outcome:
        if not self.desk.channels:
            raise Hopeless("no notification channel is configured; add one under notify.channels")
        _check(step)
        self.desk.tell(self._alert(step), step.id)
        return Outcome(step, Result.DONE, f"handed to {len(self.desk.channels)} channels")

    async def verify(self, step: Step) -> bool:
        """The desk remembers it. Whether letters of it arrived is the outbox's own record."""
        return self.desk.knows(step.id, self._alert(step).key)

    def _alert(self, step: Step) -> Alert:
        return alert_of(step, self.desk.clock(), self.words, self.pages, self.said)


def alert_of(
    step: Step,
    at: float,
    words: Callable[[str, str], KindWords | None] = no_words,
    pages: str = "",
    said: Callable[[str], str] = str,
) -> Alert:
    """What a notify step says, in every language there are words for."""
    args = {"incident": step.incident, **dict(step.args)}
    scope_kind, scope_name = _scope(args)
    is_over = args["status"] == "resolved"
    annotations = {k: v for k, v in sorted(args.items()) if k not in NOT_ANNOTATIONS and v}
    url = args.get("url", "")
    if pages and args["incident"]:
        url = url or f"{pages}/incidents/{args['incident']}"
        annotations.setdefault("runbook_url", f"{pages}/runbooks/{alert_name(args['kind'])}")
    told: tuple[str, ...] = ("summary", "description")
    texts = {"en": {name: annotations[name] for name in told if name in annotations}}
    chinese = words(args["kind"], "zh")
    if chinese is not None:
        texts["zh"] = in_chinese(args, f"{scope_kind} {scope_name}", chinese, said)
    return Alert(
        at=at,
        key=" / ".join((args.get("cluster", ""), args["kind"], scope_kind, scope_name)),
        status=args["status"],
        severity=Severity(args["severity"]),
        labels=_labels(args, scope_kind, scope_name),
        annotations=dict(sorted(annotations.items())),
        started=float(args.get("starts_at") or at),
        ended=float(args.get("ends_at") or at) if is_over else NAN,
        url=url,
        words=texts,
        extra={
            "version": 1,
            "step": step.id,
            "incident": args["incident"],
            "reason": step.reason,
            "scope": {"kind": scope_kind, "name": scope_name},
        },
    )


def in_chinese(
    args: Mapping[str, str], scope: str, words: KindWords, said: Callable[[str], str]
) -> dict[str, str]:
    """Summary and description."""
    sure = f"（把握 {float(args['sure']):.0%}）" if args.get("sure") else ""
    rows = [f"判断：{words.title}{sure}"]
    rows += [f"证据：{said(row)}" for row in args.get("evidence", "").splitlines()]
    rows += [f"处置：{words.response}"] if words.response else []
    rows += [f"待办：{words.to_do}"] if words.to_do else []
    return {"summary": f"{words.title}：{scope}", "description": "\n".join(rows)}


def _check(step: Step) -> None:
    """Raises Hopeless naming the first arg that is missing or has a value nobody knows."""
    for key, allowed in (
        ("status", ("firing", "resolved")),
        ("severity", tuple(Severity)),
        ("kind", ()),
        ("scope", ()),
        ("summary", ()),
    ):
        found = step.arg(key)
        if not found or (allowed and found not in allowed):
            wanted = " or ".join(allowed) or "any text"
            raise Hopeless(f"notify step {step.id}: args {key} is {found!r}, allowed: {wanted}")
    for key in ("starts_at", "ends_at"):
        try:
            is_time = math.isfinite(float(step.arg(key) or "0"))
        except ValueError:
            is_time = False
        if not is_time:
            raise Hopeless(
                f"notify step {step.id}: args {key} is {step.arg(key)!r}, allowed: seconds since the epoch"
            )


def _scope(args: Mapping[str, str]) -> tuple[str, str]:
    """Kind and name of what is to blame, from scope_kind and scope or from scope alone."""
    if args.get("scope_kind"):
        return args["scope_kind"], args["scope"]
    kind, _, name = args["scope"].partition(" ")
    return (kind, name) if name else ("scope", kind)


def _labels(args: Mapping[str, str], scope_kind: str, scope_name: str) -> dict[str, str]:
    """Alert name and the parts of the scope, so that silences and routes can match the host."""
    labels = {key: args[key] for key in LABEL_ARGS if args.get(key)}
    labels["alertname"] = alert_name(args["kind"])
    labels[scope_kind] = scope_name
    if scope_kind in ("gpu", "port") and "/" in scope_name:
        labels["node"] = scope_name.partition("/")[0]
    return dict(sorted(labels.items()))
