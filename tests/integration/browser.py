"""Drives a real Chromium over its DevTools protocol: open a page, click, type, read what it complained of."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp


@dataclass
class Browser:
    """complaints : errors of the console and of scripts. asked : every URL the pages asked for."""

    socket: aiohttp.ClientWebSocketResponse
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    _answers: dict[int, asyncio.Future[Any]] = field(default_factory=dict)
    _loaded: asyncio.Event = field(default_factory=asyncio.Event)
    _serial: int = 0

    async def listen(self) -> None:
        async for message in self.socket:
            body = json.loads(message.data)
            if "id" in body:
                self._answers.pop(body["id"]).set_result(body)
            method, given = body.get("method", ""), body.get("params", {})
            if method == "Page.loadEventFired":
                self._loaded.set()
            elif method == "Network.requestWillBeSent":
                self.asked.append(given["request"]["url"])
            elif method == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(given["exceptionDetails"]))
            elif method == "Log.entryAdded" and given["entry"]["level"] == "error":
                self.complaints.append(given["entry"]["text"])

    async def send(self, method: str, **params: Any) -> Any:
        self._serial += 1
        answer = self._answers[self._serial] = asyncio.get_running_loop().create_future()
        await self.socket.send_str(json.dumps({"id": self._serial, "method": method, "params": params}))
        body = await asyncio.wait_for(answer, 60)
        assert "error" not in body, body
        return body["result"]

    async def open(self, url: str) -> None:
        self._loaded.clear()
        await self.send("Page.navigate", url=url)
        await asyncio.wait_for(self._loaded.wait(), 60)

    async def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = await self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def text(self) -> str:
        return str(await self.run("document.body.innerText"))

    async def click(self, words: str) -> None:
        """Click the button that says just this, as a mouse would, and wait for the page it leads to.

        On a busy machine a page may still move under the pointer: a click that led nowhere is made again.
        """
        for wait_s in (10, 10, 40):
            place = await self.run(
                "(() => { const b = [...document.querySelectorAll('button')].find("
                f"b => b.innerText.trim() === {json.dumps(words)}); if (!b) return null; b.scrollIntoView("
                "{block: 'center'}); const r = b.getBoundingClientRect(); "
                "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
            )
            assert place is not None, f"no button says {words!r}"
            self._loaded.clear()
            for kind in ("mousePressed", "mouseReleased"):
                await self.send(
                    "Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1
                )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._loaded.wait(), wait_s)
                return
        raise TimeoutError(f"clicking {words!r} led nowhere")

    async def fill(self, field_id: str, text: str) -> None:
        """Type into a field, which gets the focus."""
        await self.run(f"document.getElementById({json.dumps(field_id)}).focus()")
        await self.send("Input.insertText", text=text)
        assert await self.run(f"document.getElementById({json.dumps(field_id)}).value") == text

    async def press(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                windowsVirtualKeyCode=code,
                text="\r" if key == "Enter" and kind == "keyDown" else "",
            )


@asynccontextmanager
async def browsing(chromium: str, folder: Path) -> AsyncIterator[Browser]:
    """A fresh Chromium with a profile of its own; stopped by its process id."""
    argv = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
        f"--user-data-dir={folder}/profile", "--window-size=1400,1200", "--remote-debugging-port=0", "about:blank",
    ]  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(60):
            async for line in process.stderr:
                if b"DevTools listening on" in line:
                    break
        port = line.decode().rpartition("127.0.0.1:")[2].partition("/")[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                page = next(p for p in await answer.json(content_type=None) if p["type"] == "page")
            async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                browser = Browser(socket)
                listener = asyncio.create_task(browser.listen())
                for domain in ("Page", "Runtime", "Network", "Log"):
                    await browser.send(f"{domain}.enable")
                yield browser
                listener.cancel()
    finally:
        process.terminate()
        await process.communicate()
