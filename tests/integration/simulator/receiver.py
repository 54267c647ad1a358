"""A receiver to test the simulator with: the whole protocol, in memory, over real sockets.

It is correct by default. Each of `FLAWS` adds one mistake that receivers make, so that the checks
can be shown to fail.
"""

from __future__ import annotations

import base64
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote

from simulator import payloads
from simulator.reader import Traits

KEY = "test-key"
APP = "test-app"
INVALID_USER = "nobody"
# Nothing listens on it.
CLOSED_PORT = 1

FLAWS = {
    "accepts-any-key": "a wrong or missing key is accepted",
    "open-webhook": "the webhook needs no key",
    "no-basic": "the key as Basic's user name is refused",
    "no-header-key": "the api_key header is ignored",
    "no-bearer": "a Bearer token is refused",
    "refusal-is-403": "a wrong key is answered 403",
    "created-201": "success is answered 201",
    "strict-fields": "unknown fields are refused",
    "needs-context": "a body without context is refused",
    "needs-prefix": "a trait without [Amplitude] is refused",
    "first-colon": "a trait name is cut off at its first colon",
    "mangles-names": "non-ASCII characters are dropped from trait names",
    "lowercases-ids": "user ids are lowercased",
    "false-deletes": "a user who leaves loses the field",
    "ignores-false": "a user who leaves stays",
    "conflict-on-repeat": "the same request is refused the second time",
    "truthy-values": "values other than booleans are treated as true",
    "no-validation": "any JSON is answered 200",
    "crash-on-bad-json": "invalid JSON is a 500",
    "crash-on-deep": "deep nesting is a 500",
    "drops-bad-items": "invalid items of a batch are silently dropped",
    "half-batch": "the valid items of a refused batch are applied",
    "loses-batch-tail": "only the first 1,000 users of a batch are applied",
    "small-limit": "more than 500 users per request are refused",
    "refuses-parallel": "concurrent requests are answered 503",
    "exact-content-type": "a charset in the content type is refused",
    "lost-updates": "a user is read, changed and written back without a lock",
    "one-cohort": "a user's other cohorts are forgotten",
    "second-list": "a repeated list creation makes a second list",
    "racing-lists": "two simultaneous list creations make two lists",
    "list-id-elsewhere": "list creation returns the id in an unusual place",
    "list-id-once": "list creation returns the id at the top level only",
    "list-id-in-response": "list creation returns the id inside response only",
    "creation-empties": "a repeated list creation empties the list",
    "lists-apart": "a list's trait is its id, not its name",
    "unknown-list-ok": "an unknown list is answered 200",
    "empty-add-refused": "an add without users is refused",
    "no-user-ids": "user_ids is not accepted",
    "no-document-url": "an identify at the list's remove URL is refused",
    "strings-only": "numeric ids are not usable",
    "one-bad-id-refuses": "a request with one bad id is refused",
    "bad-ids-are-400": "a request in which nobody has a usable id is a 400",
    "body-limit": "bodies over 4 MiB are refused",
    "webhook-as-it-comes": "a webhook's time is ignored",
    "applies-half-bodies": "the users of a truncated body are applied",
    "one-at-a-time": "requests are handled one after the other, body included",
    "slow": "1,000 users take 2.05 s",
    "rather-slow": "1,000 users take 1.05 s",
    "invalid-user-ok": "an unknown user is answered 200",
    "never-throttles": "there is no limit",
    "throttles-with-503": "too many requests are answered 503",
    "acknowledges-and-forgets": "every tenth request is acknowledged but not applied",
}


# A user ("" for none), the trait, whether they have it, and the time of that.
Statement = tuple[str, str, bool, float | None]


class Rejection(Exception):
    """Ends a request with a status."""

    def __init__(self, status: int, body: dict[str, Any] | None = None) -> None:
        self.status = status
        self.body = body or {"reason": "invalid"}


