"""W&B's server as far as its own client needs it to upload a run and to read it back, on this machine.

What it answers is what the client sent it: config, summary and history of real runs, as `wandb sync` uploads them.
Queries and mutations are those of wandb's client (github.com/wandb/wandb, core/api/graphql).
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pyarrow
import pyarrow.parquet

ENTITY = "somebody"


class WandbServer(ThreadingHTTPServer):
    """One user's projects. `exported` gives histories as parquet files, as W&B does once a run is some minutes old."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, dict[str, Any]] = {}
        self.exported = False
        self.asked: list[str] = []
        """Names of the GraphQL operations, in order."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error; anything else is told, and its answer stays out."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """What somebody who is logged in to it has in the environment."""
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": "0" * 40,
            "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1",
            "WANDB_ERROR_REPORTING": "false",
        }

    def history(self, run: str) -> list[dict[str, Any]]:
        """The rows of a run; what is not finite is the word that W&B's client wrote."""
        return [json.loads(line) for line in self.runs[run]["history"]]

    def upload(self, run: str, files: dict[str, dict[str, Any]]) -> None:
        """Lines of a run's files, each put where the client says."""
        for name, part in files.items():
            if name == "wandb-history.jsonl":
                at = part["offset"]
                self.runs[run]["history"][at : at + len(part["content"])] = part["content"]
            elif name == "wandb-summary.json":
                self.runs[run]["summaryMetrics"] = part["content"][-1]

    def parquet(self, run: str) -> bytes:
        """The history as a parquet file: one column for each metric, null where a row has none."""
        rows = self.history(run)
        names = sorted({name for row in rows for name in row})
        table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
        file = io.BytesIO()
        pyarrow.parquet.write_table(table, file)
        return file.getvalue()

    def answer(self, operation: str, given: dict[str, Any]) -> Any:
        """The `data` of a GraphQL response."""
        self.asked.append(operation)
        return getattr(self, f"_{operation}")(given)

    def _Viewer(self, given: dict[str, Any]) -> Any:  # noqa: N802
        return {"viewer": {"id": "1", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}}

    def _GetDefaultEntity(self, given: dict[str, Any]) -> Any:  # noqa: N802
        return {"viewer": {"id": "1", "entity": ENTITY}}

    def _ServerFeaturesQuery(self, given: dict[str, Any]) -> Any:  # noqa: N802
        return {"serverInfo": {"features": []}}

    def _RunResumeStatus(self, given: dict[str, Any]) -> Any:  # noqa: N802
        run = self.runs.get(given["name"])
        bucket = run and {
            **{name: run[name] for name in ("id", "name", "displayName", "config", "summaryMetrics")},
            "historyLineCount": len(run["history"]),
            "historyTail": json.dumps(run["history"][-1:]),
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "logLineCount": 0,
            "tags": [],
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"model": {"id": "1", "name": given["project"], "entity": {"id": "1", "name": ENTITY}, "bucket": bucket}}

    def _UpsertBucket(self, given: dict[str, Any]) -> Any:  # noqa: N802
        name, new = given["name"], given["name"] not in self.runs
        run = self.runs.setdefault(name, {"id": f"id-{name}", "name": name, "history": [], "summaryMetrics": "{}"})
        run.setdefault("project", given["project"])
        for field in ("config", "displayName", "summaryMetrics"):
            if given.get(field) is not None or field not in run:
                run[field] = given.get(field)
        project = {"id": "1", "name": run["project"], "entity": {"id": "1", "name": ENTITY}}
        told = {"id": run["id"], "name": name, "displayName": run["displayName"], "config": run["config"]}
        bucket = {**told, "project": project, "sweepName": None, "historyLineCount": len(run["history"])}
        return {"upsertBucket": {"inserted": new, "bucket": bucket}}

    def _CreateRunFiles(self, given: dict[str, Any]) -> Any:  # noqa: N802
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": self.runs[given["run"]]["id"], "uploadHeaders": [], "files": files}}

    def _Runs(self, given: dict[str, Any]) -> Any:  # noqa: N802
        here = [run for run in self.runs.values() if run["project"] == given["project"]]
        if not here:
            return {"project": None}
        shared = {"tags": [], "sweepName": None, "state": "finished", "readOnly": False, "systemMetrics": "{}"}
        shared |= {"createdAt": "2026-01-01T00:00:00Z", "heartbeatAt": "2026-01-01T00:00:00Z", "projectId": "1"}
        edges = [{"cursor": run["name"], "node": {**shared, **run, "historyKeys": self._keys(run)}} for run in here]
        runs = {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}
        return {"project": {"internalId": "1", "runCount": len(here), "readOnly": False, "runs": runs}}

    def _keys(self, run: dict[str, Any]) -> dict[str, Any]:
        return {"lastStep": max((row["_step"] for row in self.history(run["name"])), default=-1), "keys": {}}

    def _RunHistoryKeys(self, given: dict[str, Any]) -> Any:  # noqa: N802
        return {"project": {"run": {"historyKeys": self._keys(self.runs[given["name"]])}}}

    def _RunParquetHistory(self, given: dict[str, Any]) -> Any:  # noqa: N802
        urls = [f"{self.url}/parquet/{given['runName']}"] if self.exported else []
        return {"project": {"run": {"parquetHistory": {"parquetUrls": urls, "liveData": []}}}}

    def _HistoryPage(self, given: dict[str, Any]) -> Any:  # noqa: N802
        steps = range(given["minStep"], given["maxStep"])
        lines = [line for line in self.runs[given["run"]]["history"] if json.loads(line)["_step"] in steps]
        return {"project": {"run": {"history": lines}}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""

    def do_GET(self) -> None:
        self._send(self.server.parquet(self.path.rpartition("/")[2]))

    def do_PUT(self) -> None:
        self._body()
        self._send(b"{}")

    def do_POST(self) -> None:
        body = self._body()
        told: dict[str, Any] = {}
        if self.path == "/graphql":
            asked = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            assert operation
            told = {"data": self.server.answer(operation[1], asked.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            self.server.upload(self.path.split("/")[-2], json.loads(body).get("files") or {})
        self._send(json.dumps(told).encode())

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def serving() -> Iterator[WandbServer]:
    """A server for as long as the block lasts."""
    with WandbServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
