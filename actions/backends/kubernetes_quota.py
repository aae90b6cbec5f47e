"""What a queue of offline work gets for the nodes that are lent to it, noted on the queue itself."""

from __future__ import annotations

import json
from typing import NamedTuple

from daemon.kubernetes_api import Json, annotated
from daemon.model import Hopeless

LENT = "tidewarden.io/lent-gpus"
STOPPED = "tidewarden.io/stopped-by"


class Quota(NamedTuple):
    """gpus : what the queue may use now. lent : node -> GPUs of it that we added. Others may have changed `gpus` meanwhile:
    it is only ever moved by what one node is worth."""

    gpus: int
    lent: dict[str, int]

    def plus(self, node: str, gpus: int) -> Quota:
        """With a node more; the same when it is counted already."""
        if node in self.lent:
            return self
        return Quota(self.gpus + gpus, self.lent | {node: gpus})

    def minus(self, node: str) -> Quota:
        rest = {n: g for n, g in self.lent.items() if n != node}
        return Quota(max(0, self.gpus - self.lent.get(node, 0)), rest)

    @property
    def is_all_ours(self) -> bool:
        """Nothing is left that anybody else gave to the queue."""
        return self.gpus == 0 and not self.lent

    @property
    def note(self) -> str | None:
        return json.dumps(self.lent, sort_keys=True) if self.lent else None


def quota_of(queue: Json, what: str, amount: object) -> Quota:
    """what : the queue in words. amount : as the API writes quantities of GPUs. Raises Hopeless for one that is none."""
    if not str(amount).isdigit():
        raise Hopeless(
            f"{what} has {amount!r} GPUs, which is no whole number; write how many it has when nothing is lent"
        )
    try:
        lent = {str(node): int(gpus) for node, gpus in json.loads(annotated(queue).get(LENT, "{}")).items()}
    except (ValueError, TypeError, AttributeError):
        raise Hopeless(
            f"the annotation {LENT} of {what} was edited and cannot be read; remove it and set its GPUs to what it has when nothing is lent"
        ) from None
    return Quota(int(str(amount)), lent)
