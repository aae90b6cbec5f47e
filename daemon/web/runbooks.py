"""The words of the runbooks: for each alert what it means, what to look at, what to do."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

import yaml

from daemon.casefile import HYPOTHESES, RULED_OUT, TO_DO
from daemon.model import Verb
from daemon.patterns import PATTERNS
from daemon.plan import LADDER, Rung
from daemon.quantities import span
from daemon.rules import RULES
from daemon.web.chinese import ZH
from daemon.web.errors import Missing

LANGUAGES = ("en", "zh")
_FILE: Mapping[str, Any] = yaml.load(
    resources.files("daemon.web").joinpath("runbooks.yaml").read_text("utf-8"),
    Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader),
)
TEXTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = _FILE["alerts"]
"""Alert rule -> language -> title, meaning, steps."""
KIND_TEXTS: Mapping[str, Mapping[str, str]] = _FILE["kinds"]
"""Incident kind -> title, to_do, in Chinese."""
VERBS_ZH: Mapping[Verb, str] = {
    Verb.SCALE: "调整副本数",
    Verb.REROUTE: "调整路由权重",
    Verb.ISOLATE: "隔离",
    Verb.RELEASE: "放回",
    Verb.LEND: "出借",
    Verb.RECALL: "收回",
    Verb.NOTIFY: "通知",
    Verb.BALANCE: "调整区域份额",
    Verb.LIMIT: "限制准入",
    Verb.ROLLBACK: "回滚版本",
}
ON = {"engines": "the engines it touches", "node": "the node", "scope": "what the incident names"}
ON_ZH = {"engines": "受影响的引擎", "node": "该节点", "scope": "事件所指对象"}


def alert_name(kind: str) -> str:
    """What messages call an incident of this kind.

    >>> alert_name("gpu_lost")
    'TidewardenGpuLost'
    """
    return "Tidewarden" + "".join(part.capitalize() for part in kind.split("_"))


KIND_OF: Mapping[str, str] = {alert_name(kind): kind for kind in PATTERNS}
NAMES: tuple[str, ...] = (*TEXTS, *KIND_OF)


def runbook(name: str, language: str) -> dict[str, Any]:
    """One page: title, meaning, what fires it, what the daemon does by itself, what is ruled out, steps. Raises Missing."""
    zh = language == "zh"
    if name in TEXTS:
        words = TEXTS[name][language]
        return {
            "name": name,
            "language": language,
            "title": words["title"],
            "meaning": words["meaning"],
            "fires": [],
            "response": [],
            "rejected": [],
            "steps": list(words["steps"]),
            "kind": "",
        }
    kind = KIND_OF.get(name)
    if kind is None:
        raise Missing(f"no runbook {name!r}; /runbooks lists those there are")
    pattern, own = PATTERNS[kind], KIND_TEXTS[kind]

    def said(text: str) -> str:
        return ZH.get(text, text) if zh else text

    return {
        "name": name,
        "language": language,
        "title": own["title"] if zh else pattern.title,
        "meaning": "" if zh else _meaning(kind),
        "fires": [
            f"{rule.id} ({said(rule.severity.value)}): {said(rule.text)}"
            for rule in RULES.values()
            if rule.kind == kind
        ]
        + [_patience(kind, zh)],
        "response": _response(kind, zh),
        "rejected": [said(text) for text in RULED_OUT.get(kind, ())],
        "steps": [own["to_do"] if zh else TO_DO.get(kind, ""), *_commands(zh)],
        "kind": kind,
    }


def _meaning(kind: str) -> str:
    told = HYPOTHESES.get(kind, "")
    return f"{told}." if told and told != PATTERNS[kind].title else ""


def _patience(kind: str, zh: bool) -> str:
    pattern = PATTERNS[kind]
    hold, quiet = span(pattern.patience_s), span(pattern.quiet_s)
    if zh:
        opens = f"持续 {hold} 后开启" if pattern.patience_s else "立即开启"
        return f"{opens}；安静 {quiet} 后关闭。"
    opens = f"after {hold} of being claimed" if pattern.patience_s else "at once"
    return f"It opens {opens}, closes after {quiet} of quiet with fresh telemetry."


def _response(kind: str, zh: bool) -> list[str]:
    rungs = LADDER.get(kind, ())
    if not rungs:
        return ["通知人员，不做更改。" if zh else "People are told, nothing is changed."]
    return [
        f"{VERBS_ZH[r.verb]}{_amount(r)}：{ON_ZH[r.on]}，{_after(r, zh)}"
        if zh
        else f"{r.verb.value}{_amount(r)}: {ON[r.on]}, {_after(r, zh)}"
        for r in rungs
    ]


def _amount(rung: Rung) -> str:
    return f" {rung.amount:.0%}" if rung.verb is Verb.REROUTE else ""


def _after(rung: Rung, zh: bool) -> str:
    if not rung.after_s:
        return "立即" if zh else "at once"
    return f"{span(rung.after_s)} 后" if zh else f"after {span(rung.after_s)}"


def _commands(zh: bool) -> list[str]:
    if zh:
        return [
            "tidewarden incidents show ID：查看证据、已做动作与被拒原因。",
            "判定后执行 tidewarden incidents confirm ID 或 refute ID，规则的准确率由此得出。",
        ]
    return [
        "tidewarden incidents show ID: the evidence, what was done, what was refused and why.",
        "Once you know: tidewarden incidents confirm ID, or refute ID. Each rule's precision comes of it.",
    ]
