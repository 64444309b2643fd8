"""The HTTP client of the command line."""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
from httpx_sse import EventSource, connect_sse

from domain.errors import AssayError

#: how long a watcher waits for an API, or for the servers behind it, to come back
PATIENCE_SECONDS = 30.0
_RECONNECT_SECONDS = 0.5
_SERVER_ERROR = 500
#: a table's rows are stored one after another
_TABLE_SECONDS = 300.0


class RequestRefused(AssayError):
    """The API answered with a problem document."""

    code = "request_refused"

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        detail = problem.get("detail") or problem.get("title") or f"status {status}"
        super().__init__(f"{detail} [{problem.get('code', status)}]", field=problem.get("field"))
        self.status = status
        self.problem = problem


class ApiUnreachable(AssayError):
    """No API answers at the address."""

    code = "api_unreachable"


class ApiClient:
    """What the command line asks of the API; one connection pool, safe to use from threads."""

    def __init__(self, url: str, key: str, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.url = url
        self._patience_seconds = patience_seconds
        self._http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=httpx.Timeout(30.0, connect=5.0)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, **parameters: Any) -> Any:
        """The JSON document at a path."""
        return self._json(self._send("GET", path, params=parameters or None))

    def post(self, path: str, document: Any = None, *, idempotency_key: str | None = None) -> Any:
        """The JSON answer to a posted document."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
        return self._json(self._send("POST", path, json=document, headers=headers))

    def put(self, path: str, document: Any) -> Any:
        """What the API answers to a document that is to stand there."""
        return self._json(self._send("PUT", path, json=document))

    def delete(self, path: str) -> None:
        """Remove what stands there."""
        self._json(self._send("DELETE", path))

    def create_exam(self, path: Path) -> Any:
        """Hand in an exam, YAML or JSON by the file's name."""
        kind = "application/json" if path.suffix == ".json" else "application/yaml"
        return self._json(
            self._send("POST", "/v1/exams", content=path.read_bytes(), headers={"Content-Type": kind})
        )

    def upload(self, batch_id: str, path: Path, *, vehicle_id: str = "") -> Any:
        """Upload one file under its name, with its digest checked at the other end."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            address = f"/v1/batches/{batch_id}/files/{quote(path.name, safe='')}"
            stated = {"sha256": digest} | ({"vehicle_id": vehicle_id} if vehicle_id else {})
            return self._json(self._send("PUT", address, content=file, params=stated))

    def hand_in_table(self, batch_id: str, content: bytes, parameters: Mapping[str, Any]) -> Any:
        """Hand in a CSV, a row a student; what became of its rows."""
        return self._json(
            self._send(
                "POST",
                f"/v1/batches/{batch_id}/submissions",
                content=content,
                params=parameters,
                headers={"Content-Type": "text/csv"},
                timeout=_TABLE_SECONDS,
            )
        )

    def events(self, batch_id: str, after: int | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """The batch's snapshot and events by type, until its end.

        A cut stream is taken up where it was; an API that is away is waited for, but not for ever.
        """
        last = after
        reached = time.monotonic()
        while True:
            try:
                with self._stream(batch_id, last) as source:
                    try:
                        for event in source.iter_sse():
                            last = int(event.id) if event.id else last
                            yield event.event, json.loads(event.data) if event.data else {}
                            if event.event == "end":
                                return
                    finally:
                        reached = time.monotonic()
                    if source.response.status_code == httpx.codes.NO_CONTENT:
                        return
            except (httpx.TransportError, RequestRefused) as error:
                self._raise_unless_passing(error, time.monotonic() - reached)
            time.sleep(_RECONNECT_SECONDS)

    @contextmanager
    def _stream(self, batch_id: str, last: int | None) -> Iterator[EventSource]:
        headers = {} if last is None else {"Last-Event-ID": str(last)}
        path = f"/v1/batches/{batch_id}/events"
        with connect_sse(self._http, "GET", path, headers=headers, timeout=60.0) as source:
            if source.response.is_error:
                source.response.read()
                self._json(source.response)
            yield source

    def _raise_unless_passing(self, error: httpx.TransportError | RequestRefused, seconds: float) -> None:
        """Raise what will not pass: a refusal of the request itself, or a silence of so many seconds."""
        passing = not isinstance(error, RequestRefused) or error.status >= _SERVER_ERROR
        if passing and seconds <= self._patience_seconds:
            return
        if isinstance(error, RequestRefused):
            raise error
        raise ApiUnreachable(f"The API at {self.url} does not answer any more.") from error

    def report(self, batch_id: str, *, criteria: bool = False) -> Any:
        """The batch's report, with every submission's criteria where asked for."""
        detail = {"detail": "criteria"} if criteria else {}
        return self.get(f"/v1/batches/{batch_id}/report", **detail)

    def report_file(self, batch_id: str, format_: str, *, criteria: bool = False) -> bytes:
        """The batch's report as `json`, `csv` or `html`."""
        parameters = {"format": format_} | ({"detail": "criteria"} if criteria else {})
        response = self._send("GET", f"/v1/batches/{batch_id}/report", params=parameters)
        if response.is_error:
            self._json(response)
        return response.content

    def report_html(self, batch_id: str) -> bytes:
        """The batch's report as a page."""
        return self.report_file(batch_id, "html")

    def files(self, batch_id: str) -> Iterator[Any]:
        """Every file of the batch."""
        page = 1
        while True:
            answer = self.get(f"/v1/batches/{batch_id}/files", page=page, page_size=100)
            yield from answer["items"]
            if page * answer["page_size"] >= answer["total"]:
                return
            page += 1

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **arguments)
        except httpx.TransportError as error:
            raise ApiUnreachable(
                f"No API answers at {self.url} ({type(error).__name__}). Start one with `assay up`."
            ) from error

    @staticmethod
    def _json(response: httpx.Response) -> Any:
        if not response.is_error:
            return response.json() if response.content else None
        try:
            problem = response.json()
        except ValueError:
            problem = {"detail": response.text[:300]}
        raise RequestRefused(response.status_code, problem)
