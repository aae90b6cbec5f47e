"""Which of many claims made by chance deserve belief."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from daemon.model import Finding

FALSE_SHARE = 0.01
"""Share of false ones among the claims believed. Judgement, see docs/en/reference/rules.md."""


def believed(
    findings: Iterable[Finding], sizes: Mapping[str, int], false_share: float = FALSE_SHARE
) -> list[Finding]:
    """Benjamini-Hochberg over the fleet, rule by rule; findings without a p-value pass.

    sizes : entity kind -> how many were tested. Order is kept. Source: Benjamini & Hochberg (1995).
    """
    findings = list(findings)
    tested: defaultdict[str, list[float]] = defaultdict(list)
    for finding in findings:
        if finding.p == finding.p:
            tested[finding.rule_id].append(finding.p)
    if not tested:
        return findings
    limits = {}
    for finding in findings:
        rule = finding.rule_id
        if rule in tested and rule not in limits:
            size = max(sizes.get(finding.entity.kind, 0), len(tested[rule]))
            limits[rule] = threshold(tested[rule], size, false_share)
    return [f for f in findings if f.p != f.p or f.p <= limits[f.rule_id]]


def threshold(p: Iterable[float], size: int, false_share: float) -> float:
    """The largest p that is still believed, -1 when none is. size : tests made, those that claimed nothing included.

    >>> threshold([0.0001, 0.004, 0.2], 10, 0.05)
    0.004
    >>> threshold([0.0001, 0.004, 0.2], 100_000, 0.05)
    -1.0
    """
    limit = -1.0
    for rank, value in enumerate(sorted(p), 1):
        if value <= false_share * rank / size:
            limit = value
    return limit
