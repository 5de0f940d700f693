"""A fake Google Cloud Storage on loopback: as much of its JSON API as gcsfs and TensorStore use, objects in memory."""

import base64
import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "bucket"


class Bucket:
    """The objects of the one bucket, {name: bytes}, and how it behaves: `refuse(method, object)` gives the status to
    fail a request with, or 0; `requests` counts them by method."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.generations: dict[str, int] = {}
        self.requests: list[tuple[str, str]] = []
        self.refuse: Callable[[str, str], int] = lambda method, name: 0
        self.lock = threading.RLock()
        self.port = 0
        self._count = 0

    @property
    def environment(self) -> dict[str, str]:
        """What tells gcsfs and TensorStore to come here, and with which credentials."""
        url = f"http://127.0.0.1:{self.port}"
        return {
            "STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "GOOGLE_CLOUD_PROJECT": "project",
        }  # fmt: skip

    def names(self, folder: str) -> list[str]:
        return sorted(name.removeprefix(f"{folder}/") for name in list(self.objects) if name.startswith(f"{folder}/"))

    def put(self, name: str, data: bytes) -> dict[str, Any]:
        with self.lock:
            self._count += 1
            self.objects[name], self.generations[name] = data, self._count
            return self.describe(name)

    def describe(self, name: str) -> dict[str, Any]:
        data = self.objects[name]
        return {
            "kind": "storage#object", "bucket": BUCKET, "name": name, "size": str(len(data)), "metageneration": "1",
            "generation": str(self.generations[name]), "contentType": "application/octet-stream",
            "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(), "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
        }  # fmt: skip

    def page(self, query: dict[str, str]) -> dict[str, Any]:
        """One page of a listing."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items: list[dict[str, Any]] = []
        prefixes: list[str] = []
        most, after = int(query.get("maxResults", 1000)), query.get("pageToken", "")
        for name in sorted(self.objects):
            if not name.startswith(prefix) or name < query.get("startOffset", ""):
                continue
            if "endOffset" in query and name >= query["endOffset"]:
                continue
            cut = name.find(delimiter, len(prefix)) if delimiter else -1
            entry = name if cut < 0 else name[: cut + 1]
            if entry <= after or (cut >= 0 and entry in prefixes):
                continue
            if len(items) + len(prefixes) == most:
                last = max([item["name"] for item in items] + prefixes)
                return {"kind": "storage#objects", "items": items, "prefixes": prefixes, "nextPageToken": last}
            if cut < 0:
                items.append(self.describe(name))
            else:
                prefixes.append(entry)
        return {"kind": "storage#objects", "items": items, "prefixes": prefixes}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    server: "_Server"

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _handle(self) -> None:
        bucket, url = self.server.bucket, urlsplit(self.path)
        body = self._body()
        query = {name: values[-1] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        path = re.fullmatch(r"(/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?", url.path)
        if path is None:
            return self._fail(501, f"no such call: {self.command} {self.path}")
        kind, name, action = path[1], unquote((path[3] or "").partition("/")[0]), (path[3] or "").partition("/")[2]
        with bucket.lock:
            bucket.requests.append((self.command, name or query.get("name", "") or query.get("prefix", "")))
            status = bucket.refuse(self.command, bucket.requests[-1][1])
            if status or path[2] != BUCKET:
                words = {401: "Invalid token", 403: "a@b.c does not have storage.objects access"}
                return self._fail(status or 404, words.get(status, "The specified bucket does not exist."))
            if kind == "/upload":
                return self._upload(query, body)
            if action:
                target = unquote(re.fullmatch(r"(?:rewriteTo|copyTo)/b/[^/]+/o/(.+)", action)[1])  # type: ignore[index]
                if name not in bucket.objects:
                    return self._fail(404, f"No such object: {name}")
                return self._answer({"done": True, "resource": bucket.put(target, bucket.objects[name])})
            if not name:
                return self._answer(bucket.page(query) if url.path.endswith("/o") else {"name": BUCKET})
            if not self._is_as_wanted(name, query):
                return self._fail(412, "conditionNotMet")
            if name not in bucket.objects:
                return self._fail(404, f"No such object: {name}")
            if self.command == "DELETE":
                del bucket.objects[name], bucket.generations[name]
                return self._send(204, b"")
            if query.get("alt") == "media" or kind == "/download":
                return self._media(name)
            self._answer(bucket.describe(name))

    def _is_as_wanted(self, name: str, query: dict[str, str]) -> bool:
        wanted = query.get("ifGenerationMatch")
        return wanted is None or int(wanted) == self.server.bucket.generations.get(name, 0)

    def _upload(self, query: dict[str, str], body: bytes) -> None:
        bucket, name = self.server.bucket, query.get("name", "")
        if query["uploadType"] == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            first, _ = BytesParser().parsebytes(head + body).get_payload()
            name = json.loads(first.get_payload())["name"]
            # The parser would change the ends of lines of what is no text.
            boundary = re.search(r'boundary="?([^";]+)"?', self.headers["Content-Type"])[1].encode()  # type: ignore[index]
            part = body.split(b"--" + boundary)[2]
            body = re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1].removesuffix(b"\n").removesuffix(b"\r")
        elif query["uploadType"] == "resumable" and "upload_id" not in query:
            name = name or json.loads(body)["name"]
            self.server.uploads[name] = b""
            place = f"http://{self.headers['Host']}/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable&name={name}&upload_id=1"
            return self._send(200, b"{}", {"Location": place})
        elif query["uploadType"] == "resumable":
            so_far = self.server.uploads[name] = self.server.uploads[name] + body
            size = self.headers["Content-Range"].rpartition("/")[2]
            if size == "*" or len(so_far) < int(size):
                return self._send(308, b"", {"Range": f"bytes=0-{len(so_far) - 1}"})
            body = self.server.uploads.pop(name)
        if not self._is_as_wanted(name, query):
            return self._fail(412, "conditionNotMet")
        self._answer(bucket.put(name, body))

    def _media(self, name: str) -> None:
        data, extra = self.server.bucket.objects[name], {}
        extra["x-goog-generation"] = str(self.server.bucket.generations[name])
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self._send(200, data, extra)
        start, end = int(wanted[1]), min(int(wanted[2] or len(data)) + 1, len(data))
        if start >= len(data):
            return self._fail(416, "Requested range not satisfiable")
        self._send(206, data[start:end], extra | {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _fail(self, status: int, message: str) -> None:
        self._send(status, json.dumps({"error": {"code": status, "message": message}}).encode())

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        with contextlib.suppress(ConnectionError):  # a client that was killed
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, bucket: Bucket) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bucket, self.uploads = bucket, dict[str, bytes]()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients are killed here


@contextlib.contextmanager
def serve() -> Iterator[Bucket]:
    """Serve a bucket, and send this process's own clients there."""
    bucket = Bucket()
    server = _Server(bucket)
    bucket.port = server.server_address[1]
    before = {name: os.environ.get(name) for name in bucket.environment}
    os.environ.update(bucket.environment)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield bucket
    finally:
        server.shutdown()
        server.server_close()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
