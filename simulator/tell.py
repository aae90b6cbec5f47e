"""What a demo prints: one line an event, with numbers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from daemon.casefile import measurements
from daemon.clock import Clock
from daemon.loop import News
from daemon.model import Decision, Forecast, Outcome, Result, Verb

TIDAL = (Verb.LEND, Verb.RECALL)


def teller(say: Callable[[str], None], now: Clock) -> Callable[[News], None]:
    """A listener that says DETECT, ACT, VERIFY, FORECAST and TIDE lines."""

    def listen(news: News) -> None:
        for word, at, text in lines_of(news, now()):
            clock = datetime.fromtimestamp(at, UTC).strftime("%a %H:%M:%S")
            say(f"{clock}Z  {word:<8} {text}")

    return listen


def lines_of(news: News, now: float) -> list[tuple[str, float, str]]:
    """(word, at, text) of one piece of news."""
    if isinstance(news, Decision):
        return _decision(news)
    if isinstance(news, Outcome):
        return _outcome(news)
    return [("FORECAST", now, _forecast(news))]


def _decision(decision: Decision) -> list[tuple[str, float, str]]:
    lines = []
    for incident in decision.opened:
        first = incident.findings[0]
        why = (first.text or measurements(first) or "claimed").replace("\n", " ")
        lines.append(("DETECT", decision.at, f"{incident.id} {incident.kind} on {incident.scope}: {why}"))
    for incident in decision.closed:
        took = decision.at - incident.opened
        lines.append(
            (
                "CLOSED",
                decision.at,
                f"{incident.id} {incident.kind} on {incident.scope} after {took:.0f} s: {incident.cause}",
            )
        )
    for verdict in decision.verdicts:
        step = verdict.step
        if step.verb is Verb.NOTIFY:
            continue
        word = "TIDE" if step.verb in TIDAL else "ACT"
        if verdict.allowed:
            lines.append((word, decision.at, f"{step.id} {step.verb} {step.target}: {step.reason}"))
        else:
            lines.append(
                ("HELD", decision.at, f"{step.verb} {step.target} ({verdict.reason}): {verdict.detail}")
            )
    return lines


def _outcome(outcome: Outcome) -> list[tuple[str, float, str]]:
    step = outcome.step
    if step.verb is Verb.NOTIFY:
        return []
    word = "VERIFY" if outcome.result is Result.DONE else outcome.result.value.upper()
    return [
        (
            word,
            outcome.at,
            f"{step.id} {step.verb} {step.target} after {outcome.took_s:.0f} s: {outcome.detail}",
        )
    ]


def _forecast(forecast: Forecast) -> str:
    middle, high = forecast.at_level(0.5), forecast.at_level(0.9)
    peak = int(high[: int(72 * 3600 / forecast.step_s)].argmax())
    when = datetime.fromtimestamp(forecast.at + peak * forecast.step_s, UTC).strftime("%a %H:00Z")
    skill = f", error {forecast.skill:.2f} of weekly naive" if forecast.skill == forecast.skill else ""
    return f"{forecast.target}: peak of the next 72 h {middle[peak]:.0f} requests in flight (1 in 10: {high[peak]:.0f}) on {when}{skill}"
