"""Continuous batching of many engines at once, a fixed step at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from daemon.model import Array
from simulator import histogram
from simulator.load import ARRIVED as NEW_ARRIVED
from simulator.load import CACHED, OUTPUT, PROMPT
from simulator.spec import CLIENT_TIMEOUT_S, PoolSpec
from simulator.wiring import sums

Indices = NDArray[np.intp]

ENGINE, ARRIVED, WORK, CONTEXT, LEFT, TOTAL, BEGIN, START, TTFT, HITS = range(10)
"""Rows of a request matrix: slot, arrival, prompt tokens to compute, KV tokens held, output tokens left and in all,
when prefill begins, when the first token comes, time to first token (NaN until then), prompt tokens from cache
(NaN once admitted: a preempted request is not counted again). Times are seconds since the epoch of the world."""

COUNTERS = (
    "prompt_tokens_s", "prompt_cached_tokens_s", "generation_tokens_s", "prefix_queries_s", "prefix_hits_s",
    "preemptions_per_s", "requests_done_per_s", "requests_failed_per_s",
    "lb_sessions_per_s", "lb_done_per_s", "lb_errors_per_s",
)  # fmt: skip
PROMPTS, CACHEDS, GENERATED, QUERIES, HIT, PREEMPTED, DONE, FAILED, LB_IN, LB_DONE, LB_ERRORS = range(11)
SUMS = len(COUNTERS)
"""Columns SUMS.. are the sums of the histograms in the order of histogram.NAMES."""
E2E, TPOT = SUMS + 2, SUMS + 4
_CHUNK = 2048.0
"""Prompt tokens a scheduler puts into one iteration."""
_FAR = 1e5


class Serving:
    """The requests of every engine slot and the totals they have left behind.

    totals : (slot, COUNTERS + histogram sums) monotone. counts : (slot, histogram.WIDTH) monotone, not cumulative
    over the edges. busy, prefill_share, batch, token_rate : (slot,) of the last step. arrived, lost, slow, finished :
    (slot,) requests since the slot was last folded. given_now, lost_now : (slot,) requests of the last step.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.running = np.empty((10, 0))
        self.waiting = np.empty((10, 0))
        self.seq_max, self.kv_tokens = np.ones(slots), np.ones(slots)
        self.prefill_token_s = np.full(slots, 1e-4)
        self.base_s, self.seq_s, self.context_s = np.ones(slots), np.zeros(slots), np.zeros(slots)
        self.ttft_slo_s, self.itl_slo_s = np.full(slots, np.inf), np.full(slots, np.inf)
        self.totals = np.zeros((slots, SUMS + len(histogram.NAMES)))
        self.counts = np.zeros((slots, histogram.WIDTH))
        self.lost, self.slow, self.finished = np.zeros(slots), np.zeros(slots), np.zeros(slots)
        self.arrived = np.zeros(slots)
        self.given_now, self.lost_now = np.zeros(slots, dtype=np.int64), np.zeros(slots, dtype=np.int64)
        self.carry = np.zeros(slots)
        self.itl = np.full(slots, 0.02)
        self.busy, self.prefill_share, self.batch = np.zeros(slots), np.zeros(slots), np.zeros(slots)
        self.prompt_rate, self.token_rate = np.zeros(slots), np.zeros(slots)
        self.kv_used, self.run_gauge, self.wait_gauge = np.zeros(slots), np.zeros(slots), np.zeros(slots)
        self.stalled_s = np.zeros(slots)
        self._tallies: list[Indices] = []

    def occupy(self, slot: int, pool: PoolSpec) -> None:
        """A replica of the pool starts in the slot; nothing of an earlier one is left but the totals."""
        self.seq_max[slot], self.kv_tokens[slot] = pool.max_num_seqs, pool.kv_tokens
        self.prefill_token_s[slot] = pool.prefill_token_s
        self.base_s[slot], self.seq_s[slot], self.context_s[slot] = (
            pool.step_base_s, pool.step_seq_s, pool.step_context_s,
        )  # fmt: skip
        self.ttft_slo_s[slot], self.itl_slo_s[slot] = pool.ttft_slo_s, pool.itl_slo_s
        self.carry[slot] = self.stalled_s[slot] = 0.0
        self.itl[slot] = pool.step_base_s

    def abort(self, slot: int) -> int:
        """All requests of the slot are lost, as when its process dies. Returns how many."""
        count = 0
        for name in ("running", "waiting"):
            queue = getattr(self, name)
            gone = queue[ENGINE] == slot
            count += int(gone.sum())
            setattr(self, name, queue[:, ~gone])
        self.lost[slot] += count
        self.lost_now[slot] += count
        self.totals[slot, LB_ERRORS] += count
        return count

    def held(self, slot: int) -> int:
        """Requests in the slot now."""
        return int((self.running[ENGINE] == slot).sum() + (self.waiting[ENGINE] == slot).sum())

    def open_step(self) -> None:
        """Forget what the last step handed out and lost."""
        self.given_now = np.zeros(self.slots, dtype=np.int64)
        self.lost_now = np.zeros(self.slots, dtype=np.int64)

    def step(
        self,
        start: float,
        span: float,
        slots: Indices,
        new: Array,
        works: NDArray[np.bool_],
        prefill_slow: Array,
        decode_slow: Array,
    ) -> None:
        """Advance every engine from `start` by `span` seconds.

        slots : (request,) where each row of `new` (an arrivals matrix) was routed. works : (slot,) false where the
        process makes no progress. prefill_slow, decode_slow : (slot,) 1 = healthy, 2 = twice as slow.
        """
        if len(slots):
            self._receive(slots, new)
        self._give_up(start + span)
        self.stalled_s = np.where(works, 0.0, self.stalled_s + span)
        prefill_s = self._admit(start, span, works, self.prefill_token_s * prefill_slow)
        self._decode(start, span, works, prefill_s, prefill_slow, decode_slow)

    def _receive(self, slots: Indices, new: Array) -> None:
        requests = np.empty((10, len(slots)))
        requests[ENGINE], requests[ARRIVED] = slots, new[NEW_ARRIVED]
        requests[WORK], requests[CONTEXT] = new[PROMPT] - new[CACHED], new[PROMPT]
        requests[LEFT] = requests[TOTAL] = new[OUTPUT]
        requests[BEGIN:HITS] = np.nan
        requests[HITS] = new[CACHED]
        count = np.bincount(slots, minlength=self.slots)
        self.given_now += count
        self.arrived += count
        self.totals[:, LB_IN] += count
        self.waiting = np.concatenate((self.waiting, requests), axis=1) if self.waiting.shape[1] else requests

    def _give_up(self, now: float) -> None:
        """Clients without a first token leave after their time-out, and those whose stream has stalled as long."""
        if self.waiting.shape[1]:
            late = (now - self.waiting[ARRIVED] > CLIENT_TIMEOUT_S) & np.isnan(self.waiting[TTFT])
            if late.any():
                self._lose(self.waiting[ENGINE, late])
                self.waiting = self.waiting[:, ~late]
        if self.stalled_s.any() and self.running.shape[1]:
            late = self.stalled_s[self.running[ENGINE].astype(np.intp)] >= CLIENT_TIMEOUT_S
            if late.any():
                self._lose(self.running[ENGINE, late])
                self.running = self.running[:, ~late]

    def _lose(self, engine: Array) -> None:
        count = np.bincount(engine.astype(np.intp), minlength=self.slots)
        self.lost += count
        self.lost_now += count
        self.totals[:, LB_ERRORS] += count
        self.totals[:, FAILED] += np.where(self.stalled_s > 0, 0, count)

    def _admit(self, start: float, span: float, works: NDArray[np.bool_], token_s: Array) -> Array:
        """First come first served into KV cache and batch, one prefill after another. Returns (slot,) prefill seconds."""
        carried = self.carry
        work = np.zeros(self.slots)
        if self.waiting.shape[1]:
            work = self._begin_prefills(start, span, works, token_s)
        spent: Array = np.minimum(carried + work, span)
        self.carry = np.where(works, carried + work - spent, carried)
        return np.where(works, spent, 0.0)

    def _begin_prefills(self, start: float, span: float, works: NDArray[np.bool_], token_s: Array) -> Array:
        queue = self.waiting
        order = np.argsort(queue[ENGINE], kind="stable")
        queue = queue[:, order]
        engine = queue[ENGINE].astype(np.intp)
        heads = np.flatnonzero(np.concatenate(([True], engine[1:] != engine[:-1])))
        group = np.zeros(len(engine), dtype=np.intp)
        group[heads[1:]] = 1
        group = group.cumsum()
        service = queue[WORK] * token_s[engine]
        # a request that comes late in the step or leaves within it holds its room for a part of it
        ready = np.maximum(queue[ARRIVED] - start, 0.0)
        stay = np.minimum(service + queue[LEFT] * self.itl[engine], span - ready) * (1.0 / span)
        fits = self._fits(queue[CONTEXT], stay, engine, heads, group, span)
        done = _lindley(ready, service, heads, group, self.carry[engine[heads]])
        begin = done - service
        go = fits & works[engine] & (begin < span)
        chosen = queue[:, go]
        which = engine[go]
        chosen[BEGIN] = start + begin[go]
        # the first token leaves with the decode iteration after the prefill
        chosen[START] = start + done[go] + self.itl[which]
        self._count_prompts(chosen, which)
        self.waiting = queue[:, ~go]
        self.running = np.concatenate((self.running, chosen), axis=1)
        return sums(which, service[go], self.slots)

    def _fits(
        self, need: Array, stay: Array, engine: Indices, heads: Indices, group: Indices, span: float
    ) -> NDArray[np.bool_]:
        """Whether cache and batch have room, all averaged over the step. stay : share of the step it is there."""
        run = self.running
        at = run[ENGINE].astype(np.intp)
        there = np.minimum(run[LEFT] * self.itl[at] * (1.0 / span), 1.0)
        free_seq = self.seq_max - sums(at, there, self.slots)
        free_kv = 0.93 * self.kv_tokens - sums(at, there * run[CONTEXT], self.slots)
        tokens, seats = (need * stay).cumsum(), stay.cumsum()
        tokens -= (tokens[heads] - need[heads] * stay[heads])[group]
        seats -= (seats[heads] - stay[heads])[group]
        fits: NDArray[np.bool_] = (tokens <= free_kv[engine]) & (seats <= free_seq[engine])
        return fits

    def _count_prompts(self, chosen: Array, engine: Indices) -> None:
        fresh = ~np.isnan(chosen[HITS])
        if not fresh.all():
            engine, fresh_rows = engine[fresh], chosen[:, fresh]
        else:
            fresh_rows = chosen
        prompts = sums(engine, fresh_rows[CONTEXT], self.slots)
        hits = sums(engine, fresh_rows[HITS], self.slots)
        self.totals[:, PROMPTS] += prompts
        self.totals[:, QUERIES] += prompts
        self.totals[:, CACHEDS] += hits
        self.totals[:, HIT] += hits
        chosen[HITS] = np.nan

    def _decode(
        self,
        start: float,
        span: float,
        works: NDArray[np.bool_],
        prefill_s: Array,
        prefill_slow: Array,
        decode_slow: Array,
    ) -> None:
        end = start + span
        run = self.running
        engine = run[ENGINE].astype(np.intp)
        since = np.maximum(run[START], start)
        room = np.maximum(end - since, 0.0)
        active = np.minimum(room, run[LEFT] * self.itl[engine]) * (1.0 / span)
        self.batch = sums(engine, active, self.slots)
        context = sums(engine, active * run[CONTEXT], self.slots)
        pure = (self.base_s + self.seq_s * self.batch + self.context_s * context) * decode_slow
        share = np.minimum(prefill_s / span, 0.9)
        self.prefill_share = share
        self.itl = pure / (1.0 - share)
        rate = np.where(works, 1.0 / self.itl, 0.0)
        made = np.minimum(room * rate[engine], run[LEFT])
        run[LEFT] -= made
        run[CONTEXT] += made
        self._first_tokens(run, engine, start, end, works)
        produced = sums(engine, made, self.slots)
        self.totals[:, GENERATED] += produced
        self._count_gaps(produced, pure, prefill_slow)
        self.busy = np.where(works, share + (1 - share) * np.minimum(self.batch, 1.0), 0.0)
        self.token_rate = produced / span
        engine = self._finish(run, engine, since + made * self.itl[engine], end)
        self._tally()
        self._measure(engine)

    def _first_tokens(
        self, run: Array, engine: Indices, start: float, end: float, works: NDArray[np.bool_]
    ) -> None:
        born = np.isnan(run[TTFT]) & (run[START] <= end) & works[engine]
        if not born.any():
            return
        slots = engine[born]
        ttft = run[START, born] - run[ARRIVED, born]
        queued = np.maximum(run[BEGIN, born] - run[ARRIVED, born], 0.0)
        run[TTFT, born] = ttft
        self._tallies += [histogram.places("ttft_s", slots, ttft), histogram.places("queue_s", slots, queued)]
        self.totals[:, SUMS] += sums(slots, ttft, self.slots)
        self.totals[:, SUMS + 3] += sums(slots, queued, self.slots)

    def _tally(self) -> None:
        """Count the latencies of this step into the histograms, all at once."""
        if self._tallies:
            flat = self._tallies[0] if len(self._tallies) == 1 else np.concatenate(self._tallies)
            self.counts += np.bincount(flat, minlength=self.counts.size).reshape(self.counts.shape)
            self._tallies = []

    def _count_gaps(self, produced: Array, pure: Array, prefill_slow: Array) -> None:
        # a decode iteration that carries a chunk of somebody's prompt takes that much longer
        stall = pure + _CHUNK * self.prefill_token_s * prefill_slow
        late = np.minimum((self.itl - pure) / (stall - pure), 1.0)
        first = histogram.BASE["itl_s"]
        self.counts[:, first : first + len(histogram.UNION["itl_s"]) + 1] += histogram.spread(
            produced, pure, stall, late
        )
        self.totals[:, SUMS + 1] += produced * self.itl

    def _finish(self, run: Array, engine: Indices, last_token: Array, end: float) -> Indices:
        """Let go of what is done. Returns the slots of the requests that still run."""
        over = (run[LEFT] <= 1e-9) & (run[START] <= end)
        if not over.any():
            return engine
        gone = run[:, over]
        slots = engine[over]
        self.running = run[:, ~over]
        finished_at = last_token[over]
        e2e = finished_at - gone[ARRIVED]
        per_token = (finished_at - gone[START]) / gone[TOTAL]
        slow = (gone[TTFT] > self.ttft_slo_s[slots]) | (per_token > self.itl_slo_s[slots])
        count = np.bincount(slots, minlength=self.slots)
        self._tallies += [histogram.places("e2e_s", slots, e2e), histogram.places("tpot_s", slots, per_token)]
        self.totals[:, E2E] += sums(slots, e2e, self.slots)
        self.totals[:, TPOT] += sums(slots, per_token, self.slots)
        self.totals[:, DONE] += count
        self.totals[:, LB_DONE] += count
        self.finished += count
        self.slow += sums(slots, slow, self.slots)
        rest: Indices = engine[~over]
        return rest

    def _measure(self, engine: Indices) -> None:
        run = self.running
        held = sums(engine, run[CONTEXT], self.slots)
        full = held > self.kv_tokens
        if full.any():
            held = self._preempt(full, held)
            run = self.running
            engine = run[ENGINE].astype(np.intp)
        self.kv_used = np.minimum(held / self.kv_tokens, 1.0)
        begun = np.bincount(engine, minlength=self.slots)
        self.run_gauge = begun.astype(float)
        queued = self.waiting[ENGINE].astype(np.intp)
        self.wait_gauge = np.bincount(queued, minlength=self.slots).astype(float)

    def _preempt(self, full: NDArray[np.bool_], held: Array) -> Array:
        """The newest requests of a full cache go back to the head of the queue, their tokens to be computed again."""
        run = self.running
        back = np.zeros(run.shape[1], dtype=bool)
        for slot in np.flatnonzero(full):
            mine = np.flatnonzero(run[ENGINE] == slot)
            newest = mine[np.argsort(-run[BEGIN, mine], kind="stable")]
            excess = held[slot] - self.kv_tokens[slot] * 0.95
            count = int(np.searchsorted(run[CONTEXT, newest].cumsum(), excess)) + 1
            back[newest[: min(count, len(newest) - 1)]] = True
        victims = run[:, back]
        victims[WORK] = victims[CONTEXT]
        slots = victims[ENGINE].astype(np.intp)
        self.totals[:, PREEMPTED] += np.bincount(slots, minlength=self.slots)
        self.running = run[:, ~back]
        self.waiting = np.concatenate((victims, self.waiting), axis=1)
        return held - sums(slots, victims[CONTEXT], self.slots)


def _lindley(ready: Array, service: Array, heads: Indices, group: Indices, carry: Array) -> Array:
    """(job,) when each job of several first-come-first-served queues is done.

    ready : earliest start of each job, ascending within a queue. heads : first job of each queue.
    carry : (queue,) when each queue becomes free. All relative to the same instant.
    Source: Lindley's recursion, D_i = S_i + max over j <= i of (A_j - S_{j-1}).

    >>> _lindley(np.array([0.0, 0.0, 5.0]), np.ones(3), np.array([0]), np.zeros(3, dtype=int), np.array([2.0]))
    array([3., 4., 6.])
    """
    total = service.cumsum()
    slack = ready - (total - service)
    slack[heads] = np.maximum(ready[heads], carry) - (total[heads] - service[heads])
    far = group * _FAR
    slack += far  # each queue starts above the last, so that the running maximum never crosses over
    result: Array = np.maximum.accumulate(slack) + total - far
    return result
