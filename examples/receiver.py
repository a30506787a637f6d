"""A webhook receiver with nothing but the standard library: verifies, deduplicates, answers, and signs its answer.

Run it with the secret that creating the endpoint printed:

    HOOKPOST_SECRET=whsec_… python examples/receiver.py 9000
"""

import base64
import hashlib
import hmac
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = base64.b64decode(os.environ["HOOKPOST_SECRET"].removeprefix("whsec_"))
TOLERANCE_S = 300
seen: set[str] = set()  # a real receiver keeps these in its database, in the transaction that handles the event


def sign(headers, body: bytes) -> str:
    """Standard Webhooks: HMAC-SHA256 over the id and the timestamp of this attempt, and a body."""
    message_id, timestamp = headers["webhook-id"], headers["webhook-timestamp"]
    digest = hmac.digest(KEY, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return "v1," + base64.b64encode(digest).decode()


def is_valid(headers, body: bytes) -> bool:
    """The raw body, byte for byte; one signature of several may be ours."""
    if abs(time.time() - int(headers["webhook-timestamp"])) > TOLERANCE_S:
        return False
    expected = sign(headers, body)
    return any(hmac.compare_digest(expected, given) for given in headers["webhook-signature"].split(" "))


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if not is_valid(self.headers, body):
            self.send_response(401)
        else:
            if self.headers["webhook-id"] not in seen:
                seen.add(self.headers["webhook-id"])
                print(self.headers["x-webhook-event-type"], body.decode(), flush=True)
            self.send_response(204)
            # For an endpoint with `"ack": "signed"`: only who knows the secret can say that the event has arrived.
            self.send_header("webhook-ack", sign(self.headers, b"ack"))
        self.end_headers()

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 9000), Handler)
    print(f"listening on port {server.server_port}", flush=True)
    server.serve_forever()
