"""Mail: one message to one recipient through the operator's SMTP server; the standard library's client in a thread.

Relies on the server to deliver what it accepts. Promises: a refusal, a timeout or a lost connection comes out as
MailError with what the server said; a connection that was to be encrypted is never used when it is not.
"""

from __future__ import annotations

import asyncio
import smtplib
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Literal

# For each answer of the server; it has a handful to give.
TIMEOUT_S = 10.0

Security = Literal["starttls", "tls", "none"]


class MailError(Exception):
    """The server did not take the message. ``final``: it will not take it later either (RFC 5321 §4.2.1, 5yz)."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


@dataclass(frozen=True, slots=True)
class MailServer:
    """The operator's SMTP server and whom messages come from; ``ca_file`` says whose certificates it may show."""

    host: str
    port: int
    sender: str
    security: Security
    ca_file: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)


async def send_mail(
    server: MailServer, recipient: str, *, message_id: str, subject: str, text: str, now: float
) -> None:
    """Hand the message over; raises MailError. The same message has the same id, so that a repeated one is known."""
    try:
        message = _message(server.sender, recipient, message_id, subject, text, now)
        await asyncio.to_thread(_hand_over, server, message)
    except smtplib.SMTPRecipientsRefused as error:
        code, reason = next(iter(error.recipients.values()))
        raise MailError(f"{code} {reason.decode(errors='replace')}", final=code >= 500) from error
    except ValueError as error:
        raise MailError(f"{recipient} cannot be written to: {error}", final=True) from error
    except (smtplib.SMTPException, OSError) as error:
        raise MailError(f"{type(error).__name__} {error}") from error


def _message(sender: str, recipient: str, message_id: str, subject: str, text: str, now: float) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, recipient, subject
    message["Date"] = format_datetime(datetime.fromtimestamp(now, UTC))
    message["Message-ID"] = f"<{message_id}@{sender.rpartition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody's absence note is an answer to it
    message.set_content(text)
    return message


def _hand_over(server: MailServer, message: EmailMessage) -> None:
    trust = ssl.create_default_context(cafile=server.ca_file)
    client: smtplib.SMTP
    if server.security == "tls":
        client = smtplib.SMTP_SSL(server.host, server.port, timeout=TIMEOUT_S, context=trust)
    else:
        client = smtplib.SMTP(server.host, server.port, timeout=TIMEOUT_S)
    with client:
        if server.security == "starttls":
            client.starttls(context=trust)
        if server.user is not None:
            client.login(server.user, server.password or "")
        client.send_message(message)
