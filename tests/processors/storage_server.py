"""A server that speaks the routes of Supabase Storage that we use, keeps objects in memory, and can fail on purpose.

Answers follow supabase/storage: most errors have status 400 and the real status in the body.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

KEY = "service-role-secret"
BUCKET = "reports"
NOW = "2026-01-01T10:00:00.000Z"


@dataclass
class Bucket:
    """What the server holds, and the fault it has.

    `fault`: `cut` closes the connection after half of the next upload's body; `truncate` stores half of it and says
    yes; `mute` does the next move and closes the connection without an answer. A fault strikes once.
    """

    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    created: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    fault: str = ""
    md5_tags: bool = True

    def strike(self, fault: str) -> bool:
        if self.fault != fault:
            return False
        self.fault = ""
        return True


@contextmanager
def serving() -> Iterator[Bucket]:
    """Run a server on a free port of this machine; yields its bucket."""
    bucket = Bucket()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"bucket": bucket}))
    server.daemon_threads = True
    bucket.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield bucket
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Refused(Exception):
    def __init__(self, status: int, error: str, message: str) -> None:
        self.body = {"statusCode": str(status), "error": error, "message": message}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_request(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_DELETE(self) -> None:
        self._handle("DELETE")

    def _handle(self, method: str) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path).removeprefix("/storage/v1/object/")
        self.bucket.requests.append(f"{method} {path} {self.request_version}")
        body = self._body(method, path)
        if body is None:
            return
        try:
            signed = method == "GET" and path.startswith("sign/") and parse_qs(address.query).get("token") == ["t60"]
            if not signed and self.headers["Authorization"] != f"Bearer {KEY}":
                raise _Refused(403, "Unauthorized", "signature verification failed")
            answer = self._route(method, path, body)
        except _Refused as refused:
            self._answer(400, json.dumps(refused.body).encode(), "application/json")
            return
        if answer is None:
            self._hang_up()
        elif isinstance(answer, bytes):
            self._answer(200, answer, "application/octet-stream")
        else:
            self._answer(200, json.dumps(answer).encode(), "application/json")

    def _body(self, method: str, path: str) -> bytes | None:
        length = int(self.headers.get("Content-Length") or 0)
        if method == "POST" and path.startswith(f"{BUCKET}/") and self.bucket.strike("cut"):
            self.rfile.read(length // 2)
            self._hang_up()
            return None
        return self.rfile.read(length)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _route(self, method: str, path: str, body: bytes) -> Any:
        verb, _, rest = path.partition("/")
        if method == "POST" and verb == "move":
            return self._move(json.loads(body))
        bucket, _, key = (rest if verb in ("info", "list", "sign") else path).partition("/")
        if bucket != BUCKET:
            raise _Refused(404, "Bucket not found", "Bucket not found")
        if method == "POST" and verb == "list":
            return self._list(json.loads(body)["prefix"])
        if method == "DELETE":
            for name in json.loads(body)["prefixes"]:
                self.bucket.objects.pop(name, None)
            return []
        if method == "POST" and verb == "sign":
            self._find(key)
            return {"signedURL": f"/object/sign/{BUCKET}/{key}?token=t{json.loads(body)['expiresIn']}"}
        if method == "POST":
            return self._upload(key, body)
        content = self._find(key)
        return self._info(key, content) if verb == "info" else content

    def _find(self, key: str) -> bytes:
        if key not in self.bucket.objects:
            raise _Refused(404, "not_found", "Object not found")
        return self.bucket.objects[key]

    def _info(self, key: str, content: bytes) -> dict[str, Any]:
        md5 = hashlib.md5(content).hexdigest()
        return {
            "name": key,
            "size": len(content),
            "content_type": self.bucket.types[key],
            "etag": f'"{md5}"' if self.bucket.md5_tags else f'"{md5[::-1]}-1"',
            "created_at": NOW,
        }

    def _upload(self, key: str, body: bytes) -> dict[str, str]:
        if key in self.bucket.objects and self.headers.get("x-upsert") != "true":
            raise _Refused(409, "Duplicate", "The resource already exists")
        content, kind = _file_of(self.headers["Content-Type"], body)
        self.bucket.objects[key] = content[: len(content) // 2] if self.bucket.strike("truncate") else content
        self.bucket.types[key] = kind
        return {"Key": f"{BUCKET}/{key}", "Id": "1"}

    def _move(self, request: dict[str, str]) -> dict[str, str] | None:
        content = self._find(request["sourceKey"])
        if request["destinationKey"] in self.bucket.objects:
            raise _Refused(409, "Duplicate", "The resource already exists")
        del self.bucket.objects[request["sourceKey"]]
        self.bucket.objects[request["destinationKey"]] = content
        self.bucket.types[request["destinationKey"]] = self.bucket.types[request["sourceKey"]]
        return None if self.bucket.strike("mute") else {"message": "Successfully moved"}

    def _list(self, prefix: str) -> list[dict[str, Any]]:
        names = [key.removeprefix(f"{prefix}/") for key in self.bucket.objects if key.startswith(f"{prefix}/")]
        return [{"name": name, "created_at": self.bucket.created.get(f"{prefix}/{name}", NOW)} for name in names]


def _file_of(content_type: str, body: bytes) -> tuple[bytes, str]:
    """Return the content and the type of the part `file` of a multipart body."""
    found = re.search('boundary="?([^";]+)', content_type)
    assert found
    boundary = found[1].encode()
    for part in body.removesuffix(b"--" + boundary + b"--\r\n").split(b"--" + boundary + b"\r\n")[1:]:
        head, _, content = part.partition(b"\r\n\r\n")
        kind = re.search(rb"Content-Type: ([^\r\n]+)", head, re.I)
        if b'name="file"' in head and kind:
            return content.removesuffix(b"\r\n"), kind[1].decode()
    raise AssertionError("no file in the upload")
