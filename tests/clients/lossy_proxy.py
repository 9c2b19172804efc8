"""A proxy that loses the first reply of every write, and answers its first repeat 503.

    lossy_proxy.py UPSTREAM    prints its own address, and a report after SIGTERM

The report fails where a write has no idempotency key, was not repeated after its reply was lost, or took effect twice.
"""

import http.client
import signal
import sys
import threading
import urllib.parse
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

UNAVAILABLE = '{"errorCode":"SERVICE_UNAVAILABLE","message":"잠시 후 다시 시도해 주세요."}'.encode()
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "upgrade", "http2-settings"}


class Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream = ""
    lock = threading.Lock()
    seen = Counter()
    faults = []

    def forward(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        key = self.headers.get("idempotency-key")
        attempt = 0
        if self.command != "GET":
            with self.lock:
                if key is None:
                    self.faults.append(f"{self.command} {self.path} has no idempotency key")
                self.seen[key] += 1
                attempt = self.seen[key]
        if attempt == 2:
            return self.answer(503, [("content-type", "application/json"), ("retry-after", "0")], UNAVAILABLE)
        service = http.client.HTTPConnection(self.upstream, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        service.request(self.command, self.path, body or None, headers)
        response = service.getresponse()
        content = response.read()
        service.close()
        if attempt == 1:
            self.close_connection = True
            return None
        if attempt > 2 and response.status < 300 and response.headers["idempotent-replayed"] != "true":
            with self.lock:
                self.faults.append(f"{self.command} {self.path} was carried out again")
        kept = [(name, value) for name, value in response.getheaders() if name.lower() not in HOP_BY_HOP]
        return self.answer(response.status, kept, content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward

    def answer(self, status, headers, content):
        self.send_response_only(status)
        for name, value in [*headers, ("content-length", str(len(content)))]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def main():
    Proxy.upstream = urllib.parse.urlsplit(sys.argv[1]).netloc
    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.daemon_threads = True
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
    Proxy.faults += [f"{key}: {times} attempts" for key, times in Proxy.seen.items() if times < 3]
    print(f"{len(Proxy.seen)} writes lost their first reply, and were repeated")
    if Proxy.faults or len(Proxy.seen) < 8:
        sys.exit("\n".join(["the client does not repeat as it has to:", *Proxy.faults]))


if __name__ == "__main__":
    main()
