"""E-mail through a real SMTP server on this host: TLS, signing in, refusals, lost connections."""

from __future__ import annotations

import asyncio
import base64
import email
import email.policy
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from email.message import EmailMessage
from pathlib import Path

import pytest

from actions.carriers import Mail
from actions.channel import Channel, ChannelKind
from actions.dispatch import letter_of
from actions.letters import single
from actions.wire import NotSent, PerhapsSent
from daemon.alerts import Alert, Letter
from daemon.model import Severity

pytestmark = pytest.mark.integration


@dataclass
class Server:
    """A mail server that wants TLS and a password before it takes anything. answers : command -> what it says instead."""

    context: ssl.SSLContext
    answers: dict[str, str] = field(default_factory=dict)
    mails: list[EmailMessage] = field(default_factory=list)
    hangs_up: bool = False
    port: int = 0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_safe = writer.get_extra_info("ssl_object") is not None
        is_known = False

        async def say(text: str) -> None:
            writer.write(text.encode() + b"\r\n")
            await writer.drain()

        await say("220 mail.example ESMTP")
        while line := (await reader.readline()).decode().strip():
            word = line.split()[0].upper()
            if word in self.answers:
                await say(self.answers[word])
            elif word == "EHLO":
                await say(
                    f"250-mail.example\r\n250-{'AUTH PLAIN' if is_safe else 'STARTTLS'}\r\n250 8BITMIME"
                )
            elif word == "STARTTLS":
                await say("220 go ahead")
                await writer.start_tls(self.context)
                is_safe = True
            elif word == "AUTH":
                given = base64.b64decode(line.split()[2]).split(b"\0")[1:]
                is_known = is_safe and given == [b"warden", b"hush"]
                await say("235 welcome" if is_known else "535 5.7.8 authentication failed")
            elif word == "DATA" and is_known:
                await say("354 go ahead")
                text = b""
                while (row := await reader.readline()) != b".\r\n":
                    text += row.removeprefix(b".")
                if self.hangs_up:
                    break
                parsed = email.message_from_bytes(text, policy=email.policy.default)
                assert isinstance(parsed, EmailMessage)
                self.mails.append(parsed)
                await say("250 queued")
            elif word == "QUIT":
                await say("221 bye")
                break
            else:
                await say("250 ok" if is_known or word in ("RSET", "NOOP") else "530 authentication required")
        writer.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key", "-out", "cert"],
        cwd=tmp_path, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    (tmp_path / "password").write_text("hush\n")
    return tmp_path


@asynccontextmanager
async def serving(folder: Path, is_tls: bool = False, **answers: str) -> AsyncIterator[Server]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "cert", folder / "key")
    server = Server(context, answers)
    made = await asyncio.start_server(server.talk, "127.0.0.1", 0, ssl=context if is_tls else None)
    server.port = made.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        made.close()
        await made.wait_closed()


def channel(folder: Path, port: int, **changes: object) -> Channel:
    own = Channel(
        "mail",
        ChannelKind.EMAIL,
        (f"smtp://127.0.0.1:{port}",),
        secret_file=str(folder / "password"),
        user="warden",
        sender="tidewarden <tidewarden@example.org>",
        recipients=("on-call@example.org", "boss@example.org"),
        tls="starttls",
        ca_file=str(folder / "cert"),
        language="zh",
        timeout_s=5.0,
    )
    return replace(own, **changes)  # type: ignore[arg-type]


def letter() -> Letter:
    said = {"summary": "GPU 掉卡：gpu n03/gpu5", "description": "证据：xid 79"}
    alert = Alert(
        1_700_000_000.0, "prod / gpu_lost", "firing", Severity.CRITICAL, {"gpu": "n03/gpu5", "node": "n03", "cluster": "prod"},
        {}, 1_700_000_000.0, words={"en": said, "zh": said},
    )  # fmt: skip
    return letter_of(single(alert), "mail", 0, "s1/mail/0")


@pytest.mark.parametrize("tls", ["starttls", "tls"])
async def test_a_mail_arrives_encrypted_and_signed_in_with_the_host_in_its_subject(
    folder: Path, tls: str
) -> None:
    async with serving(folder, tls == "tls") as server:
        verdict = await Mail().carry(channel(folder, server.port, tls=tls), letter())

    (mail,) = server.mails
    assert verdict.failure == ""
    assert mail["Subject"] == "[严重] GPU 掉卡：gpu n03/gpu5（prod）"
    assert mail["To"] == "on-call@example.org, boss@example.org"
    assert mail["Message-ID"] == "<s1.mail.0@example.org>"
    assert mail["X-Priority"] == "1"
    assert "位置: gpu n03/gpu5，node n03" in mail.get_content()
    assert "证据: xid 79" in mail.get_content()


@pytest.mark.parametrize(
    ("answers", "says", "is_final"),
    [
        ({"RCPT": "550 5.1.1 no such user"}, "refuses the recipients: 550 5.1.1 no such user", True),
        ({"RCPT": "450 4.2.1 greylisted, come back"}, "450 4.2.1 greylisted", False),
        ({"AUTH": "535 5.7.8 bad"}, "check username and password_file", True),
        ({"MAIL": "452 4.3.1 disk full"}, "452 4.3.1 disk full", False),
        ({"STARTTLS": "454 no TLS now"}, "454", False),
        ({"EHLO": "250 mail.example"}, "cannot do what is asked", True),
    ],
)
async def test_a_refusal_is_read_as_the_server_means_it(
    folder: Path, answers: dict[str, str], says: str, is_final: bool
) -> None:
    async with serving(folder, **answers) as server:
        verdict = await Mail().carry(channel(folder, server.port), letter())

    assert says in verdict.failure
    assert verdict.is_final is is_final
    assert "hush" not in verdict.failure
    assert server.mails == []


async def test_a_server_without_the_right_certificate_gets_nothing(folder: Path) -> None:
    async with serving(folder) as server:
        verdict = await Mail().carry(channel(folder, server.port, ca_file=""), letter())

    assert "TLS with the mail server failed" in verdict.failure
    assert server.mails == []


async def test_nobody_there_is_not_sent_and_a_line_that_breaks_after_the_text_is_perhaps_sent(
    folder: Path, free_port: Callable[[], int]
) -> None:
    with pytest.raises(NotSent, match="mail server 127"):
        await Mail().carry(channel(folder, free_port()), letter())

    async with serving(folder) as server:
        server.hangs_up = True
        with pytest.raises(PerhapsSent, match="mail server 127"):
            await Mail().carry(channel(folder, server.port), letter())
