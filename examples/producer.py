"""A producer with nothing but the standard library: subscribe an endpoint, post an event, follow what becomes of it.

HOOKPOST_URL=http://127.0.0.1:8080 HOOKPOST_API_KEY=hpk_… python examples/producer.py http://127.0.0.1:9000/hooks
"""

import json
import os
import sys
import time
import urllib.request

URL, KEY = os.environ.get("HOOKPOST_URL", "http://127.0.0.1:8080"), os.environ["HOOKPOST_API_KEY"]


def call(method: str, path: str, body=None):
    request = urllib.request.Request(
        URL + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"authorization": f"Bearer {KEY}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


if len(sys.argv) > 1:
    endpoint = call("POST", "/v1/webhook_endpoints", {"url": sys.argv[1], "events": ["invoice.*"]})
    print("secret", endpoint["secret"], flush=True)

# The key makes it safe to post again whenever the answer was lost: the event is stored and delivered once.
event = {"type": "invoice.paid", "payload": {"invoice": 42, "amount": "99.90"}, "idempotency_key": "invoice-42-paid"}
event_id = call("POST", "/v1/events", event)["event_id"]
assert call("POST", "/v1/events", event) == {"event_id": event_id, "delivery_count": 1, "duplicate": True}

while (state := call("GET", f"/v1/events/{event_id}"))["status"] == "pending":
    time.sleep(0.2)
print(state["status"])
for attempt in call("GET", f"/v1/deliveries?event_id={event_id}")["data"]:
    print(attempt["outcome"], attempt["http_status"], f"{attempt['latency_ms']} ms")
