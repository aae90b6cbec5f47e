"""Reads the text that exporters answer with, learning each target's layout once.

An exporter writes the same series in the same order scrape after scrape; only the values change. `Page` remembers
where the values of the wanted series stand and, while the texts around them are unchanged, reads nothing else.
Source of the method: bench/exposition.py (its figures beside the client library).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from daemon.model import NAN, Array

Labels = tuple[tuple[str, str], ...]

NAME = re.compile(rb"[a-zA-Z_:][a-zA-Z0-9_:]*")
_QUOTED = rb'"([^"\\]*(?:\\.[^"\\]*)*)"'
_PAIR = re.compile(
    rb"[ \t]*(?:([a-zA-Z_][a-zA-Z0-9_]*)|" + _QUOTED + rb")[ \t]*(?:=[ \t]*" + _QUOTED + rb")?[ \t]*"
)
_VALUE = re.compile(
    rb"[ \t]*([^ \t\r]+)(?:[ \t]+-?[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?)?[ \t]*(?:#[ \t]+\{.*)?\r?"
)
_ESCAPE = re.compile(r'\\[\\n"]')
_ESCAPES = {"\\\\": "\\", "\\n": "\n", '\\"': '"'}

ROTATION = 16
"""An unwanted line is compared at two places in every scrape, whole in one of this many. Judgement: 4 min at 15 s."""


class Key(NamedTuple):
    """One series. labels : sorted by name, without the metric's own name."""

    metric: str
    labels: Labels


class Reading(NamedTuple):
    """One body. keys : the same object while the series are unchanged. values : (key,), NaN = written so or unreadable.

    dropped : lines that should have been samples but could not be read, repeats of a series included.
    """

    keys: tuple[Key, ...]
    values: Array
    dropped: int


def read_line(line: bytes) -> tuple[Key, int] | None:
    """The series of one line with the offset at which its value begins; None when it cannot be read."""
    start = len(line) - len(line.lstrip(b" \t"))
    found = NAME.match(line, start)
    metric = found.group().decode() if found else ""
    at = _skip_blank(line, found.end() if found else start)
    labels: dict[str, str] = {}
    if at < len(line) and line[at] == 0x7B:  # {
        end = _read_labels(line, at + 1, labels)
        if end < 0:
            return None
        at, metric = end, metric or labels.pop("", "")
    elif found and at == found.end():
        return None
    if not metric or "" in labels:
        return None
    pairs = tuple(sorted((sys.intern(k), sys.intern(v)) for k, v in labels.items()))
    return Key(sys.intern(metric), pairs), _skip_blank(line, at)


def _skip_blank(line: bytes, at: int) -> int:
    while at < len(line) and line[at] in b" \t":
        at += 1
    return at


def _read_labels(line: bytes, at: int, labels: dict[str, str]) -> int:
    """Fill `labels` and return the offset behind the closing brace, -1 for a bad list. A bare "x" is the name, key ""."""
    while True:
        at = _skip_blank(line, at)
        if line[at : at + 1] == b"}":
            return at + 1
        pair = _PAIR.match(line, at)
        if pair is None:
            return -1
        plain, quoted, value = pair.groups()
        if value is None and quoted is None:
            return -1
        try:
            name = "" if value is None else (plain.decode() if plain else _unescape(quoted))
            text = _unescape(quoted if value is None else value)
        except UnicodeDecodeError:
            return -1
        if name in labels:
            return -1
        labels[name] = text
        at = pair.end()
        if line[at : at + 1] == b",":
            at += 1
        elif line[at : at + 1] != b"}":
            return -1


def _unescape(raw: bytes) -> str:
    text = raw.decode("utf-8")
    return _ESCAPE.sub(lambda m: _ESCAPES[m.group()], text) if "\\" in text else text


def read_value(text: bytes) -> float | None:
    """The number of `value [timestamp] [# exemplar]`; None when there is none."""
    found = _VALUE.fullmatch(text)
    if found is None or b"_" in found.group(1):
        return None
    try:
        return float(found.group(1))
    except ValueError:
        return None


