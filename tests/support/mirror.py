"""A loopback stand-in for the two hosts that the project downloads from: the real clients run without a network.

* COCO: FiftyOne asks ``images.cocodataset.org`` over plain HTTP, so a proxy can answer: ``http_proxy``.
* Model hub: ``HF_ENDPOINT`` points huggingface_hub here.

    with Mirror(coco=folder, models=folder, fault=("truncate", 5)) as mirror:
        subprocess.run(command, env={**os.environ, **mirror.env})

``fault`` breaks every N-th photo: ``truncate`` (half of the bytes, then the connection closes), ``error`` (HTTP 503),
``reset`` (the connection is reset), ``garbage`` (a whole answer that is no photo). By hand:
``python tests/mirror.py COCO_FOLDER`` prints what to export.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COCO_HOST = "images.cocodataset.org"
COMMIT = "c0c0" * 10  # the revision that every model is said to have


class Mirror:
    """Serves while the ``with`` block runs. ``requests`` lists what was asked for (GET); ``photos`` counts photos."""

    def __init__(
        self,
        coco: Path | None = None,
        models: Path | None = None,
        fault: tuple[str, int] | None = None,
        delay: float = 0.0,
        missing: tuple[str, ...] = (),
    ):
        self.coco, self.models, self.fault, self.delay, self.missing = coco, models, fault, delay, missing
        self.requests: list[str] = []
        self.photos = 0
        self.lock = threading.Lock()
        self._archive: bytes | None = None

    def __enter__(self) -> Mirror:
        handler = type("Handler", (_Handler,), {"mirror": self})
        self.server = _Server(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def env(self) -> dict[str, str]:
        url = f"http://127.0.0.1:{self.server.server_port}"
        local = "127.0.0.1,localhost"
        return {
            "http_proxy": url,
            "HTTP_PROXY": url,
            "no_proxy": local,
            "NO_PROXY": local,
            "HF_ENDPOINT": url,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
        }

    def run(self, preset: str, folder: Path, values: dict, *more: str) -> None:
        """Run a preset's notebooks, all of them unless ``more`` says ``--only``, with caches, database, data and
        artifacts of their own in ``folder``; AssertionError with what was printed where one fails.
        """
        values = {"data_dir": folder / "data" / preset, "output_dir": folder / "artifacts", "num_workers": 0, **values}
        mine = {"HF_HOME": str(folder / "hf"), "FIFTYONE_DATABASE_DIR": str(folder / "mongo")}
        command = [sys.executable, "-m", "helpers.run", "--preset", preset, *more]
        done = subprocess.run(
            [*command, *(f"{name}={value}" for name, value in values.items())],
            env={**os.environ, **self.env, **mine, "FIFTYONE_DO_NOT_TRACK": "true"},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=540,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    def archive(self) -> bytes:
        """COCO's ``annotations_trainval2017.zip``, as far as FiftyOne reads it."""
        with self.lock:
            if self._archive is None:
                buffer = io.BytesIO()
                with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                    for file in sorted((self.coco / "annotations").glob("instances_*2017.json")):
                        archive.write(file, f"annotations/{file.name}")
                self._archive = buffer.getvalue()
            return self._archive


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # a client that was killed is no news
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    mirror: Mirror

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self.mirror.requests.append(self.path)
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.split("/") if part]
        if ".." in parts:
            self._send(b"", 400)
        elif url.netloc == COCO_HOST and self.mirror.coco:
            self._coco(parts)
        elif url.hostname in (None, "127.0.0.1", "localhost") and self.mirror.models:
            self._hub(parts)
        else:
            self._send(b"the mirror does not stand in for this host", 502)

    def _coco(self, parts: list[str]) -> None:
        mirror = self.mirror
        if parts == ["annotations", "annotations_trainval2017.zip"]:
            return self._send(mirror.archive())
        photo = mirror.coco.joinpath("images", *parts)
        if len(parts) != 2 or not photo.is_file() or parts[1] in mirror.missing:
            return self._send(b"not found", 404)
        time.sleep(mirror.delay)
        with mirror.lock:
            mirror.photos += 1
            broken = mirror.fault and mirror.photos % mirror.fault[1] == 0
        data = photo.read_bytes()
        if broken:
            return self._break(mirror.fault[0], data)
        self._send(data)

    def _break(self, kind: str, data: bytes) -> None:
        if kind == "error":
            return self._send(b"busy", 503)
        if kind == "garbage":
            return self._send(b"<html>please sign in</html>")
        if kind == "truncate":
            self._head(200, len(data))
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
        else:  # reset: closing with a linger time of zero sends RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        if kind == "reset":
            self.rfile.close()
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    def _hub(self, parts: list[str]) -> None:
        if len(parts) >= 5 and parts[2] == "resolve":  # ORG/NAME/resolve/REVISION/FILE
            file = self.mirror.models.joinpath(*parts[:2], *parts[4:])
            if file.is_file():
                return self._send(file.read_bytes())
            return self._send(b"", 404, {"X-Error-Code": "EntryNotFound"})
        root = self.mirror.models.joinpath(*parts[2:4])
        if parts[:2] == ["api", "models"] and len(parts) >= 4 and root.is_dir():
            files = sorted(path for path in root.rglob("*") if path.is_file())
            names = [path.relative_to(root).as_posix() for path in files]
            if "tree" in parts[4:5]:
                entries = [
                    {"type": "file", "path": name, "size": path.stat().st_size, "oid": COMMIT}
                    for name, path in zip(names, files)
                ]
                return self._send(json.dumps(entries).encode())
            about = {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            return self._send(json.dumps(about).encode())
        self._send(b"{}", 404, {"X-Error-Code": "RepoNotFound"})

    def _head(self, status: int, size: int, headers: dict | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(size), "X-Repo-Commit": COMMIT, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, data: bytes, status: int = 200, headers: dict | None = None) -> None:
        first, last = 0, len(data)
        span = self.headers.get("Range", "")
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', **(headers or {})}
        if status == 200 and span.startswith("bytes="):  # huggingface_hub continues a file this way
            start, _, end = span[6:].partition("-")
            first, last = int(start), min(int(end) + 1 if end else len(data), len(data))
            status, headers["Content-Range"] = 206, f"bytes {first}-{last - 1}/{len(data)}"
        self._head(status, last - first, headers)
        if self.command == "GET":
            self.wfile.write(data[first:last])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("coco", type=Path)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--fault", help="truncate:5, error:5, reset:5 or garbage:5")
    args = parser.parse_args()
    fault = args.fault and (args.fault.split(":")[0], int(args.fault.split(":")[1]))
    with Mirror(args.coco, args.models, fault) as mirror:
        print("\n".join(f"export {name}={value}" for name, value in mirror.env.items()), flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
