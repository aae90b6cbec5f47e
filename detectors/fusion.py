"""Signal families of a replica put together: small signs that agree are worth more than a large one alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources

import numpy as np

from daemon.model import NAN, Array, Entity, Evidence, Finding, Frame, Severity
from detectors.claims import say
from detectors.scales import Flags
from detectors.signs import FAMILIES
from detectors.stats import Groups, Index, rows

KEPT = 5
MOST = 3
"""So many of the last minutes must say it, the newest among them: m of n."""
LEAST_EFFECT = 0.03
"""A step that takes less longer than this is nobody's trouble. Source: the reference's effect floor of clocks."""
FADES = 0.7
"""Share of a quarter of an hour's lag that its last five minutes must show for a claim to begin: less is about to be over before anybody reads of it. What stays
shows all of it, give or take a quarter. Of four busy replicas told in 1,724 loaded days (published healthy 1427, 1436 and 1438) three were told at 0.56 to 0.62."""
SCORE = 0.55
"""Below what isolates. What no family shows alone is small: it is told and neither pages nor takes anything out."""
STEPS = ("step", "long_step")
AGREE = 2.5
"""What some sign but those of the steps must show. Steps alone are one family, which has limits of its own: of 403 sound replicas four wandered so far
in a day that they alone passed the limit of all (tune healthy 441), with leads of 1.2 to 2.9 beside it."""
POINTS = ("lead", "clock_and_step")
POINTS_FROM = 3.0
"""Signs that point to one rank, and from how many deviations on it is blamed instead of the replica. Sound replicas show more in
one of 1,000 minutes, and these are no sound ones any more."""


_OTHERS = [k for k, family in enumerate(FAMILIES) if family not in STEPS]


@dataclass(frozen=True, slots=True)
class Model:
    """A fitted logistic model: chance = 1 / (1 + exp(-(intercept + weights . signs))). Written by bench/train_fusion.py.

    weights : in the order of FAMILIES. limit : logit from which a claim is made. about : version, date, seeds and fleets, for people.
    """

    weights: tuple[float, ...]
    intercept: float
    limit: float
    about: Mapping[str, str]


@lru_cache(maxsize=1)
def fitted() -> Model:
    """The model that came with this version. Raises ValueError when the file is of other families than the code."""
    told = json.loads(resources.files("detectors").joinpath("fusion.json").read_text("utf-8"))
    if tuple(told["weights"]) != FAMILIES:
        raise ValueError(
            f"fusion.json has weights for {list(told['weights'])}, the code has {list(FAMILIES)}: train again"
        )
    return Model(tuple(told["weights"].values()), told["intercept"], told["limit"], told["about"])


@dataclass(slots=True)
class Fusion:
    """Claims stand until most of the last minutes find it less likely than not.

    shared : share of a group at once that is a common cause. names, logits : (minute, engine) of the last minutes, NaN =
    not judged. claims : engine -> what is said of it or of its GPU.
    """

    shared: float = 0.05
    names: tuple[str, ...] = ()
    logits: Array = field(default_factory=lambda: np.full((KEPT, 0), NAN))
    claims: dict[str, Finding] = field(default_factory=dict)

    def judge(
        self,
        engine: Frame,
        gpu: Frame,
        found: Array,
        suspect: Index,
        lag: Array,
        recent: Array,
        alike: Groups,
    ) -> None:
        """One minute. found, suspect : as of signs. lag, recent : (engine,) log of the step time at equal load over the peers', over a quarter of an
        hour and over five minutes, which must show most of it: what is over is over."""
        if engine.entities != self.names:
            self._follow(engine.entities)
        model = fitted()
        self.logits[:-1] = self.logits[1:]
        self.logits[-1] = model.intercept + found @ np.array(model.weights)
        with np.errstate(invalid="ignore"):
            likely = ((self.logits > model.limit).sum(axis=0) >= MOST) & (self.logits[-1] > model.limit)
            still = (self.logits > 0.0).sum(axis=0) >= MOST
            agree = found[:, _OTHERS].max(axis=1) >= AGREE
        told = np.array([n in self.claims for n in engine.entities], dtype=bool)
        lasts = recent > np.where(told, 0.5, FADES) * lag
        likely &= agree & (lag > LEAST_EFFECT) & lasts & ~_many(likely, alike, self.shared)
        for i in rows(told & ~still):
            del self.claims[engine.entities[i]]
        for i in rows(likely):
            self.claims[engine.entities[i]] = self._claim(
                engine, gpu, i, found[i], int(suspect[i]), float(lag[i])
            )

    def confidence(self, name: str) -> float:
        """Chance that the engine is slowed by something of its own, NaN = not judged."""
        row = self.names.index(name) if name in self.names else -1
        known = self.logits[:, row][np.isfinite(self.logits[:, row])] if row >= 0 else np.empty(0)
        return float(1.0 / (1.0 + np.exp(-np.median(known)))) if known.size else NAN

    def _claim(self, engine: Frame, gpu: Frame, i: int, found: Array, suspect: int, lag: float) -> Finding:
        name, terms = engine.entities[i], found * np.array(fitted().weights)
        ranks = gpu.facts.get("engine", ()).count(name)
        points = max(float(found[FAMILIES.index(sign)]) for sign in POINTS)
        on_gpu = suspect >= 0 and ranks > 1 and points >= POINTS_FROM
        entity = Entity("gpu", gpu.entities[suspect]) if on_gpu else Entity("engine", name)
        order = [
            k for k in np.argsort(-terms).tolist() if terms[k] > 0.5 or (terms[k] > 0.0 and found[k] >= AGREE)
        ]
        kinds = len({FAMILIES[k] in STEPS or FAMILIES[k] for k in order if found[k] >= AGREE})
        evidence = [
            Evidence("confidence", self.confidence(name), "ratio"),
            Evidence("slower_at_equal_load", float(np.expm1(lag)), "ratio", 0.0),
            *(Evidence(f"sign_{FAMILIES[k]}", float(found[k]), "sigma") for k in order),
        ]
        before = self.claims.get(name)
        return say(
            engine.at,
            "straggler.together_gpu" if on_gpu else "straggler.together_replica",
            entity,
            "gpu_slow" if on_gpu else "replica_slow",
            SCORE,
            Severity.INFO,
            *evidence,
            since=before.since if before else engine.at - 60.0 * KEPT,
            text=f"{entity.name} is {np.expm1(lag):.0%} slower: {kinds} kinds of signs agree, none of them is enough alone",
        )

    def _follow(self, names: tuple[str, ...]) -> None:
        place = {name: i for i, name in enumerate(self.names)}
        old = np.array([place.get(name, -1) for name in names], dtype=np.intp)
        moved = np.full((KEPT, len(names)), NAN)
        moved[:, old >= 0] = self.logits[:, old[old >= 0]]
        self.names, self.logits = names, moved
        self.claims = {n: c for n, c in self.claims.items() if n in names}


def _many(likely: Flags, alike: Groups, share: float) -> Flags:
    """(engine,) in a group so much of which is likely at once that the cause is shared."""
    many = np.zeros(likely.size, dtype=bool)
    for member in alike.member:
        of = member[member >= 0]
        many[of] = int(likely[of].sum()) > max(2.0, share * of.size)
    return many
