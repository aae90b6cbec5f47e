"""Times our page reader against the client library's parser on the bodies of a folder; prints JSON.

Usage: python -m bench.exposition FOLDER [--repeats N]
Microseconds a body, best of N in one process run: ratios hold across machines, absolute figures do not.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from daemon.telemetry.catalogue import load_catalogue
from daemon.telemetry.exposition import Page


def best_us(function: Callable[[], object], repeats: int) -> float:
    """Shortest of `repeats` runs in microseconds: the machine's other work only ever adds."""
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        found.append(time.perf_counter() - began)
    return min(found) * 1e6


def measure(path: Path, repeats: int) -> dict[str, object]:
    catalogue = load_catalogue()
    body = path.read_bytes()
    text = body.decode()
    everything, kept = Page(), Page(catalogue.wanted, catalogue.keep)
    all_keys = len(everything.parse(body).keys)
    kept_keys = len(kept.parse(body).keys)
    client = best_us(
        lambda: sum(len(f.samples) for f in text_string_to_metric_families(text)), max(3, repeats // 20)
    )
    learn = best_us(lambda: Page(catalogue.wanted, catalogue.keep).parse(body), max(3, repeats // 20))
    ours_all = best_us(lambda: everything.parse(body), repeats)
    ours_kept = best_us(lambda: kept.parse(body), repeats)
    if everything.learned_total != 1 or kept.learned_total != 1:
        raise SystemExit(f"{path.name}: the layout was learned again on an unchanged body")
    return {
        "body": path.name,
        "bytes": len(body),
        "samples": all_keys,
        "samples_kept": kept_keys,
        "client_library_us": round(client, 1),
        "ours_learning_us": round(learn, 1),
        "ours_all_us": round(ours_all, 1),
        "ours_kept_us": round(ours_kept, 1),
        "ratio_all": round(client / ours_all, 1),
        "ratio_kept": round(client / ours_kept, 1),
    }


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path, help="folder with *.txt exposition bodies")
    arguments.add_argument("--repeats", type=int, default=200)
    given = arguments.parse_args()
    bodies = sorted(given.folder.glob("*.txt"))
    if not bodies:
        print(f"no *.txt in {given.folder}", file=sys.stderr)
        return 2
    json.dump([measure(path, given.repeats) for path in bodies], sys.stdout, indent=1)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
