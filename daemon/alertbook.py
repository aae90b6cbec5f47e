"""The alerts, bundles and silences of one store, held in memory and written through."""

from __future__ import annotations

import json

from daemon.alerts import Bundle, Raised, Silence
from daemon.codec import decode, to_plain
from daemon.store import Store

RESOLVED_KEPT_S = 30 * 86_400.0
"""How long a resolved alert is remembered, for whoever asks. Judgement: a month."""

BOOK_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS alertbook (kind TEXT NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (kind, key))",
)


class AlertBook:
    """raised : by the alert's key. bundles, silences : by id. Whoever changes something calls `commit` after it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.raised: dict[str, Raised] = {}
        self.bundles: dict[str, Bundle] = {}
        self.silences: dict[str, Silence] = {}
        for kind, body in store.rows("SELECT kind, body FROM alertbook ORDER BY rowid"):
            value = json.loads(body)
            if kind == "raised":
                raised = decode(Raised, value)
                self.raised[raised.alert.key] = raised
            elif kind == "bundle":
                bundle = decode(Bundle, value)
                self.bundles[bundle.id] = bundle
            else:
                silence = decode(Silence, value)
                self.silences[silence.id] = silence

    def keep(self, *items: Raised | Bundle | Silence) -> None:
        """Remember each in place of what was known under its key."""
        rows = []
        for item in items:
            if isinstance(item, Raised):
                kind, key = "raised", item.alert.key
                self.raised[key] = item
            elif isinstance(item, Bundle):
                kind, key = "bundle", item.id
                self.bundles[key] = item
            else:
                kind, key = "silence", item.id
                self.silences[key] = item
            text = json.dumps(to_plain(item), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            rows.append((kind, key, text))
        self._store.write("INSERT OR REPLACE INTO alertbook VALUES (?, ?, ?)", rows, keep=True)

    def drop(self, *items: Bundle | Silence) -> None:
        for item in items:
            if isinstance(item, Bundle):
                self.bundles.pop(item.id, None)
            else:
                self.silences.pop(item.id, None)
        rows = [("bundle" if isinstance(item, Bundle) else "silence", item.id) for item in items]
        self._store.write("DELETE FROM alertbook WHERE kind = ? AND key = ?", rows, keep=True)

    def prune(self, at: float) -> None:
        """Forget what was resolved, and silences that were over, a month ago."""
        old = [
            key
            for key, raised in self.raised.items()
            if raised.alert.status == "resolved" and raised.alert.at < at - RESOLVED_KEPT_S
        ]
        for key in old:
            del self.raised[key]
        self._store.write("DELETE FROM alertbook WHERE kind = 'raised' AND key = ?", [(k,) for k in old])
        self.drop(*[s for s in self.silences.values() if s.end < at - RESOLVED_KEPT_S])

    def commit(self) -> None:
        """Make durable what was kept. In trouble the tick's own commit tries again; see `daemon.outbox`."""
        if self._store.healthy:
            self._store.commit()
