import json
import math

import pytest

from daemon.codec import decode, to_plain
from daemon.model import Entity, Evidence, Finding, Incident, Severity, Step, Verb


def test_an_incident_survives_the_journal_with_its_missing_numbers():
    finding = Finding(
        5.0,
        "fault",
        Entity("gpu", "n1/gpu2"),
        "gpu_lost",
        1.0,
        Severity.CRITICAL,
        (Evidence("xid", 79.0, "code"),),
    )
    incident = Incident("i-1", "gpu_lost", Entity("gpu", "n1/gpu2"), 5.0, 5.0, Severity.CRITICAL, (finding,))

    back = decode(Incident, json.loads(json.dumps(to_plain(incident))))

    assert back.scope == incident.scope
    assert back.findings[0].evidence[0].value == 79.0
    assert math.isnan(back.findings[0].evidence[0].peer)
    assert back.severity is Severity.CRITICAL


def test_a_step_survives_with_its_arguments():
    step = Step("s1", Verb.REROUTE, Entity("engine", "a:1"), 0.0, "why", args=(("pool", "chat"),))

    back = decode(Step, json.loads(json.dumps(to_plain(step))))

    assert back.args == (("pool", "chat"),)
    assert back.verb is Verb.REROUTE
    assert math.isnan(back.until)


def test_tuple_keys_survive():
    table = {Entity("gpu", "n1/gpu0"): 2.5}

    back = decode(dict[Entity, float], json.loads(json.dumps(to_plain(table))))

    assert back == table


def test_an_unknown_type_is_refused_with_its_name():
    with pytest.raises(TypeError, match="object"):
        to_plain(object())
