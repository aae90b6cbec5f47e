"""Back-fills demand from a Prometheus-compatible store when the daemon starts."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np

from daemon.model import Array, SourceError
from daemon.telemetry.catalogue import Catalogue, Meaning
from daemon.telemetry.fetch import redact

POINTS_MAX = 10_000
"""Points of one range query; Prometheus refuses more than 11,000."""

RATES = ("requests_done_per_s", "prompt_tokens_s", "generation_tokens_s")
LEVELS = ("running", "waiting")
GPUS_MAX = 64
"""GPUs named in one query: its address stays below the 8 KiB that proxies allow."""


class Past(NamedTuple):
    """at : (step,) left edges, aligned to step_s; values : (step,), NaN = the store has nothing for that step."""

    at: Array
    values: Array


@dataclass(frozen=True, slots=True)
class History:
    """A store asked through prometheus-api-client, which blocks: every call runs in a thread.

    url : without /api. timeout_s : of one query. rate_window_s : rates need two samples, so never shorter than two
    of the store's scrape intervals. headers : e.g. Authorization. told : (pools read, pools in all), from that thread.
    """

    url: str
    catalogue: Catalogue
    timeout_s: float = 30.0
    rate_window_s: float = 60.0
    headers: Mapping[str, str] | None = None
    told: Callable[[int, int], None] = lambda done, total: None

    async def demand(
        self, pools: Mapping[str, Mapping[str, str]], since: float, until: float, step_s: float
    ) -> dict[str, dict[str, Past]]:
        """Demand of each pool in [since, until): pool -> signal -> Past.

        pools   : name -> facts its engines have (e.g. {"model": "llama"}); empty = label pool equals the name.
        signals : requests_done_per_s, prompt_tokens_s, generation_tokens_s, concurrency (running + waiting), and
        kv_used_replicas (the KV caches in use, as a number of full ones).
        Step k covers [at, at + step_s) and ends by `until`: what is measured live from the next edge on counts
        nothing twice. Raises SourceError when the store does not answer.
        """
        at = edges(since, until, step_s)
        if not len(at):
            return {pool: {} for pool in pools}
        return await asyncio.to_thread(self._demand, pools, at, step_s)

    def _demand(
        self, pools: Mapping[str, Mapping[str, str]], at: Array, step_s: float
    ) -> dict[str, dict[str, Past]]:
        client = self._client()
        names = set(self._call(client.all_metrics))
        found: dict[str, dict[str, Past]] = {}
        for number, (pool, match) in enumerate(pools.items()):
            self.told(number, len(pools))
            facts = dict(match) or {"pool": pool}
            columns = {
                signal: self._column(client, self._query(signal, facts, names, step_s), at, step_s)
                for signal in (*RATES, *LEVELS)
            }
            running, waiting = columns.pop("running"), columns.pop("waiting")
            # An engine without a queue gauge has no known queue: what runs is then the best lower bound.
            columns["concurrency"] = running if np.isnan(waiting).all() else running + waiting
            # The ranks of one engine share its cache: the fullest speaks for the engine.
            caches = self._each("kv_used_ratio", "instance", names, step_s, facts)
            columns["kv_used_replicas"] = self._column(client, f"sum({caches})" if caches else "", at, step_s)
            found[pool] = {signal: Past(at, values) for signal, values in columns.items()}
        self.told(len(pools), len(pools))
        return found

    async def gpus(self, uuids: Sequence[str], since: float, until: float, step_s: float) -> dict[str, Past]:
        """What the GPUs of these UUIDs showed together, in steps as `demand` has them: gpus_healthy (those that
        reported) and power_w. GPUs that others scrape into the same store are not counted. Raises SourceError."""
        at = edges(since, until, step_s)
        if not len(at):
            return {}
        return await asyncio.to_thread(self._gpus, uuids, at, step_s)

    def _gpus(self, uuids: Sequence[str], at: Array, step_s: float) -> dict[str, Past]:
        client = self._client()
        names = set(self._call(client.all_metrics))
        found = {signal: np.full(len(at), math.nan) for signal in ("gpus_healthy", "power_w")}
        for start in range(0, len(uuids), GPUS_MAX):
            some = "|".join(re.escape(u) for u in uuids[start : start + GPUS_MAX])
            powers = self._each("power_w", "uuid", names, step_s, {}, {"uuid": some})
            for signal, over in (("gpus_healthy", "count"), ("power_w", "sum")):
                part = self._column(client, f"{over}({powers})" if powers else "", at, step_s)
                found[signal] = np.where(
                    np.isnan(found[signal]), part, found[signal] + np.where(np.isnan(part), 0.0, part)
                )
        return {signal: Past(at, values) for signal, values in found.items()}

    def _client(self) -> Any:
        from prometheus_api_client import (
            PrometheusConnect,  # pulls in requests and urllib3: only where needed
        )

        return PrometheusConnect(
            self.url.rstrip("/"), headers=dict(self.headers or {}), timeout=self.timeout_s
        )

    def _call(self, function: Any, *arguments: Any) -> Any:
        from prometheus_api_client.exceptions import PrometheusApiClientException
        from requests import RequestException

        try:
            return function(*arguments)
        except (PrometheusApiClientException, RequestException, ValueError) as problem:
            raise SourceError(
                f"history from {redact(self.url)}: {redact(str(problem))[:300]}; check the address, or start without back-fill"
            ) from problem

    def _query(self, signal: str, facts: Mapping[str, str], names: set[str], step_s: float) -> str:
        """PromQL of one signal summed over the engines of a pool, "" when the store has none of its names.

        `or` compares without the name: where an engine exports old and new names only the preferred one counts.
        """
        window = f"[{max(step_s, self.rate_window_s) if signal in RATES else step_s:g}s]"
        function = "rate" if signal in RATES else "avg_over_time"
        ranks: dict[int, list[str]] = {}
        for name, meaning in self._meanings(signal, "engine"):
            if name in names:
                selector = f"{function}({name}{_matchers(meaning, facts)}{window})"
                ranks.setdefault(meaning.rank, []).append(
                    f"sum without (reason, finished_reason) ({selector})"
                )
        terms = [" + ".join(parts) for _, parts in sorted(ranks.items())]
        return f"sum({' or '.join(terms)})" if terms else ""

    def _each(
        self,
        signal: str,
        by: str,
        names: set[str],
        step_s: float,
        facts: Mapping[str, str],
        patterns: Mapping[str, str] = {},
    ) -> str:
        """PromQL of the mean of a signal, one row for each value of the fact or label `by`; "" when the store has none of its names.

        Where several series speak of one (the ranks of an engine, a GPU before and after its pod changed) the highest counts.
        """
        terms = []
        kind = "gpu" if by == "uuid" else "engine"
        for name, meaning in sorted(self._meanings(signal, kind), key=lambda found: found[1].rank):
            if name in names:
                label = meaning.family.facts.get(by, (by,))[0]
                mean = f"avg_over_time({name}{_matchers(meaning, facts, patterns)}[{step_s:g}s])"
                mean += f" * {meaning.scale:g}" if meaning.scale != 1.0 else ""
                terms.append(f"max by ({label}) ({mean})")
        return " or ".join(terms)

    def _meanings(self, signal: str, kind: str) -> Iterable[tuple[str, Meaning]]:
        for name, meanings in self.catalogue.exact.items():
            for meaning in meanings:
                is_frontend = meaning.family.fixed.get("role") == "frontend"
                if meaning.signal.name == signal and meaning.signal.kind == kind and not is_frontend:
                    yield name, meaning

    def _column(self, client: Any, query: str, at: Array, step_s: float) -> Array:
        """(step,) of one query; each step is asked at its right edge, which is where its window ends."""
        values = np.full(len(at), math.nan)
        if not query:
            return values
        for start in range(0, len(at), POINTS_MAX):
            part = at[start : start + POINTS_MAX]
            rows = self._call(
                client.custom_query_range,
                query,
                datetime.fromtimestamp(part[0] + step_s, UTC),
                datetime.fromtimestamp(part[-1] + step_s, UTC),
                f"{step_s:g}s",
            )
            for row in rows:
                for when, text in row["values"]:
                    place = round((float(when) - at[0]) / step_s) - 1
                    if 0 <= place < len(values):
                        values[place] = float(text)
        return values


def edges(since: float, until: float, step_s: float) -> Array:
    """Left edges of the whole steps within [since, until), aligned to multiples of step_s.

    >>> edges(61.0, 300.0, 60.0).tolist()
    [120.0, 180.0, 240.0]
    """
    if step_s <= 0:
        raise ValueError(f"step_s must be positive, got {step_s}")
    first, last = math.ceil(since / step_s), math.floor(until / step_s)
    return np.arange(first, max(first, last), dtype=np.float64) * step_s


def _matchers(meaning: Meaning, facts: Mapping[str, str], patterns: Mapping[str, str] = {}) -> str:
    parts = [f'{label}=~"{_quoted(pattern.pattern)}"' for label, pattern in meaning.where]
    parts += [f'{label}!~"{_quoted(pattern.pattern)}"' for label, pattern in meaning.unless]
    for fact, value in facts.items():
        label = meaning.family.facts.get(fact, (fact,))[0]
        parts.append(f'{label}="{_quoted(value)}"')
    for fact, pattern in patterns.items():
        label = meaning.family.facts.get(fact, (fact,))[0]
        parts.append(f'{label}=~"{_quoted(pattern)}"')
    return "{" + ",".join(parts) + "}"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
