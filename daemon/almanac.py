"""Days unlike others: public holidays of countries, a site's own events."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from daemon.model import NAN, Occasion

REPEATS = ("", "weekly", "yearly")
OCCURRENCES_MAX = 2000
"""A rule that makes more than this within a horizon of weeks is a mistake in it."""


class CalendarError(Exception):
    """A calendar cannot be read: the message says which file and line, what was found and what is allowed."""


@dataclass(frozen=True, slots=True)
class Event:
    """A site's own event. start, end : seconds since the epoch. repeat : see REPEATS. factor : demand over the usual
    expected then, NaN = to be learnt from the ones before. until : last start of a repetition, inf = for ever."""

    name: str
    start: float
    end: float
    repeat: str = ""
    factor: float = NAN
    until: float = math.inf

    def within(self, since: float, until: float) -> Iterator[Occasion]:
        """Its occurrences that touch [since, until)."""
        length = self.end - self.start
        begin = datetime.fromtimestamp(self.start, UTC)
        for number in range(OCCURRENCES_MAX):
            if self.repeat == "weekly":
                # From the first one that can matter: an event of ten years ago has had hundreds.
                skipped = max(0, int((since - self.start) // (7 * 86400.0)))
                at = self.start + (skipped + number) * 7 * 86400.0
            elif self.repeat == "yearly":
                at = _years_on(begin, number).timestamp()
            else:
                at = self.start
            if at >= until or at > self.until:
                return
            if at + length > since:
                yield Occasion(at, at + length, self.name, self.factor)
            if not self.repeat:
                return


def _years_on(begin: datetime, years: int) -> datetime:
    try:
        return begin.replace(year=begin.year + years)
    except ValueError:  # the 29th of February
        return begin.replace(year=begin.year + years, day=28)


@dataclass(frozen=True, slots=True)
class Almanac:
    """countries : ISO codes, with a part after a dash where holidays differ ("DE-BY"). zone : IANA name of the time zone
    in which a holiday is a day. events : the site's own."""

    countries: tuple[str, ...] = ()
    zone: str = "UTC"
    events: tuple[Event, ...] = ()

    def __call__(self, since: float, until: float) -> tuple[Occasion, ...]:
        """Everything that touches [since, until), in order of time."""
        found = [o for event in self.events for o in event.within(since, until)]
        for country in self.countries:
            found += self._holidays(country, since, until)
        return tuple(sorted(found, key=lambda o: (o.start, o.group)))

    def _holidays(self, country: str, since: float, until: float) -> Iterator[Occasion]:
        zone = ZoneInfo(self.zone)
        first = datetime.fromtimestamp(since, zone).date() - timedelta(days=1)
        last = datetime.fromtimestamp(until, zone).date()
        for day in sorted(holidays_of(country, range(first.year, last.year + 1))):
            if first <= day <= last:
                start = datetime.combine(day, time(), zone).timestamp()
                end = datetime.combine(day + timedelta(days=1), time(), zone).timestamp()
                if end > since and start < until:
                    yield Occasion(start, end, f"holiday {country}")


def holidays_of(country: str, years: Sequence[int]) -> list[date]:
    """Public holidays by the package `holidays`. Raises CalendarError for a country it does not know."""
    import holidays  # some thousand modules: only where a country is named

    code, _, part = country.partition("-")
    try:
        found = holidays.country_holidays(code, subdiv=part or None, years=list(years))
    except NotImplementedError as error:
        raise CalendarError(
            f"country {country!r} is not known ({str(error)[:120]}); write an ISO code like CN, DE or DE-BY"
        ) from error
    return list(found)


# -- iCalendar -----------------------------------------------------------------------------------------------


