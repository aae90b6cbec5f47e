"""The XID catalogue: what each driver error code means for the GPU that reports it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from daemon.model import Severity


@dataclass(frozen=True, slots=True)
class XidClass:
    """kind : the pattern it leads to, "" = noted only. certainty : score of one event. rule : its id."""

    kind: str
    severity: Severity
    certainty: float
    rule: str = ""


LOST = XidClass("gpu_lost", Severity.CRITICAL, 1.0, "fault.xid_lost")
UNCONTAINED = XidClass("gpu_uncontained", Severity.CRITICAL, 1.0, "fault.xid_uncontained")
FIRMWARE = XidClass("gpu_firmware", Severity.CRITICAL, 0.95, "fault.xid_firmware")
MEMORY = XidClass("gpu_memory", Severity.WARNING, 0.6, "fault.xid_memory")
CONTAINED = XidClass("gpu_contained", Severity.WARNING, 0.9, "fault.xid_contained")
NVLINK = XidClass("nvlink_fault", Severity.CRITICAL, 0.9, "fault.xid_nvlink")
APPLICATION = XidClass("gpu_app", Severity.INFO, 0.5, "fault.xid_app")
NOTICE = XidClass("gpu_notice", Severity.INFO, 0.5, "fault.xid_notice")
IGNORED = XidClass("", Severity.INFO, 0.0)

_TABLE: dict[XidClass, tuple[int, ...]] = {
    LOST: (79,),
    UNCONTAINED: (48, 95, 140, 171, 172),
    FIRMWARE: (46, 62, 109, 110, 119, 120, 143, 158, 169),
    MEMORY: (63, 64, 92, 156, 157, 160, 161, 168),
    CONTAINED: (94,),
    NVLINK: (74, 121, 136, 137, *range(144, 151), 155),
    APPLICATION: (8, 11, 13, 25, 31, 32, 39, 40, 41, 43, 45, 60, *range(68, 73)),
    NOTICE: (54, 78, 142, 163, 167),
}
XID: dict[int, XidClass] = {code: cls for cls, codes in _TABLE.items() for code in codes}
"""Source: NVIDIA's XID error catalogue, grouped as in docs/en/reference/xid.md."""

CLASSES: Mapping[str, XidClass] = {cls.kind: cls for cls in _TABLE} | {"ignore": IGNORED}
"""What an operator may declare a code to be."""

CANCELS: Mapping[int, int] = {162: 163}
"""A code that says that an earlier one is over."""

FOLLOWERS = frozenset({45})
"""They only say that a program was ended: they follow other trouble, are never counted, never escalate.
672 false fatal events came of them in three hours in the field (NVSentinel#1710)."""

RECOVERY_ACTION = {
    "gpu reset required": FIRMWARE,
    "reset required": FIRMWARE,
    "drain and reset": FIRMWARE,
    "node reboot required": LOST,
    "reboot required": LOST,
    "drain p2p": NVLINK,
}
"""XID 154: the driver itself states what is needed; its word overrides the table."""

ACTION_CODES: Mapping[int, XidClass] = {1: FIRMWARE, 2: LOST, 3: NVLINK, 4: FIRMWARE}
"""The same as a gauge: 1 reset, 2 reboot, 3 drain peer-to-peer, 4 drain and reset."""

_LINK = re.compile(r"\blink\s+(\d+)", re.IGNORECASE)
_NONFATAL = re.compile(r"\bnon-?fatal\b", re.IGNORECASE)


def classify(code: float, text: str = "", told: Mapping[str, str] | None = None) -> XidClass:
    """The class of one event. An unknown code is noted and never acted on.

    told : code -> key of CLASSES, the operator's word over the table. The driver's own word (154) comes before both.

    >>> classify(79).kind, classify(154, "GPU recovery action changed to 0x2 (Node Reboot Required)").kind
    ('gpu_lost', 'gpu_lost')
    >>> classify(9999).kind, classify(43, "", {"43": "gpu_firmware"}).kind
    ('', 'gpu_firmware')
    """
    number = int(code)
    if number == 154:
        # "... changed from 0x2 (Node Reboot Required) to 0x0 (None)": what it was is history, what it became counts.
        words = text.lower().rpartition(" to ")[2]
        return next((cls for phrase, cls in RECOVERY_ACTION.items() if phrase in words), IGNORED)
    named = (told or {}).get(str(number))
    if named is not None:
        return CLASSES.get(named, IGNORED)
    found = XID.get(number, IGNORED)
    # Of the NVLink 5 codes the driver says itself which are not fatal: they repair themselves.
    return NOTICE if found is NVLINK and _NONFATAL.search(text) else found


def link_of(text: str) -> str:
    """The NVLink a message names, "" when it names none.

    >>> link_of("NVLink: fatal error detected on link 4(0x10000, 0x0)")
    '4'
    """
    found = _LINK.search(text)
    return found.group(1) if found else ""
