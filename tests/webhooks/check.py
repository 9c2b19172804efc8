"""Receives webhooks of a running service, and verifies each with the official library of Standard Webhooks for Python.

Usage: check.py BASE_URL ADMIN_TOKEN
"""

import http.server
import json
import sys
import threading
import urllib.request

from standardwebhooks import Webhook, WebhookVerificationError

# Seconds; long, because the machine may stall.
TIMEOUT_S = 120

base, token = sys.argv[1:]
arrived = threading.Condition()
requests = []


class Receiver(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        with arrived:
            requests.append((body, dict(self.headers.items())))
            arrived.notify_all()
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def call(method, path, body=None):
    request = urllib.request.Request(base + path, method=method, data=None if body is None else json.dumps(body).encode())
    request.add_header("authorization", f"Bearer {token}")
    request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
        return json.loads(reply.read() or b"null")


def received(count):
    """Waits for that many requests, and takes them."""
    with arrived:
        if not arrived.wait_for(lambda: len(requests) >= count, TIMEOUT_S):
            raise SystemExit(f"{len(requests)} of {count} requests arrived")
        taken = requests[:]
        requests.clear()
    return taken


def is_valid(secret, body, headers):
    try:
        Webhook(secret).verify(body, headers)
    except WebhookVerificationError:
        return False
    return True


def check(what, holds):
    if not holds:
        raise SystemExit(f"not so: {what}")


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/hook"
created = call("POST", "/admin/v1/webhooks", {"url": url, "types": ["user.created", "balance.charged"]})
secret, webhook = created["secret"], created["webhookId"]

user = call("POST", "/admin/v1/users", {"userName": "홍길동"})["userId"]
for amount in range(1, 20):
    call("PUT", f"/api/v1/balances/{user}", {"amount": amount})
events = received(20)
for body, headers in events:
    check("a request is valid", is_valid(secret, body, headers))
    check("a changed body is not", not is_valid(secret, body + b" ", headers))
    check("another key is not", not is_valid("whsec_" + "A" * 43 + "=", body, headers))
    check("its id is the event's", headers["webhook-id"] == json.loads(body)["id"])
    check("no event has a name", "홍길동" not in body.decode())
check("the events of a user are in order", [json.loads(body)["data"].get("amount") for body, _ in events][1:] == list(range(1, 20)))

rotated = call("POST", f"/admin/v1/webhooks/{webhook}/rotate", {"validSeconds": 600})["secret"]
call("PUT", f"/api/v1/balances/{user}", {"amount": 20})
((body, headers),) = received(1)
check("both keys are valid", is_valid(secret, body, headers) and is_valid(rotated, body, headers))
newest = call("POST", f"/admin/v1/webhooks/{webhook}/rotate", {"validSeconds": 0})["secret"]
call("PUT", f"/api/v1/balances/{user}", {"amount": 21})
((body, headers),) = received(1)
check("only the newest key is valid", is_valid(newest, body, headers) and not is_valid(rotated, body, headers))
server.shutdown()
