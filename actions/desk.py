"""Where alerts become letters: grouped, paced, silenced, escalated, and remembered across restarts."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from actions.channel import Channel, ChannelKind
from actions.channels import VENDORS
from actions.dispatch import Draft, Flap, digest_of, letter_of, look, message_of, raise_, touched
from actions.letters import HEARTBEAT, Book, Outbox, plain_message, post, single
from actions.routing import Pacing, Route, Seat, group_of, seats
from daemon.alerts import RANK, Alert, Bundle, Deed, Letter, Message, Raised, Silence

IDLE_S = 60.0
"""A look at the bundles although nobody woke us: a wall clock that jumped must not hold a message for ever."""


def no_deeds(incident: str) -> Sequence[Deed]:
    return ()


def no_links(group: str, at: float) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, slots=True)
class Plan:
    """How on-call wants to be told.

    root : of the routes, None = every channel takes what its severity allows. windows : planned maintenance.
    digest_min : from that many groups due at once a channel gets one message for all of them.
    """

    root: Route | None = None
    pacing: Pacing = field(default_factory=Pacing)
    flap: Flap = field(default_factory=Flap)
    windows: tuple[Silence, ...] = ()
    digest_min: int = 5


@dataclass(slots=True)
class Desk:
    """Turns alerts into letters. `run` does what is due later; everything else happens when it is called.

    deeds : incident id -> what was done about it. links : (group, time) -> label -> URL. alive : whether the daemon
    still decides; without that no heartbeat goes out. wake : called when a letter was put. hushed : when a
    silence began or ended. troubles : channel name -> what is wrong with it beside its letters.
    """

    channels: Sequence[Channel]
    outbox: Outbox
    clock: Callable[[], float]
    plan: Plan = field(default_factory=Plan)
    deeds: Callable[[str], Sequence[Deed]] = no_deeds
    links: Callable[[str, float], Mapping[str, str]] = no_links
    alive: Callable[[], bool] = lambda: True
    wake: Callable[[], None] = lambda: None
    hushed: Callable[[], None] = lambda: None
    troubles: dict[str, str] = field(default_factory=dict)
    _members: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _woken: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._take_stock()

    def use(self, channels: Sequence[Channel], plan: Plan) -> None:
        """From now on tell these channels by this plan. What fires and a channel has not heard of is told there."""
        self.channels, self.plan = channels, plan
        self._members.clear()
        self._take_stock()
        firing = [r for r in self.book.raised.values() if r.alert.status == "firing"]
        for raised in firing:
            interested = self._seats(raised)
            for channel in self.channels:
                if channel.kind is ChannelKind.ALERTMANAGER:
                    missing = [n for n in range(len(channel.urls)) if not self._stands(channel, n, raised)]
                    step = f"{raised.steps[-1]}/{self.clock():.3f}"
                    self._stand(channel, raised, step, interested, missing)
                elif channel.name in interested:
                    self._touch(channel, raised, interested[channel.name])
        self.book.commit()
        self.settle()
        self.hushed()
        self._woken.set()

    def _take_stock(self) -> None:
        """Sort what is remembered by the channels and routes of now."""
        for raised in self.book.raised.values():
            self._index(raised)
        names = {(c.name, address) for c in self.channels for address in range(len(c.urls))}
        self.book.drop(*[b for b in self.book.bundles.values() if (b.channel, b.address) not in names])

    @property
    def book(self) -> Book:
        return self.outbox.book

    # -- what comes in ----------------------------------------------------------------------------------

    def tell(self, alert: Alert, step: str) -> None:
        """Take in the newest word on an alert, once a step."""
        before = self.book.raised.get(alert.key)
        if before is not None and step in before.steps:
            return
        if alert.status == "resolved" and before is not None:
            # What has vanished is in no pool any more; its end must carry the labels of its beginning all the same.
            alert = replace(alert, labels=before.alert.labels)
        raised = raise_(before, alert, step, self.plan.flap)
        self.book.keep(raised)
        self._index(raised)
        interested = self._seats(raised)
        for channel in self.channels:
            if channel.kind is ChannelKind.ALERTMANAGER:
                self._stand(channel, raised, step, interested, range(len(channel.urls)))
            else:
                self._touch(channel, raised, interested.get(channel.name))
        self.book.commit()
        self.settle()
        self._woken.set()

    def knows(self, step: str, key: str) -> bool:
        raised = self.book.raised.get(key)
        return raised is not None and step in raised.steps

    def ack(self, name: str, by: str) -> list[str]:
        """Take on what fires under this alert key, incident or group. Returns the keys; [] = there is none."""
        found = [r for r in self.book.raised.values() if r.alert.status == "firing" and self._is(r, name)]
        now = self.clock()
        self.book.keep(*[replace(r, acked_by=by or "somebody", acked_at=now) for r in found])
        keys = {r.alert.key for r in found}
        holding = [b for b in self.book.bundles.values() if keys & (b.told.keys() | b.heard.keys())]
        self.book.keep(*[replace(b, next_at=min(b.next_at, now)) for b in holding])
        self.book.commit()
        self.settle()
        self._woken.set()
        return [r.alert.key for r in found]

    def names(self) -> list[str]:
        return [channel.name for channel in self.channels]

    def silences(self) -> Iterable[Silence]:
        """Silences and maintenance windows, over or not."""
        return (*self.book.silences.values(), *self.plan.windows)

    def silence(self, silence: Silence) -> None:
        self.book.keep(silence)
        self.book.commit()
        self.hushed()

    def unsilence(self, id: str) -> bool:
        """End a silence now; what it held back and still fires is told. False when there is none."""
        found = self.book.silences.get(id)
        now = self.clock()
        if found is None or found.end <= now:
            return False
        self.book.keep(replace(found, end=now))
        self.book.keep(*[replace(b, next_at=min(b.next_at, now)) for b in self.book.bundles.values()])
        self.book.commit()
        self.hushed()
        self.settle()
        self._woken.set()
        return True

    def test(self, channel: Channel) -> list[str]:
        """Put a message marked as a test, one for each address. Returns the letters' ids."""
        now = self.clock()
        letters = [
            letter_of(
                plain_message("test", channel, now), channel.name, n, f"test/{now:.3f}/{channel.name}/{n}"
            )
            for n in range(len(channel.urls))
        ]
        for letter in letters:
            self.outbox.put(letter)
        self.wake()
        return [letter.id for letter in letters]

    # -- what goes out ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Do what is due, until cancelled."""
        while True:
            self._woken.clear()
            self.settle()
            wait_s = min(IDLE_S, max(self.next_at() - self.clock(), 0.01))
            try:
                async with asyncio.timeout(wait_s):
                    await self._woken.wait()
            except TimeoutError:
                pass

    def next_at(self) -> float:
        """When something is due next, inf = nothing is."""
        beating = [c for c in self.channels if c.heartbeat_s] if self.alive() else []
        beats = [self._beat_at(c, n) for c in beating for n in range(len(c.urls))]
        return min([math.inf, *(b.next_at for b in self.book.bundles.values()), *beats])

    def settle(self) -> None:
        """Write the letters that are due now."""
        now = self.clock()
        has_put = self._beat(now)
        # A letter that is withdrawn may have been about several bundles: they are looked at again, once each.
        for _ in range(3):
            due = [b for b in self.book.bundles.values() if b.next_at <= now]
            if not due:
                break
            has_put = self._settle(due, now) or has_put
        if has_put:
            self.wake()

    def _settle(self, due: Sequence[Bundle], now: float) -> bool:
        drafts: defaultdict[tuple[str, int], list[tuple[Draft, Letter | None]]] = defaultdict(list)
        named = {channel.name: channel for channel in self.channels}
        for bundle in due:
            letter = self.outbox.get(bundle.letter) if bundle.letter else None
            channel = named[bundle.channel]
            members = self._of(bundle)
            quiet = [*self.silences()]
            vendor = VENDORS.get(channel.kind)
            hears_acks = vendor is not None and vendor.acknowledges
            looked = look(
                bundle, letter, members, quiet, self.plan.flap, channel.sends_resolved, now, hears_acks
            )
            if looked.withdraws and letter is not None:
                self._withdraw(letter, bundle, now)
            if looked.draft is not None:
                drafts[bundle.channel, bundle.address].append((looked.draft, letter))
            elif not looked.bundle.told and not looked.withdraws and math.isinf(looked.bundle.next_at):
                self._forget(looked.bundle, members)
            else:
                self.book.keep(looked.bundle)
        for (name, address), made in drafts.items():
            self._write(named[name], address, made, now)
        self.book.commit()
        return bool(drafts)

    def _write(
        self, channel: Channel, address: int, drafts: Sequence[tuple[Draft, Letter | None]], now: float
    ) -> None:
        """One letter a draft, or one for all of them when there are many."""
        vendor = VENDORS.get(channel.kind)
        is_digest = len(drafts) >= self.plan.digest_min and (vendor is None or vendor.digests)
        messages = [self._dressed(message_of(draft), now) for draft, _ in drafts]
        if is_digest:
            self._put(channel, address, digest_of(messages, now), drafts, now)
            return
        for message, draft in zip(messages, drafts, strict=True):
            self._put(channel, address, message, [draft], now)

    def _put(
        self,
        channel: Channel,
        address: int,
        message: Message,
        drafts: Sequence[tuple[Draft, Letter | None]],
        now: float,
    ) -> None:
        newest, _ = max(drafts, key=lambda d: max(r.alert.at for r in (*d[0].firing, *d[0].resolved)))
        id = f"{newest.step}/{channel.name}/{address}"
        if id in {draft.bundle.letter for draft, _ in drafts} or newest.kind in ("repeat", "acknowledged"):
            id += f"/{newest.bundle.count}"
        letter = letter_of(message, channel.name, address, id)
        # What takes the place of a letter that could not be delivered inherits how long that has been so.
        old = next(
            (o for _, o in drafts if o is not None and o.state in ("queued", "sending") and o.tries), None
        )
        if old is not None:
            letter = replace(letter, tries=old.tries, failing_since=old.failing_since, told=old.told)
        self.outbox.put(replace(letter, next_at=now))
        self.book.keep(*[replace(draft.bundle, letter=id) for draft, _ in drafts])

    def _dressed(self, message: Message, now: float) -> Message:
        """With what was done about it and the links."""
        incidents = dict.fromkeys(a.annotations.get("incident", "") for a in message.alerts[:3])
        deeds = [deed for incident in incidents if incident for deed in self.deeds(incident)]
        links = dict(self.links(message.key, now)) if message.status == "firing" else {}
        return replace(message, deeds=tuple(deeds[-5:]), links=links)

    def _withdraw(self, letter: Letter, bundle: Bundle, now: float) -> None:
        self.outbox.update(replace(letter, state="cancelled", error="out of date before it was delivered"))
        shared = [b for b in self.book.bundles.values() if b.letter == letter.id and b.id != bundle.id]
        self.book.keep(*[replace(b, next_at=now) for b in shared])

    # -- Alertmanager -----------------------------------------------------------------------------------

    def _stand(
        self,
        channel: Channel,
        raised: Raised,
        step: str,
        interested: Mapping[str, Seat],
        addresses: Iterable[int],
    ) -> None:
        """An Alertmanager hears of every alert by itself and again each minute: grouping is its own."""
        alert = raised.alert
        if alert.status == "firing":
            seat = interested.get(channel.name)
            if seat is None or seat.is_second:
                return
            repeat_until = math.inf
        else:
            repeat_until = alert.at + channel.resolve_s
        for address in addresses:
            message = single(alert)
            id = f"{step}/{channel.name}/{address}"
            post(self.outbox, letter_of(message, channel.name, address, id, repeat_until))
        self.wake()

    def _stands(self, channel: Channel, address: int, raised: Raised) -> bool:
        last = self.outbox.last(channel.name, address, raised.alert.key)
        return last is not None and last.state in ("queued", "sending", "standing")

    # -- who belongs where ------------------------------------------------------------------------------

    def _root(self) -> Route:
        return self.plan.root or Route(tuple(c.name for c in self.channels), pacing=self.plan.pacing)

    def _seats(self, raised: Raised) -> dict[str, Seat]:
        """Channels interested in an alert, those that take its severity."""
        least = {channel.name: RANK[channel.severity_min] for channel in self.channels}
        found = seats(self._root(), raised)
        rank = RANK[raised.alert.severity]
        return {name: seat for name, seat in found.items() if name in least and rank >= least[name]}

    def _index(self, raised: Raised) -> None:
        for seat in self._seats(raised).values():
            group, _ = group_of(raised, seat.pacing)
            for channel in self.channels:
                if channel.name == seat.channel:
                    for address in range(len(channel.urls)):
                        self._members[f"{channel.name}\t{address}\t{group}"].add(raised.alert.key)

    def _touch(self, channel: Channel, raised: Raised, seat: Seat | None) -> None:
        now = self.clock()
        for address in range(len(channel.urls)):
            if seat is not None:
                group, labels = group_of(raised, seat.pacing)
                blank = Bundle(channel.name, address, group, labels, math.inf)
                bundle = self.book.bundles.get(blank.id)
                if bundle is None and raised.alert.status == "resolved":
                    continue
                self.book.keep(touched(bundle, blank, raised, seat, self._is_pending(bundle), now))
            # A resolve goes wherever its firing went, whatever became of severity, routes and pool since.
            for bundle in self._holding(channel.name, address, raised.alert.key):
                lent = seat or Seat(channel.name, self.plan.pacing, now)
                self.book.keep(touched(bundle, bundle, raised, lent, self._is_pending(bundle), now))

    def _holding(self, channel: str, address: int, key: str) -> list[Bundle]:
        return [
            bundle
            for bundle in self.book.bundles.values()
            if (bundle.channel, bundle.address) == (channel, address)
            and (key in bundle.told or key in bundle.heard)
        ]

    def _is_pending(self, bundle: Bundle | None) -> bool:
        letter = self.outbox.get(bundle.letter) if bundle is not None and bundle.letter else None
        return letter is not None and letter.state in ("queued", "sending")

    def _of(self, bundle: Bundle) -> list[tuple[Raised, Seat | None]]:
        """The alerts of a bundle's group with the channel's interest in each."""
        keys = sorted(self._members[bundle.id] | bundle.told.keys() | bundle.heard.keys())
        found: list[tuple[Raised, Seat | None]] = []
        for key in keys:
            raised = self.book.raised.get(key)
            if raised is None:
                continue
            seat = self._seats(raised).get(bundle.channel)
            is_elsewhere = seat is not None and group_of(raised, seat.pacing)[0] != bundle.group
            found.append((raised, None if is_elsewhere else seat))
        return found

    def _forget(self, bundle: Bundle, members: Iterable[tuple[Raised, Seat | None]]) -> None:
        over = {r.alert.key for r, _ in members if r.alert.status == "resolved"}
        self._members[bundle.id] -= over
        if not self._members[bundle.id]:
            del self._members[bundle.id]
        self.book.drop(bundle)

    def _is(self, raised: Raised, name: str) -> bool:
        groups = {group_of(raised, seat.pacing)[0] for seat in self._seats(raised).values()}
        return name in (raised.alert.key, raised.alert.annotations.get("incident")) or name in groups

    # -- signs of life ----------------------------------------------------------------------------------

    def _beat_at(self, channel: Channel, address: int) -> float:
        last = self.outbox.get(f"{HEARTBEAT}/{channel.name}/{address}")
        return -math.inf if last is None else last.at + channel.heartbeat_s

    def _beat(self, now: float) -> bool:
        """Signs of life that are due, each in the place of the one before."""
        has_put = False
        for channel in self.channels:
            for address in range(len(channel.urls)) if channel.heartbeat_s else ():
                if self._beat_at(channel, address) > now or not self.alive():
                    continue
                id = f"{HEARTBEAT}/{channel.name}/{address}"
                before = self.outbox.get(id)
                letter = letter_of(plain_message(HEARTBEAT, channel, now), channel.name, address, id)
                if before is None:
                    self.outbox.put(letter)
                elif before.state != "sending":
                    kept = {"tries": before.tries, "failing_since": before.failing_since, "told": before.told}
                    is_new = before.state == "delivered"
                    self.outbox.update(letter if is_new else replace(letter, **kept))  # type: ignore[arg-type]
                has_put = True
        return has_put
