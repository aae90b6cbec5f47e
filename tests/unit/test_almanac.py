"""Holidays and events are found, repeated and refused where they cannot be read."""

import math
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from daemon.almanac import Almanac, CalendarError, Event, read_ics
from daemon.settings import CalendarTree, Settings


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def test_holidays_of_a_country_are_days_of_its_zone():
    almanac = Almanac(("CN",), "Asia/Shanghai")

    found = almanac(at("2026-09-30"), at("2026-10-03"))

    assert next((o.start, o.group) for o in found) == (at("2026-09-30T16:00"), "holiday CN")
    assert {o.end - o.start for o in found} == {86400.0}


def test_a_part_of_a_country_has_its_own_holidays():
    epiphany = at("2026-01-05"), at("2026-01-08")

    assert Almanac(("DE-BY",))(*epiphany) != ()
    assert Almanac(("DE",))(*epiphany) == ()


def test_an_unknown_country_is_refused_with_the_remedy():
    with pytest.raises(
        ValidationError, match=r"'XX' is not known .*; write an ISO code like CN, DE or DE-BY"
    ):
        CalendarTree(countries=["XX"])


def test_an_unknown_zone_is_refused():
    with pytest.raises(ValidationError, match="zone 'Mars/Olympus' is not known"):
        CalendarTree(zone="Mars/Olympus")


def test_a_weekly_event_comes_every_week_until_it_ends():
    event = Event("sale", at("2026-06-01T18:00"), at("2026-06-01T20:00"), "weekly", 1.5, at("2026-06-30"))

    found = Almanac(events=(event,))(at("2026-06-10"), at("2026-07-20"))

    assert [o.start for o in found] == [at(f"2026-06-{d}T18:00") for d in (15, 22, 29)]
    assert {o.factor for o in found} == {1.5}


def test_a_yearly_event_of_a_leap_day_falls_on_the_28th():
    event = Event("leap", at("2024-02-29"), at("2024-03-01"), "yearly")

    found = Almanac(events=(event,))(at("2026-01-01"), at("2026-12-31"))

    assert [o.start for o in found] == [at("2026-02-28")]


def test_an_old_weekly_event_still_comes():
    event = Event("old", at("1980-01-07"), at("1980-01-08"), "weekly")

    assert len(Almanac(events=(event,))(at("2026-06-01"), at("2026-06-15"))) == 2


ICS = """BEGIN:VCALENDAR
VERSION:2.0
BEGIN:VEVENT
SUMMARY:Launch of\\, the
  big one
DTSTART:20260610T180000Z
DTEND:20260610T200000Z
END:VEVENT
BEGIN:VEVENT
SUMMARY:exams
DTSTART;TZID=Asia/Shanghai:20260607T090000
DURATION:PT2H30M
RRULE:FREQ=YEARLY
END:VEVENT
BEGIN:VEVENT
SUMMARY:day off
DTSTART;VALUE=DATE:20260701
END:VEVENT
END:VCALENDAR
"""


def test_an_icalendar_file_is_read(tmp_path: Path):
    path = tmp_path / "events.ics"
    path.write_text(ICS)

    launch, exams, day = read_ics(path)

    assert (launch.name, launch.start, launch.end) == (
        "Launch of, the big one",
        at("2026-06-10T18:00"),
        at("2026-06-10T20:00"),
    )
    assert (exams.start, exams.end - exams.start, exams.repeat) == (at("2026-06-07T01:00"), 9000.0, "yearly")
    assert day.end - day.start == 86400.0
    assert math.isnan(day.factor)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("DTSTART:tomorrow", ":3: 'tomorrow' in zone 'UTC' is no time; write 20261224T180000Z or 20261224"),
        ("SUMMARY:nothing", ":4: an event without DTSTART"),
        ("DTSTART:20260610\nRRULE:FREQ=MONTHLY", ":4: the rule 'FREQ=MONTHLY' is not understood"),
        ("DTSTART:20260610\nDTEND:20260609", ":3: the event ends before it starts"),
        ("DTSTART:20260610\nDURATION:soon", ":4: 'soon' is no duration; write P1D or PT2H30M"),
        ("DTSTART;TZID=Mars/Olympus:20260610T000000", ":3: '20260610T000000' in zone 'Mars/Olympus'"),
    ],
)
def test_an_icalendar_file_that_cannot_be_read_says_where(tmp_path: Path, broken: str, said: str):
    path = tmp_path / "events.ics"
    path.write_text(f"BEGIN:VCALENDAR\nBEGIN:VEVENT\n{broken}\nEND:VEVENT\nEND:VCALENDAR\n")

    with pytest.raises(CalendarError) as error:
        read_ics(path)

    assert said in str(error.value)


def test_a_calendar_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(CalendarError, match=r"gone\.ics.*a readable iCalendar file is needed"):
        read_ics(tmp_path / "gone.ics")


def test_settings_make_an_almanac_of_events_and_files(tmp_path: Path):
    path = tmp_path / "events.ics"
    path.write_text(ICS)
    settings = Settings.model_validate(
        {
            "calendar": {
                "files": [str(path)],
                "events": [
                    {
                        "name": "launch",
                        "start": "2026-06-12T18:00:00Z",
                        "end": "2026-06-12T20:00:00Z",
                        "factor": 2.0,
                    }
                ],
            }
        }
    )

    found = settings.almanac()(at("2026-06-01"), at("2026-07-10"))

    assert [o.group for o in found] == ["exams", "Launch of, the big one", "launch", "day off"]
    assert [o.factor for o in found if o.group == "launch"] == [2.0]
