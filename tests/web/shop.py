"""The program under test on private servers, and its users over HTTP: customers, and an operator with a token."""

import concurrent.futures
import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from datetime import datetime, timedelta, timezone
from pathlib import Path

# Seconds; long, because the machine may stall.
TIMEOUT_S = 120

# Settings that the service takes from the environment.
PASSED_SETTINGS = ("TMPDIR", "REDIS_SERVER_BIN", "POSTGRES_BIN_DIR", "FIRSTCOME_CACHE_DIR", "RUST_LOG")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Shop:
    """`firstcome dev` on a port and a directory that survive a restart."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.token = secrets.token_hex(16)
        self.port = free_port()
        self.gateway_port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        # The storefront's port: another port is another origin.
        self.page_port = free_port()
        self.page_origin = f"http://127.0.0.1:{self.page_port}"
        # More settings of the service.
        self.settings = {}
        self.process = None
        self.others = []

    def stores(self):
        """The settings that lead to the servers of `firstcome dev`."""
        postgres = (self.directory / "data/postgres/data/postmaster.pid").read_text().splitlines()[4]
        return {
            "REDIS_URL": f"redis+unix://{(self.directory / 'data/redis/redis.sock').resolve()}",
            "DATABASE_URL": f"postgres://firstcome@localhost/firstcome?host={postgres}",
        }

    def start_another(self):
        """Starts another instance on the same servers. Returns its port, which its name contains."""
        environment = self.environment() | self.stores() | {"BIND_ADDR": f"127.0.0.1:{free_port()}"}
        with open(self.directory / "log-of-others", "ab") as log:
            process = subprocess.Popen(
                [os.environ["FIRSTCOME_BIN"], "serve"], env=environment, stdout=subprocess.DEVNULL, stderr=log
            )
        self.others.append(process)
        return environment["BIND_ADDR"].rsplit(":", 1)[1]

    def rebuild(self):
        """`firstcome rebuild`, while the service runs."""
        subprocess.run(
            [os.environ["FIRSTCOME_BIN"], "rebuild"], env=self.environment() | self.stores(), check=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=TIMEOUT_S,
        )

    def kill_others(self):
        for process in self.others:
            process.kill()
            process.wait()
        self.others = []

    def environment(self):
        environment = {name: os.environ[name] for name in PASSED_SETTINGS if os.environ.get(name)}
        environment |= {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "FIRSTCOME_DIR": str(self.directory / "data"),
            "BIND_ADDR": f"127.0.0.1:{self.port}",
            "ADMIN_TOKEN": self.token,
            # Pages of this origin alone may call the API.
            "CORS_ORIGINS": self.page_origin,
            # All customers share one address.
            "RATE_LIMIT_CLIENT_PER_SECOND": "0",
            "RATE_LIMIT_USER_PER_SECOND": "0",
            # No gateway listens there.
            "PAYMENT_GATEWAY_KAKAO_PAY_URL": f"http://127.0.0.1:{self.gateway_port}",
        }
        return environment | self.settings

    def start(self):
        environment = self.environment()
        self.log = self.directory / "log"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [os.environ["FIRSTCOME_BIN"], "dev"], env=environment, stdout=subprocess.DEVNULL, stderr=log
            )
        deadline = time.monotonic() + TIMEOUT_S
        while self.status("GET", "/readyz")[0] != 200:
            if self.process.poll() is not None or time.monotonic() > deadline:
                tail = self.log.read_text(errors="replace")[-4000:].replace(self.token, "(token)")
                self.stop()
                raise RuntimeError(f"the service does not start: {tail}")
            # Polls until the deadline: no event signals that a port is open.
            time.sleep(0.1)

    def stop(self):
        self.kill_others()
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def sql(self, statement):
        """Runs a statement in the shop's PostgreSQL, as a database administrator. Returns its rows, unaligned."""
        # The fifth line of postmaster.pid is the directory of the socket.
        socket_directory = (self.directory / "data/postgres/data/postmaster.pid").read_text().splitlines()[4]
        place = ["-h", socket_directory, "-U", "firstcome", "-d", "firstcome"]
        ran = subprocess.run([os.environ["PSQL_BIN"], *place, "-qAtc", statement], capture_output=True, text=True, timeout=TIMEOUT_S)
        if ran.returncode != 0:
            raise AssertionError(f"{statement}: {ran.stderr}")
        return ran.stdout.strip()

    @contextlib.contextmanager
    def positions_locked(self):
        """Keeps audits at their first comparison, and the projection, until the end of the block."""
        socket_directory = (self.directory / "data/postgres/data/postmaster.pid").read_text().splitlines()[4]
        place = ["-h", socket_directory, "-U", "firstcome", "-d", "firstcome"]
        session = subprocess.Popen([os.environ["PSQL_BIN"], *place, "-qAt"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            session.stdin.write("BEGIN; SELECT count(*) FROM (SELECT FROM projection_positions FOR UPDATE) AS locked;\n")
            session.stdin.flush()
            session.stdout.readline()
            yield
        finally:
            session.stdin.close()
            session.stdout.close()
            session.wait(TIMEOUT_S)

    def redis(self, *command):
        """Sends one command to the shop's Redis. Returns the raw reply."""
        # The last start logs the path of the socket.
        path = re.findall(r"accept connections at (\S+redis\.sock)", (self.directory / "data/redis/redis.log").read_text())[-1]
        parts = [str(part).encode() for part in command]
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(path)
            connection.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
            return connection.recv(4096).decode()

    def stuck_payment(self, user, product):
        """An order whose gateway has been unreachable for long. Returns its id."""
        lines = {"userId": user, "orderProducts": [{"productId": product, "quantity": 1}]}
        placed = self.status("POST", "/api/v1/orders", lines)[1]
        order = placed["orderId"]
        payment = {"orderId": order, "userId": user, "paymentType": "KAKAO_PAY", "amount": placed["finalPrice"]}
        status, answer = self.status("POST", "/api/v1/payments", payment)
        if status != 503:
            raise AssertionError(f"a gateway that is not there: {status} {answer}")
        # Due in an hour, and stuck (lua/payment_postpone.lua).
        self.redis("ZADD", "{p0}:gateway", "XX", 2**52 + int((time.time() + 3600) * 1000), order)
        return order

    # --- over HTTP ---------------------------------------------------------------------------------

    def status(self, method, path, body=None, headers=None):
        """`(status, answer)`; status 0 without an answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json", **(headers or {})}
        request = urllib.request.Request(self.base + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                return response.status, read(response)
        except urllib.error.HTTPError as refused:
            return refused.code, read(refused)
        except (urllib.error.URLError, OSError):
            return 0, None

    def admin(self, method, path, body=None):
        """Calls the operators' API with the token. Fails unless it answers a success."""
        status, answer = self.status(method, f"/admin/v1{path}", body, {"authorization": f"Bearer {self.token}"})
        if not 200 <= status < 300:
            raise AssertionError(f"{method} {path}: {status} {answer}")
        return answer

    def users(self, count, balance=0):
        first = self.admin("POST", "/users/bulk", {"count": count, "balance": balance, "namePrefix": "web-"})["firstUserId"]
        return list(range(first, first + count))

    def campaign(self, code, total, opens_in_hours=None):
        body = {"couponCode": code, "discountType": "FIXED", "discountAmount": 1000, "totalQuantity": total, "expiredAt": in_hours(24 * 30)}
        if opens_in_hours is not None:
            body["opensAt"] = in_hours(opens_in_hours)
        return self.admin("POST", "/coupons", body)["couponId"]

    def product(self, name, price, stock):
        return self.admin("POST", "/products", {"productName": name, "price": price, "stockQuantity": stock, "category": "SHOES"})["productId"]

    def take(self, coupon, user):
        return self.status("POST", "/api/v1/coupons/issue", {"couponId": coupon, "userId": user})

    def rush(self, coupon, users):
        """All users at once. Returns the number of coupons issued."""
        with concurrent.futures.ThreadPoolExecutor(16) as crowd:
            answers = list(crowd.map(lambda user: self.take(coupon, user), users))
        wrong = [answer for answer in answers if answer[0] not in (200, 409)]
        if wrong:
            raise AssertionError(f"neither a coupon nor COUPON_OUT_OF_STOCK: {wrong[:3]}")
        return sum(status == 200 for status, _ in answers)

    @contextlib.contextmanager
    def customers(self, act, count=2):
        """Runs `act()` repeatedly in `count` threads until the end of the block."""
        over = threading.Event()

        def customer():
            while not over.is_set():
                act()

        with concurrent.futures.ThreadPoolExecutor(count) as crowd:
            running = [crowd.submit(customer) for _ in range(count)]
            try:
                yield
            finally:
                over.set()
            for each in running:
                each.result()

    def order(self, user, product, units=1):
        status, order = self.status("POST", "/api/v1/orders", {"userId": user, "orderProducts": [{"productId": product, "quantity": units}]})
        if status != 200:
            raise AssertionError(f"order: {status} {order}")
        return order

    def pay(self, user, order):
        body = {"orderId": order["orderId"], "userId": user, "paymentType": "CARD", "amount": order["finalPrice"]}
        status, paid = self.status("POST", "/api/v1/payments", body)
        if status != 200:
            raise AssertionError(f"payment: {status} {paid}")

    def cancel(self, user, order):
        status, cancelled = self.status("POST", f"/api/v1/orders/{order['orderId']}/cancel", {"userId": user})
        if status != 200:
            raise AssertionError(f"cancel: {status} {cancelled}")

    def orders(self, status):
        """The number of orders with a status, from the operators' API."""
        return self.admin("GET", f"/orders?status={status}&size=1")["totalElements"]


def read(response):
    text = response.read()
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text.decode(errors="replace")


def in_hours(hours):
    """Local time of the shop, by default in Seoul."""
    return (datetime.now(timezone(timedelta(hours=9))) + timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%S")


def number(text):
    """The first number in a text of the page."""
    return int(re.match(r"\D*(\d[\d,]*)", text).group(1).replace(",", ""))
