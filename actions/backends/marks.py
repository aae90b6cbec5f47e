"""What of a system is ours where the system itself has no place for a mark."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from daemon.model import Hopeless


@dataclass(frozen=True, slots=True)
class Mark:
    """step : id of the step that made the change. value : what it set, in the system's own words.

    before : what stood there while the change was under way, "" once it is made. Either may be found after a crash.
    """

    step: str
    value: str
    before: str = ""


@dataclass(frozen=True, slots=True)
class Marks:
    """A small JSON file, thing -> Mark, replaced as a whole so that a crash leaves the old one or the new one.

    It is read at every use: a few hundred lines at most, and nobody's memory is older than the disk.
    """

    path: Path

    def all(self) -> Mapping[str, Mark]:
        """Raises Hopeless for a file that cannot be read: without it nobody knows what is ours."""
        try:
            plain = json.loads(self.path.read_text())
            return {key: Mark(str(m["step"]), str(m["value"]), str(m["before"])) for key, m in plain.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise Hopeless(
                f"{self.path}: the ownership marks cannot be read ({error}); make it readable for this user, or "
                "put the servers back by hand and remove the file"
            ) from error

    def get(self, key: str) -> Mark | None:
        return self.all().get(key)

    def put(self, key: str, mark: Mark | None) -> None:
        """Set one mark, or with None take it away. Raises Hopeless when it cannot be written."""
        marks = dict(self.all())
        if marks.get(key) == mark:
            return
        marks.pop(key, None)
        if mark is not None:
            marks[key] = mark
        plain = {k: {"step": m.step, "value": m.value, "before": m.before} for k, m in sorted(marks.items())}
        replace_file(self.path, json.dumps(plain, indent=1) + "\n")


def replace_file(path: Path, text: str) -> None:
    """Write a file in one piece, with the mode of the one it replaces. Raises Hopeless with the remedy."""
    new = path.with_name(f".{path.name}.tidewarden")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new.open("w") as file:
            if path.exists():
                os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise Hopeless(
            f"{path} cannot be written: {error.strerror}; make its folder {path.parent} writable for this user"
        ) from error
