"""Draws who holds the GPUs and who may take from whom, one lane a kind of work, as inline SVG."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup, escape

WIDTH, LANE, GAP, LEFT, RIGHT = 960, 30, 26, 132, 300


def drawing(
    lanes: Sequence[dict[str, Any]], takes: Sequence[dict[str, Any]], gpus: int, words: Callable[..., str]
) -> Markup:
    """lanes : kind, gpus, gpus_spot and holders [(name, GPUs)], from what goes last to what is taken first. takes : from, to, gpus
    and text of each arrow. "" without a GPU."""
    if not gpus:
        return Markup("")
    room = WIDTH - LEFT - RIGHT
    top = {lane["kind"]: k * (LANE + GAP) + 6 for k, lane in enumerate(lanes)}
    height = len(lanes) * (LANE + GAP)
    parts = [
        f'<svg class="lanes" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(words("GPUs by kind of work"))}">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z"/></marker></defs>',
    ]
    for lane in lanes:
        y = top[lane["kind"]]
        parts.append(f'<text x="0" y="{y + 13}" class="name">{escape(words(lane["kind"]))}</text>')
        parts.append(f'<text x="0" y="{y + 27}" class="soft">{lane["gpus"]:g} GPUs</text>')
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{room}" height="{LANE}" class="rail"/>')
        x = float(LEFT)
        for name, count in lane["holders"]:
            width = room * count / gpus
            told = f"{escape(name)}: {count:g} GPUs"
            parts.append(
                f'<g><title>{told}</title><rect x="{x:.1f}" y="{y}" width="{max(0.0, width - 1):.1f}" height="{LANE}" class="{_css(lane["kind"])}"/>'
            )
            # A letter is about seven pixels wide; a name that does not fit is told by the title.
            if width > 7 * len(name) + 8:
                parts.append(f'<text x="{x + 6:.1f}" y="{y + 19}" class="in">{escape(name)}</text>')
            parts.append("</g>")
            x += width
        if lane["gpus_spot"]:
            width = room * lane["gpus_spot"] / gpus
            told = escape(words("{n} on spot nodes", n=f"{lane['gpus_spot']:g}"))
            parts.append(
                f'<g><title>{told}</title><rect x="{x - width:.1f}" y="{y + LANE - 5}" width="{width:.1f}" height="5" class="spot"/></g>'
            )
    starts: Counter[str] = Counter()
    for k, take in enumerate(takes):
        nth = starts[take["from"]]
        starts[take["from"]] += 1
        x = WIDTH - RIGHT + 12 + 9 * k
        low = top[take["from"]] + 8 + 14 * nth
        # Each arrow ends a little further down than the one before it, so that two at one lane can be told apart.
        high = top[take["to"]] + 5 + 6 * k
        css = "now" if take["is_now"] else "may"
        parts.append(
            f'<path class="take {css}" marker-end="url(#tip)" d="M{WIDTH - RIGHT} {low}H{x}V{high}H{WIDTH - RIGHT + 2}"/>'
        )
        text = f"{take['gpus']:g} GPUs: {words(take['text'])}" if take["gpus"] else words(take["text"])
        parts.append(f'<text x="{WIDTH - RIGHT + 56}" y="{low + 4}" class="soft">{escape(text)}</text>')
    return Markup("".join([*parts, "</svg>"]))  # every name went through escape


def _css(kind: str) -> str:
    return "lane-" + kind.split()[0].replace("-", "")
