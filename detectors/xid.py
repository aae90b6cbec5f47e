"""The XID catalogue: what each driver error code means for the GPU that reports it."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.model import Severity


@dataclass(frozen=True, slots=True)
class XidClass:
    """kind : the pattern it leads to, "" = noted only. certainty : score of one event."""

    kind: str
    severity: Severity
    certainty: float


LOST = XidClass("gpu_lost", Severity.CRITICAL, 1.0)
UNCONTAINED = XidClass("gpu_uncontained", Severity.CRITICAL, 1.0)
FIRMWARE = XidClass("gpu_firmware", Severity.CRITICAL, 0.95)
MEMORY = XidClass("gpu_memory", Severity.WARNING, 0.6)
CONTAINED = XidClass("gpu_contained", Severity.WARNING, 0.9)
NVLINK = XidClass("nvlink_fault", Severity.CRITICAL, 0.9)
APPLICATION = XidClass("gpu_app", Severity.INFO, 0.5)
IGNORED = XidClass("", Severity.INFO, 0.0)

_TABLE: dict[XidClass, tuple[int, ...]] = {
    LOST: (79,),
    UNCONTAINED: (48, 95, 140, 171, 172),
    FIRMWARE: (46, 62, 109, 110, 119, 120, 143, 158, 169),
    MEMORY: (63, 64, 92, 156, 157, 160, 161, 168),
    CONTAINED: (94,),
    NVLINK: (74, 121, 136, 137, *range(144, 151), 155),
    APPLICATION: (8, 11, 13, 25, 31, 32, 39, 40, 41, 43, 45, 60, *range(68, 73)),
}
XID: dict[int, XidClass] = {code: cls for cls, codes in _TABLE.items() for code in codes}
"""Source: NVIDIA's XID error catalogue, grouped as in docs/en/reference/xid.md."""

RECOVERY_ACTION = {
    "gpu reset required": FIRMWARE,
    "reset required": FIRMWARE,
    "drain and reset": FIRMWARE,
    "node reboot required": LOST,
    "reboot required": LOST,
    "drain p2p": NVLINK,
}
"""XID 154: the driver itself states what is needed; its word overrides the table."""


def classify(code: float, text: str = "") -> XidClass:
    """The class of one event. An unknown code is noted and never acted on.

    >>> classify(79).kind, classify(154, "GPU recovery action changed to 0x2 (Node Reboot Required)").kind
    ('gpu_lost', 'gpu_lost')
    >>> classify(9999).kind
    ''
    """
    if int(code) == 154:
        # "... changed from 0x2 (Node Reboot Required) to 0x0 (None)": what it was is history, what it became counts.
        words = text.lower().rpartition(" to ")[2]
        return next((cls for phrase, cls in RECOVERY_ACTION.items() if phrase in words), IGNORED)
    return XID.get(int(code), IGNORED)