def read_ics(path: Path) -> tuple[Event, ...]:
    """VEVENTs of an iCalendar file (RFC 5545): DTSTART, DTEND or DURATION, SUMMARY, RRULE weekly or yearly.

    Raises CalendarError with the line for a time or a rule that cannot be read: an event that is silently left out
    would be missed only on its day.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise CalendarError(f"{path}: {why}; a readable iCalendar file is needed") from error
    found: list[Event] = []
    fields: dict[str, tuple[str, str, int]] | None = None
    for number, line in _unfolded(text):
        name, parameters, value = _split(line)
        if (name, value.upper()) == ("BEGIN", "VEVENT"):
            fields = {}
        elif (name, value.upper()) == ("END", "VEVENT") and fields is not None:
            found.append(_event(path, number, fields))
            fields = None
        elif fields is not None:
            fields.setdefault(name, (parameters, value, number))
    return tuple(found)


def _unfolded(text: str) -> Iterator[tuple[int, str]]:
    """Logical lines with the number of their first: one that begins with a blank goes on from the one before."""
    held, begun = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line[:1] in (" ", "\t"):
            held += line[1:]
            continue
        if held:
            yield begun, held
        held, begun = line, number
    if held:
        yield begun, held


def _split(line: str) -> tuple[str, str, str]:
    head, _, value = line.partition(":")
    name, _, parameters = head.partition(";")
    return name.strip().upper(), parameters, value.strip()


def _event(path: Path, number: int, fields: dict[str, tuple[str, str, int]]) -> Event:
    if "DTSTART" not in fields:
        raise CalendarError(f"{path}:{number}: an event without DTSTART; every VEVENT needs one")
    start, is_day = _when(path, *fields["DTSTART"])
    if "DTEND" in fields:
        end, _ = _when(path, *fields["DTEND"])
    elif "DURATION" in fields:
        end = start + _duration(path, *fields["DURATION"][1:])
    else:
        end = start + (86400.0 if is_day else 3600.0)
    if end <= start:
        raise CalendarError(f"{path}:{fields['DTSTART'][2]}: the event ends before it starts")
    repeat, until = _rule(path, *fields["RRULE"][1:]) if "RRULE" in fields else ("", math.inf)
    name = fields.get("SUMMARY", ("", "event", 0))[1].replace("\\,", ",").replace("\\;", ";")
    return Event(name or "event", start, end, repeat, NAN, until)


def _when(path: Path, parameters: str, value: str, number: int) -> tuple[float, bool]:
    """Seconds since the epoch, and whether it is a whole day."""
    zone_name = next(
        (p[5:].strip('"') for p in parameters.split(";") if p.upper().startswith("TZID=")), "UTC"
    )
    try:
        zone = ZoneInfo(zone_name)
        if re.fullmatch(r"\d{8}", value):
            return datetime.strptime(value, "%Y%m%d").replace(tzinfo=zone).timestamp(), True
        if value.endswith("Z"):
            return datetime.strptime(value, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp(), False
        return datetime.strptime(value, "%Y%m%dT%H%M%S").replace(tzinfo=zone).timestamp(), False
    except (ValueError, KeyError, OSError) as error:
        raise CalendarError(
            f"{path}:{number}: {value!r} in zone {zone_name!r} is no time; write 20261224T180000Z or 20261224"
        ) from error


def _duration(path: Path, value: str, number: int) -> float:
    found = re.fullmatch(r"P(?:(\d+)W)?(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?)?", value)
    seconds = (
        sum(int(n or 0) * unit for n, unit in zip(found.groups(), (604800, 86400, 3600, 60, 1), strict=True))
        if found
        else 0
    )
    if not seconds:
        raise CalendarError(f"{path}:{number}: {value!r} is no duration; write P1D or PT2H30M")
    return float(seconds)


def _rule(path: Path, value: str, number: int) -> tuple[str, float]:
    """repeat, and the last start."""
    parts = dict(p.partition("=")[::2] for p in value.upper().split(";") if p)
    repeat = parts.get("FREQ", "").lower()
    strange = sorted(set(parts) - {"FREQ", "UNTIL", "INTERVAL", "WKST"})
    if repeat not in ("weekly", "yearly") or strange or parts.get("INTERVAL", "1") != "1":
        raise CalendarError(
            f"{path}:{number}: the rule {value!r} is not understood; FREQ=WEEKLY or FREQ=YEARLY, with UNTIL, are"
        )
    until = _when(path, "", parts["UNTIL"], number)[0] if "UNTIL" in parts else math.inf
    return repeat, until