@dataclass(slots=True)
class _Learned:
    """Where the wanted values of one target stand, with what must still be there for that to hold.

    rows, prefixes, widths, order : a wanted line's number, its text up to the value, the length of that text and its
    slot in keys. other* : the lines whose value nobody wants: number, two 8-byte words with their offsets,
    length of the text and its hash. short* : those too short for a word. bad : unreadable lines.
    """

    lines: int
    keys: tuple[Key, ...]
    rows: NDArray[np.intp]
    prefixes: list[bytes]
    widths: NDArray[np.intp]
    order: NDArray[np.intp]
    other_rows: NDArray[np.intp]
    other_offsets: NDArray[np.intp]
    other_words: NDArray[np.uint64]
    other_widths: list[int]
    other_hashes: list[int]
    short_rows: NDArray[np.intp]
    short_texts: list[bytes]
    bad: int


class Page:
    """The reader of one target's bodies; keep one per target.

    wanted : tells by the metric's name which series may be kept; None keeps all. keep : tells for one of those by
    its labels; None keeps all. Lines of other series are not validated, only compared with what stood there before,
    so that a wanted series in their place is noticed.
    """

    def __init__(
        self, wanted: Callable[[str], bool] | None = None, keep: Callable[[Key], bool] | None = None
    ) -> None:
        self._wanted = wanted
        self._keep = keep
        self._learned: _Learned | None = None
        self._turn = 0
        self.learned_total = 0

    def parse(self, body: bytes) -> Reading:
        """Read one body. Raises nothing: what cannot be read is counted. A line without its newline was cut: dropped."""
        cut = 0
        if body and body[-1] != 10:
            kept = body.rfind(b"\n") + 1
            cut = int(body[kept : kept + 1] not in (b"#", b""))
            body = body[:kept]
        ends = np.flatnonzero(np.frombuffer(body, np.uint8) == 10)
        starts = np.empty_like(ends)
        starts[:1] = 0
        np.add(ends[:-1], 1, out=starts[1:])
        known = self._learned
        if known is None or not self._unchanged(known, body, starts):
            known = self._learned = self._learn(body, known)
            self.learned_total += 1
        values, bad = _values(known, body, starts, ends)
        return Reading(known.keys, values, known.bad + bad + cut)

    def _unchanged(self, known: _Learned, body: bytes, starts: NDArray[np.intp]) -> bool:
        if len(starts) != known.lines:
            return False
        if not all(map(body.startswith, known.prefixes, starts[known.rows].tolist())):
            return False
        if not all(map(body.startswith, known.short_texts, starts[known.short_rows].tolist())):
            return False
        if not len(known.other_rows):
            return True
        begins = starts[known.other_rows]
        if int(begins[-1]) + known.other_widths[-1] > len(body):
            return False
        # Every offset + 8 lies within the learned text; a body that shrank may still end before it.
        places = begins + known.other_offsets
        if int(places.max()) + 8 > len(body):
            return False
        words: NDArray[np.uint64] = np.ndarray((len(body) - 7,), np.uint64, body, 0, (1,))
        if not np.array_equal(words[places], known.other_words):
            return False
        self._turn = (self._turn + 1) % ROTATION
        turn = slice(self._turn, None, ROTATION)
        return all(
            hash(body[a : a + n]) == h
            for a, n, h in zip(
                begins[turn].tolist(), known.other_widths[turn], known.other_hashes[turn], strict=True
            )
        )

    def _learn(self, body: bytes, before: _Learned | None) -> _Learned:
        seen: dict[Key, int] = {}
        wanted: list[tuple[int, bytes, int]] = []
        other: list[tuple[int, bytes, int]] = []
        names: dict[bytes, bool] = {}
        bad = 0
        lines = body.split(b"\n")[:-1]
        for row, line in enumerate(lines):
            name = NAME.match(line)
            if line[:1] == b"#" or (name and not self._wants(name.group(), names)):
                other.append((row, _fixed_text(line, name), name.end() if name else len(line)))
                continue
            if line.strip()[:1] in (b"", b"#"):
                other.append((row, line + b"\n", len(line)))
                continue
            read = read_line(line)
            text = line[: read[1]] if read else _unread_text(line)
            if read is None or read[0] in seen:
                bad += 1
                other.append((row, text, len(text)))
            elif self._keeps(read[0]):
                wanted.append((row, text, seen.setdefault(read[0], len(seen))))
            else:
                other.append((row, text, len(text)))
        return _assemble(len(lines), tuple(seen), wanted, other, bad, before)

    def _keeps(self, key: Key) -> bool:
        return (self._wanted is None or self._wanted(key.metric)) and (self._keep is None or self._keep(key))

    def _wants(self, name: bytes, names: dict[bytes, bool]) -> bool:
        answer = names.get(name)
        if answer is None:
            answer = names[name] = self._wanted is None or self._wanted(name.decode())
        return answer


