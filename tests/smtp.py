"""An SMTP server on loopback that keeps what it is given, or refuses as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import cast

from tests.patience import PATIENCE_S


@dataclass
class Mailbox:
    """``refusal`` is the answer to RCPT TO instead of 250; ``recipients`` are those that were named. A mail whose sender
    did not wait for our answer comes again, and is the same by its Message-ID."""

    port: int = 0
    refusal: str = ""
    recipients: list[str] = field(default_factory=list)
    messages: list[EmailMessage] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def subjects(self, recipient: str) -> list[str]:
        mails = {str(mail["Message-ID"]): str(mail["Subject"]) for mail in self.messages if mail["To"] == recipient}
        return sorted(mails.values())

    async def until(self, recipient: str, count: int, *, timeout_s: float = PATIENCE_S) -> None:
        async with asyncio.timeout(timeout_s), self.changed:
            await self.changed.wait_for(lambda: len(self.subjects(recipient)) >= count)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 here\r\n")
        while line := (await reader.readline()).decode().strip():
            verb = line.upper().partition(" ")[0]
            if verb == "DATA":
                writer.write(b"354 go on\r\n")
                raw = await reader.readuntil(b"\r\n.\r\n")
                self.messages.append(cast(EmailMessage, message_from_bytes(raw[:-3], policy=policy.default)))
                async with self.changed:
                    self.changed.notify_all()
            if verb == "RCPT":
                self.recipients.append(line)
            answer = self.refusal if verb == "RCPT" and self.refusal else "221 bye" if verb == "QUIT" else "250 ok"
            writer.write(answer.encode() + b"\r\n")
            if verb == "QUIT":
                break
        writer.close()


@asynccontextmanager
async def mailbox() -> AsyncIterator[Mailbox]:
    """A server that takes mail in the clear."""
    box = Mailbox()
    server = await asyncio.start_server(box.serve, "127.0.0.1", 0)
    box.port = server.sockets[0].getsockname()[1]
    try:
        yield box
    finally:
        server.close()