class Receiver:
    """A running receiver on a free loopback port, which is also a reader of its own state.

    The first `fail_first` requests are answered with `fail_status`; `throttle` is the number of
    requests allowed per second.
    """

    def __init__(
        self,
        *flaws: str,
        fail_first: int = 0,
        fail_status: int = 503,
        throttle: int | None = None,
        delay: float = 0.0,
        require_key: bool = True,
    ) -> None:
        unknown = set(flaws) - set(FLAWS)
        assert not unknown, unknown
        self.flaws = set(flaws)
        self.users: dict[str, dict[str, bool]] = {}
        self.lists: dict[str, str] = {}
        self.bodies: list[tuple[str, Any]] = []
        self.statuses: Counter[int] = Counter()
        self.user_agents: Counter[str] = Counter()
        self.fail_first = fail_first
        self.fail_status = fail_status
        self.throttle = throttle
        self.delay = delay
        self.require_key = require_key
        self._names: dict[str, str] = {}
        self._times: dict[tuple[str, str], float] = {}
        self._window: tuple[int, int] = (0, 0)
        self._seen: set[bytes] = set()
        self._writes = 0
        self._busy = 0
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.receiver = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def traits(self, user_ids: Sequence[str]) -> list[Traits]:
        with self._lock:
            return [dict(self.users.get(user_id, {})) for user_id in user_ids]

    # One request

    def handle(
        self, path: str, headers: Any, raw: bytes, whole: bool
    ) -> tuple[int, dict[str, Any]]:
        if "refuses-parallel" not in self.flaws:
            return self._handle(path, headers, raw, whole)
        with self._lock:
            self._busy += 1
            alone = self._busy == 1
        try:
            time.sleep(0.02)
            return self._handle(path, headers, raw, whole) if alone else (503, {})
        finally:
            with self._lock:
                self._busy -= 1

    def _handle(
        self, path: str, headers: Any, raw: bytes, whole: bool
    ) -> tuple[int, dict[str, Any]]:
        if not whole and "applies-half-bodies" not in self.flaws:
            return 400, {}
        try:
            self._check_key(path, headers)
            self._check_rate()
            if not whole:
                raw = raw[: raw.rfind(b"},{")] + b"}]}"
            with self._lock:
                if self.fail_first > 0:
                    self.fail_first -= 1
                    raise Rejection(self.fail_status, {"reason": "failing on purpose"})
            if len(raw) > 4 << 20 and "body-limit" in self.flaws:
                raise Rejection(413)
            need(
                headers["Content-Type"] == "application/json"
                or "exact-content-type" not in self.flaws
            )
            body = self._decode(raw)
            if "conflict-on-repeat" in self.flaws:
                if raw in self._seen:
                    raise Rejection(409)
                self._seen.add(raw)
            time.sleep(self.delay)
            return 201 if "created-201" in self.flaws else 200, self._apply(path, body)
        except Rejection as rejection:
            if "no-validation" in self.flaws and rejection.status == 400:
                return 200, {}
            return rejection.status, rejection.body

    def _check_key(self, path: str, headers: Any) -> None:
        if not self.require_key or "accepts-any-key" in self.flaws:
            return
        if "open-webhook" in self.flaws and path == payloads.WEBHOOK_PATH:
            return
        kind, _, token = headers.get("Authorization", "").partition(" ")
        key = None
        if kind == "Basic" and "no-basic" not in self.flaws:
            key = base64.b64decode(token).decode().partition(":")[0]
        elif kind == "Bearer" and "no-bearer" not in self.flaws:
            key = token
        elif "api_key" in headers and "no-header-key" not in self.flaws:
            key = headers["api_key"] if headers.get("app_id", APP) == APP else None
        if key != KEY:
            raise Rejection(
                403 if "refusal-is-403" in self.flaws else 401, {"reason": "unauthorised"}
            )

    def _check_rate(self) -> None:
        if self.throttle is None or "never-throttles" in self.flaws:
            return
        with self._lock:
            second, count = self._window
            now = int(time.monotonic())
            count = count + 1 if second == now else 1
            self._window = (now, count)
        if count > self.throttle:
            raise Rejection(503 if "throttles-with-503" in self.flaws else 429, {"reason": "limit"})

    def _decode(self, raw: bytes) -> Any:
        try:
            body = json.loads(raw.decode("utf-8"), parse_constant=_refuse)
            json.dumps(body, ensure_ascii=False).encode("utf-8")  # no lone surrogates
        except RecursionError:
            raise Rejection(500 if "crash-on-deep" in self.flaws else 400) from None
        except ValueError:
            raise Rejection(500 if "crash-on-bad-json" in self.flaws else 400) from None
        return body

    def _apply(self, path: str, body: Any) -> dict[str, Any]:
        need(isinstance(body, dict))
        need("context" not in body or isinstance(body["context"], dict))
        parts = path.rstrip("/").split("/")
        if path.rstrip("/") == payloads.LISTS_PATH:
            return self._create_list(body)
        if len(parts) == 4 and parts[1] == "lists" and parts[3] in ("add", "remove"):
            if parts[3] == "remove" and ("batch" in body or "traits" in body):
                need("no-document-url" not in self.flaws)
                return self._identify(body)
            return self._list_users(unquote(parts[2]), parts[3] == "add", body)
        if path.rstrip("/") == payloads.COHORT_PATH:
            return self._identify(body)
        if path.rstrip("/") == payloads.WEBHOOK_PATH:
            return self._webhook(body)
        raise Rejection(404, {"reason": "no such place"})

    def _identify(self, body: dict[str, Any]) -> dict[str, Any]:
        if "batch" not in body:
            return self._write(*[(*item, None) for item in self._items(body)])
        items = body["batch"]
        need(isinstance(items, list) and items)
        if "loses-batch-tail" in self.flaws:
            items = items[:1000]
        statements: list[Statement] = []
        for item in items:
            try:
                statements += [(*found, None) for found in self._items(item)]
            except Rejection:
                if "half-batch" in self.flaws:
                    self._write(*statements)
                raise
        return self._write(*statements)

    def _items(self, item: Any) -> list[tuple[str, str, bool]]:
        need(isinstance(item, dict) and item.get("type", "identify") == "identify")
        need("context" in item or "needs-context" not in self.flaws)
        need(
            item.keys() <= {"type", "traits", "userId", "context"}
            or "strict-fields" not in self.flaws
        )
        user, traits = self._user(item.get("userId")), item.get("traits")
        need(isinstance(traits, dict) and traits)
        if user == INVALID_USER and "invalid-user-ok" not in self.flaws:
            raise Rejection(404, {"reason": "invalid user id"})
        found = []
        for trait, value in traits.items():
            need(isinstance(value, bool) or "truthy-values" in self.flaws)
            need(trait.startswith("[Amplitude]") or "needs-prefix" not in self.flaws)
            found.append((user, trait, bool(value)))
        return found

    def _user(self, value: Any) -> str:
        """The user id in a JSON value; "" if it is not usable."""
        if type(value) is int and "strings-only" not in self.flaws:
            return str(value)
        return value if isinstance(value, str) and "\0" not in value else ""

    def _create_list(self, body: dict[str, Any]) -> dict[str, Any]:
        name: Any = body.get("name")
        need(isinstance(name, str) and name)
        known = self._names.get(name)
        if "racing-lists" in self.flaws:
            time.sleep(0.05)
        with self._lock:
            if "racing-lists" not in self.flaws:
                known = self._names.get(name)
            if known is None or "second-list" in self.flaws:
                known = f"list {len(self.lists) + 1}/ü"
                self.lists[known] = known if "lists-apart" in self.flaws else name
                self._names[name] = known
            elif "creation-empties" in self.flaws:
                for traits in self.users.values():
                    traits.pop(name, None)
        if "list-id-elsewhere" in self.flaws:
            return {"created": {"identifier": known}}
        ids = {"list_id": known, "listId": known}
        if "list-id-once" in self.flaws:
            return ids
        return {"response": ids} if "list-id-in-response" in self.flaws else ids | {"response": ids}

    def _list_users(self, list_id: str, member: bool, body: dict[str, Any]) -> dict[str, Any]:
        trait = self.lists.get(list_id)
        if trait is None:
            if "unknown-list-ok" in self.flaws:
                return {}
            raise Rejection(404, {"reason": "no such list"})
        users: Any = body.get("userIds")
        if users is None and "no-user-ids" not in self.flaws:
            users = body.get("user_ids")
        need(isinstance(users, list))
        need(users or "empty-add-refused" not in self.flaws)
        return self._write(*[(self._user(user), trait, member, None) for user in users])

    def _webhook(self, body: dict[str, Any]) -> dict[str, Any]:
        name: Any = body.get("cohort_name")
        cohort: Any = body.get("cohort_id")
        member: Any = body.get("in_cohort")
        users: Any = body.get("users")
        computed: Any = body.get("computed_time")
        need(isinstance(name, str) and isinstance(cohort, str) and isinstance(member, bool))
        need(isinstance(users, list) and isinstance(computed, str) and computed.isdigit())
        plain = {"cohort_name", "cohort_id", "in_cohort", "computed_time", "message_id", "users"}
        need(body.keys() <= plain or "strict-fields" not in self.flaws)
        need(all(isinstance(user, dict) for user in users))
        ids = [self._user(user.get("user_id")) for user in users]
        when = -math.inf if "webhook-as-it-comes" in self.flaws else float(computed)
        trait = payloads.trait_name(name, cohort)
        return self._write(*[(user, trait, member, when) for user in ids])

    def _write(self, *given: Statement) -> dict[str, Any]:
        """Apply the statements, without those that have no user."""
        statements = [statement for statement in given if statement[0]]
        rejected = len(given) - len(statements)
        need(not rejected or not statements or "one-bad-id-refuses" not in self.flaws)
        if given and not statements:
            raise Rejection(400 if "bad-ids-are-400" in self.flaws else 404)
        need(len(statements) <= 500 or "small-limit" not in self.flaws)
        if len(statements) == 1000:
            time.sleep(2.05 if "slow" in self.flaws else 1.05 if "rather-slow" in self.flaws else 0)
        read: dict[str, dict[str, bool]] = {}
        if "lost-updates" in self.flaws:
            read = {user: dict(self.users.get(user, {})) for user, *_ in statements}
            time.sleep(0.01)
        with self._lock:
            self.users |= read
            self._writes += 1
            if "acknowledges-and-forgets" in self.flaws and self._writes % 10 == 0:
                return {}
            for user, trait, member, when in statements:
                if "first-colon" in self.flaws:
                    trait = trait.partition(":")[0]
                if "mangles-names" in self.flaws:
                    trait = trait.encode("ascii", "ignore").decode()
                if "lowercases-ids" in self.flaws:
                    user = user.lower()
                known = self._times.get((user, trait), -math.inf)
                if when is not None and when < known:
                    continue
                self._times[user, trait] = time.time() if when is None else when
                traits = self.users.setdefault(user, {})
                if "one-cohort" in self.flaws and trait not in traits:
                    traits.clear()
                if member or "ignores-false" not in self.flaws:
                    traits[trait] = member
                if not member and "false-deletes" in self.flaws:
                    del traits[trait]
        rejected *= "drops-bad-items" not in self.flaws
        return {"accepted": len(statements), "rejected": rejected}


def need(condition: object) -> None:
    if not condition:
        raise Rejection(400)


def _refuse(constant: str) -> None:
    raise ValueError(constant)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    receiver: Receiver

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # connections that were cut on purpose


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def do_POST(self) -> None:
        receiver = self.server.receiver
        if "one-at-a-time" in receiver.flaws:
            with receiver._turn:
                self._answer(receiver)
        else:
            self._answer(receiver)

    def _answer(self, receiver: Receiver) -> None:
        receiver.user_agents[self.headers.get("User-Agent", "")] += 1
        length = int(self.headers.get("Content-Length", 0))
        raw = b""
        try:
            while len(raw) < length and (piece := self.rfile.read1(length - len(raw))):
                raw += piece
        except OSError:
            pass
        whole = len(raw) == length
        status, body = receiver.handle(self.path, self.headers, raw, whole)
        receiver.statuses[status] += whole
        if not whole:
            self.close_connection = True
            return
        receiver.bodies.append((self.path, raw))
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass
