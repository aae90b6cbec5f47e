"""Ways to deliver a letter that are no HTTP: e-mail, and the daemon's own MQTT connection."""

from __future__ import annotations

import asyncio
import json
import smtplib
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate
from urllib.parse import urlsplit

from actions.channel import Channel, secret_of
from actions.channels.webhook import webhook_body
from actions.texts import plain, text_of
from actions.wire import NotSent, PerhapsSent, Verdict
from daemon.alerts import Letter


@dataclass(frozen=True, slots=True)
class Mqtt:
    """Publishes a letter as JSON, in the shape of the webhook.

    publish : (topic below the cluster's, payload), returns once the broker has taken it; raises one of `away` when there
    is no connection, anything of `unclear` when it broke on the way.
    """

    publish: Callable[[str, str], Awaitable[None]]
    away: type[Exception]
    unclear: type[Exception]

    async def carry(self, channel: Channel, letter: Letter) -> Verdict:
        body = webhook_body(letter.message, channel.name, channel.language, letter.perhaps).strip()
        text = text_of(letter.message, channel.language, channel.zone, letter.perhaps)
        shown = {**json.loads(body), "title": text.title, "delivery": letter.id}
        try:
            async with asyncio.timeout(channel.timeout_s):
                await self.publish(channel.topic, json.dumps(shown, ensure_ascii=False))
        except self.away as error:
            raise NotSent(str(error)) from error
        except TimeoutError as error:
            raise PerhapsSent(f"the broker did not confirm within {channel.timeout_s:g} s") from error
        except self.unclear as error:
            raise PerhapsSent(str(error)) from error
        return Verdict()


class Mail:
    """E-mail over SMTP, one connection a message, in a thread of its own."""

    async def carry(self, channel: Channel, letter: Letter) -> Verdict:
        # The thread ends by its own time-outs: each of a handful of exchanges has one.
        return await asyncio.to_thread(send, channel, letter)


def mail_of(channel: Channel, letter: Letter) -> EmailMessage:
    """The letter as a mail. Its id is the letter's, so that a repeat is recognised; a group is one thread."""
    text = text_of(letter.message, channel.language, channel.zone, letter.perhaps)
    mail = EmailMessage()
    mail["Subject"] = text.title.replace("\n", " ")
    mail["From"] = channel.sender
    mail["To"] = ", ".join(channel.recipients)
    mail["Date"] = formatdate(letter.at, localtime=False)
    domain = channel.sender.rpartition("@")[2].rstrip(">") or "tidewarden"
    mail["Message-ID"] = f"<{_atom(letter.id)}@{domain}>"
    mail["References"] = f"<group.{_atom(letter.key)}@{domain}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail["X-Priority"] = "1" if letter.severity.value == "critical" and letter.status == "firing" else "3"
    mail["X-Tidewarden-Delivery"] = letter.id
    mail.set_content(plain(text))
    return mail


def _atom(text: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "." for c in text)


def send(channel: Channel, letter: Letter) -> Verdict:
    """Hand one mail to the server; blocks. A 4xx answer may be tried again, a 5xx not."""
    parts = urlsplit(channel.urls[letter.address])
    host, port = parts.hostname or "", parts.port or 587
    is_handed = False
    try:
        context = ssl.create_default_context(cafile=channel.ca_file or None)
        with _connected(channel, host, port, context) as server:
            if channel.user:
                server.login(channel.user, secret_of(channel))
            mail = mail_of(channel, letter)
            is_handed = True
            refused = server.send_message(mail, channel.sender, list(channel.recipients))
    except smtplib.SMTPRecipientsRefused as error:
        code, answer = next(iter(error.recipients.values()))
        return _refusal("the recipients", code, answer)
    except smtplib.SMTPResponseException as error:
        return _refusal(type(error).__name__.removeprefix("SMTP"), error.smtp_code, error.smtp_error)
    except smtplib.SMTPNotSupportedError as error:
        return Verdict(
            f"the mail server cannot do what is asked: {error} (check tls and username)", True, False
        )
    except ssl.SSLError as error:
        return Verdict(
            f"TLS with the mail server failed: {error} (check tls, port and ca_file)", False, False
        )
    except (smtplib.SMTPException, OSError) as error:
        said = f"mail server {host}:{port}: {error}"
        if is_handed:
            raise PerhapsSent(said) from error
        raise NotSent(said) from error
    if refused:
        names = ", ".join(sorted(refused))
        return Verdict(f"the mail went to some, and the server refused {names}", is_final=True)
    return Verdict()


def _connected(channel: Channel, host: str, port: int, context: ssl.SSLContext) -> smtplib.SMTP:
    if channel.tls == "tls":
        return smtplib.SMTP_SSL(host, port, timeout=channel.timeout_s, context=context)
    server = smtplib.SMTP(host, port, timeout=channel.timeout_s)
    if channel.tls == "starttls":
        try:
            server.starttls(context=context)
        except (smtplib.SMTPException, OSError):
            server.close()
            raise
    return server


def _refusal(what: str, code: int, said: bytes | str) -> Verdict:
    text = said.decode(errors="replace") if isinstance(said, bytes) else said
    hint = " (check username and password_file)" if code in (530, 534, 535) else ""
    return Verdict(
        f"the mail server refuses {what}: {code} {text}{hint}", is_final=code >= 500, has_arrived=False
    )
