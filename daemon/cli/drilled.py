"""Tells how a drill went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from daemon.cli import Roots, show


def scenario_names(roots: Roots) -> list[str]:
    """The scenarios there are, as the drill itself names them when asked for one that does not exist."""
    try:
        roots.drill(scenario="?", seed=0)
    except ValueError as error:
        return str(error).rpartition("there are: ")[2].split(", ")
    return []


def tell(result: Mapping[str, Any]) -> None:
    """One row for each injected fault, then the sums."""
    print(
        f"{result['scenario']}, seed {result['seed']}: {result['hours']:g} h of {result['gpus']} GPUs "
        f"in {result['wall_s']:.1f} s"
    )
    if "story" in result:
        return _story(result)
    columns = [
        ("FAULT", show.text_of("kind")),
        ("ON", show.text_of("entity")),
        ("AT", lambda r: "+" + show.span(r["at_s"])),
        ("FOUND ON", lambda r: r["found_entity"] or "not found"),
        ("AFTER", show.span_of("delay_s")),
        ("DONE", lambda r: _action(r["action"])),
        ("HARM ENDED AFTER", lambda r: "no harm" if r["recovered_s"] == 0 else show.span(r["recovered_s"])),
    ]
    show.table(result["faults"], columns, "no fault was injected")
    lost, total = result["requests_lost"], result["requests_total"]
    share = f" ({lost / total:.4%})" if total else ""
    print(f"requests lost: {lost} of {total}{share}")
    print(f"false findings: {result['false_findings']}, false isolations: {result['false_isolations']}")
    print(
        f"GPU-hours lent: {result['gpu_hours_lent']:.1f}, work of jobs lost when they were recalled: "
        f"{result['gpu_hours_lost_offline']:.1f}"
    )
    for sentence in result.get("advice", ()):
        print(f"advice: {sentence}")
    _some("recalled ", result.get("recalls", ()))
    for pool, sources in result.get("starts", {}).items():
        said = ", ".join(f"{source or 'not known'} {took:g} s" for source, took in sources.items())
        print(f"starts of {pool}: {said}")
    _some("read in: ", result.get("read_in", ()))
    _some("placement: ", [wish["text"] for wish in result.get("placement", ())])
    if result.get("steps"):
        print("steps: " + ", ".join(f"{name} {count}" for name, count in result["steps"].items()))


SHOWN = 5


def _some(what: str, sentences: Sequence[str]) -> None:
    """The first few; a drill of days has dozens, and --json has them all."""
    for sentence in sentences[:SHOWN]:
        print(f"{what}{sentence}")
    if len(sentences) > SHOWN:
        print(f"{what}{len(sentences) - SHOWN} more: --json has them all")


def _story(result: Mapping[str, Any]) -> None:
    """What happened when, of a drill with several regions."""
    print("regions: " + ", ".join(f"{name} {gpus} GPUs" for name, gpus in result["regions"].items()))
    for line in result["story"]:
        print(line)
    total = result["requests_total"]
    print(
        f"requests: {total}, lost before they were moved: {result['requests_lost']}, refused for want of room: "
        f"{result['requests_refused']}"
    )
    print("shares at the end: " + ", ".join(f"{n} {s:.0%}" for n, s in result["shares_at_the_end"].items()))


def _action(action: Any) -> str:
    """What was done, whatever shape the score gives it in."""
    if not action:
        return "-"
    if isinstance(action, Mapping):
        return ", ".join(f"{k} {v}" for k, v in action.items())
    return str(action)
