"""Writes a page for each runbook in both languages, for the day on which the daemon cannot serve them itself.

Run it after a change of daemon/web/runbooks.yaml, the patterns, the rules or the ladder:

    python docs/build_runbooks.py
"""

from __future__ import annotations

from pathlib import Path

from daemon.web.runbooks import LANGUAGES, NAMES, runbook

HERE = Path(__file__).parent
HEAD = "<!-- Written by docs/build_runbooks.py from daemon/web/runbooks.yaml, the patterns, the rules and the ladder. -->\n\n"
WORDS = {
    "en": ("What to do", "When it fires", "What the daemon does by itself, as far as its mode allows", "Ruled out before", "Runbooks"),
    "zh": ("怎么办", "何时触发", "守护进程自动执行（在模式允许时）", "已排除", "运行手册"),
}  # fmt: skip


def pages() -> dict[str, str]:
    """Path below docs/ -> text."""
    found = {}
    for language in LANGUAGES:
        lines = [f"# {WORDS[language][4]}", ""]
        for name in NAMES:
            found[f"{language}/runbooks/{name}.md"] = page(name, language)
            lines.append(f"- [{name}]({name}.md): {runbook(name, language)['title']}")
        found[f"{language}/runbooks/README.md"] = HEAD + "\n".join(lines) + "\n"
    return found


def page(name: str, language: str) -> str:
    data, (todo, fires, response, rejected, _) = runbook(name, language), WORDS[language]
    parts = [f"# {name}", f"**{data['title']}.** {data['meaning']}".strip(), f"## {todo}"]
    parts.append("\n".join(f"{n}. {s}" for n, s in enumerate((s for s in data["steps"] if s), 1)))
    for title, lines in ((fires, data["fires"]), (response, data["response"]), (rejected, data["rejected"])):
        if lines:
            parts += [f"## {title}", "\n".join(f"- {line}" for line in lines)]
    return HEAD + "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    for name, text in pages().items():
        path = HERE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