def _fixed_text(line: bytes, name: re.Match[bytes] | None) -> bytes:
    """The part of an unwanted line that stays the same from scrape to scrape."""
    if name is None:
        return line + b"\n"
    if line[name.end() : name.end() + 1] != b"{":
        return (line + b"\n")[: name.end() + 1]
    if b" # {" in line:  # an exemplar has braces of its own
        read = read_line(line)
        return line[: read[1]] if read else _unread_text(line)
    return line[: line.rfind(b"}") + 1] or _unread_text(line)


def _unread_text(line: bytes) -> bytes:
    """What to remember of a line that cannot be read: all but its last word, which may be a value that changes."""
    return line[: line.rfind(b" ") + 1] or line + b"\n"


def _assemble(
    lines: int,
    keys: tuple[Key, ...],
    wanted: list[tuple[int, bytes, int]],
    other: list[tuple[int, bytes, int]],
    bad: int,
    before: _Learned | None,
) -> _Learned:
    slots = [slot for _, _, slot in wanted]
    if before is not None and len(before.keys) == len(keys) and (place := _same_series(before.keys, keys)):
        keys, slots = before.keys, [place[slot] for slot in slots]
    long = [(row, text, name_end) for row, text, name_end in other if len(text) >= 8]
    short = [(row, text) for row, text, _ in other if 0 < len(text) < 8]
    offsets = [
        [max(0, min(name_end, len(text)) - 8) for _, text, name_end in long],
        [len(t) - 8 for _, t, _ in long],
    ]
    words = [[text[o : o + 8] for (_, text, _), o in zip(long, row, strict=True)] for row in offsets]
    return _Learned(
        lines=lines,
        keys=keys,
        rows=_index([row for row, _, _ in wanted]),
        prefixes=[text for _, text, _ in wanted],
        widths=_index([len(text) for _, text, _ in wanted]),
        order=_index(slots),
        other_rows=_index([row for row, _, _ in long]),
        other_offsets=np.array(offsets, np.intp).reshape(2, len(long)),
        other_words=np.frombuffer(b"".join(words[0] + words[1]), np.uint64).reshape(2, len(long)),
        other_widths=[len(text) for _, text, _ in long],
        other_hashes=[hash(text) for _, text, _ in long],
        short_rows=_index([row for row, _ in short]),
        short_texts=[text for _, text in short],
        bad=bad,
    )


def _same_series(before: tuple[Key, ...], keys: tuple[Key, ...]) -> dict[int, int] | None:
    """New slot -> old slot when the series are the same in another order (exporters that walk a hash map)."""
    if before == keys:
        return {slot: slot for slot in range(len(keys))}
    places = {key: slot for slot, key in enumerate(before)}
    moved = {slot: places[key] for slot, key in enumerate(keys) if key in places}
    return moved if len(moved) == len(keys) else None


def _index(numbers: list[int]) -> NDArray[np.intp]:
    return np.array(numbers, np.intp)


def _values(known: _Learned, body: bytes, starts: NDArray[Any], ends: NDArray[Any]) -> tuple[Array, int]:
    """(key,) values of a body whose layout is known, with the number that could not be read."""
    begins = (starts[known.rows] + known.widths).tolist()
    texts = list(map(body.__getitem__, map(slice, begins, ends[known.rows].tolist())))
    values = np.empty(len(texts))
    try:
        # An underscore is a digit separator to float() and no number to any exporter.
        if b"_" in b"".join(texts):
            raise ValueError
        values[known.order] = list(map(float, texts))
        return values, 0
    except ValueError:
        numbers = [read_value(text) for text in texts]
    values[known.order] = [NAN if number is None else number for number in numbers]
    return values, sum(number is None for number in numbers)
