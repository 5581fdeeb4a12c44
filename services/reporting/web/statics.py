"""Style, scripts and the icon: read once, named by their content, so that browsers keep them for ever."""

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER: Final = Path(__file__).parent / "static"
_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HASH_LENGTH: Final = 16
_KEEP: Final = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class _File:
    url: str
    content: bytes
    compressed: bytes
    media_type: str


class StaticFiles:
    """The files of `static/` that browsers load, at /static/<hash>/<name>."""

    def __init__(self) -> None:
        self._files = {
            path.relative_to(_FOLDER).as_posix(): _read(path)
            for path in sorted(_FOLDER.rglob("*"))
            if path.suffix in _TYPES
        }
        self._by_url = {file.url: file for file in self._files.values()}

    def url(self, name: str) -> str:
        """Where a page finds a file, such as "dashboard.css". Raises KeyError if there is none."""
        return self._files[name].url

    def routes(self) -> list[Route]:
        """For the application."""
        return [Route("/static/{path:path}", self._serve, methods=["GET"])]

    async def _serve(self, request: Request) -> Response:
        # Only whole addresses: with another hash it would be another file, which is not there.
        file = self._by_url.get(request.url.path)
        if file is None:
            return Response("there is no such file\n", 404, media_type="text/plain")
        headers = {"Cache-Control": _KEEP, "Vary": "Accept-Encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
            return Response(file.compressed, headers=headers, media_type=file.media_type)
        return Response(file.content, headers=headers, media_type=file.media_type)


@cache
def static_files() -> StaticFiles:
    """The files as they were when first asked for: they do not change while a process runs."""
    return StaticFiles()


def _read(path: Path) -> _File:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:_HASH_LENGTH]
    return _File(
        url=f"/static/{digest}/{path.relative_to(_FOLDER).as_posix()}",
        content=content,
        compressed=gzip.compress(content, mtime=0),
        media_type=_TYPES[path.suffix],
    )
