"""`prices …`: price books as files that are kept in git, and as they are in force."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from tallystick._convert import optional_time, timestamp_of
from tallystick.cli import output
from tallystick.cli.failures import Misuse, problems_data
from tallystick.cli.moments import moment_of
from tallystick.cli.output import Answer, Facts, Part, Table, moment
from tallystick.cli.session import Session
from tallystick.errors import InvalidArgument, NotFound
from tallystick.metering.v1 import price_book_pb2
from tallystick.metering.v1 import pricing_service_pb2 as pb
from tallystick.metering.v1.pricing_service_pb2_grpc import PricingServiceStub
from tallystick.prices import Difference, Document, differences, document, lines
from tallystick.prices.file import PriceFile, PriceFileError, read
from tallystick.prices.text import to_yaml

_FILE = typer.Argument(metavar="FILE", help="The price book as YAML (docs/pricing.md).", show_default=False)
_WHICH = "A file, a book (its version in force), or a version of a book: pb_acme@3."


def check(
    session: Session,
    files: Annotated[list[Path], _FILE],
) -> Answer:
    """Check files without asking anybody. Conditions are checked by the service, when it previews."""
    rows: list[tuple[str, ...]] = []
    data: list[dict[str, object]] = []
    mistakes: list[str] = []
    for file in files:
        try:
            found = _read(file)
        except PriceFileError as error:
            mistakes += error.lines()
            rows.append(("✗", str(file), "–", "–", "–", "–"))
            data.append({"file": str(file), "valid": False, "problems": problems_data(error)})
        else:
            counts = map(str, (len(found.prices), len(found.meters), len(found.plans)))
            rows.append(("✓", found.path, found.price_book_id, *counts))
            data.append({"file": found.path, "valid": True, "problems": []})
    columns = ("", "file", "book", ">prices", ">meters", ">plans")
    parts: list[Part] = [Table("Checked", columns, rows)]
    if mistakes:
        parts.append("\n".join(mistakes))
    return Answer({"files": data}, parts, exit_status=1 if mistakes else 0)


def apply(
    session: Session,
    file: Annotated[Path, _FILE],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change, and store nothing.")
    ] = False,
    effective_time: Annotated[
        str,
        typer.Option(
            help="From when it applies: 12h or 90d from now, a date or a time (UTC). Now by default."
        ),
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Publish without asking.")] = False,
) -> Answer:
    """Publish what a file says as the next version of its book, if that changes anything.

    The book is created if there is none. What is published never changes.
    """
    wanted = _read(file)
    from_when = (
        moment_of(effective_time, option="--effective-time", now=session.now) if effective_time else None
    )
    stub = PricingServiceStub(session.channel("metering"))
    is_new = not _exists(session, stub, wanted)
    preview = _preview(session, stub, wanted, is_new=is_new, from_when=from_when)
    data: dict[str, Any] = {
        "price_book_id": wanted.price_book_id,
        "state": "unchanged",
        "base_version": preview.base_version_number or None,
        "differences": list(map(_plain, preview.differences)),
        "difference_count": preview.difference_count,
    }
    if not preview.difference_count:
        return Answer(data, [_nothing(wanted.price_book_id, preview, session.now)])
    shown = _changes(wanted, preview, is_new=is_new)
    if dry_run:
        return Answer(data | {"state": "previewed"}, [*shown, "Dry run: nothing is stored."])
    if not yes:
        # What somebody says yes to must be seen before.
        _ask(shown)
        shown = []
    version = _publish(session, stub, wanted, preview, is_new=is_new, from_when=from_when)
    data |= {"state": "published", "version": _version_data(version)}
    return Answer(data, [*shown, _version_facts(version)])


def list_books(
    session: Session,
    book: Annotated[str, typer.Argument(metavar="[BOOK]", help="List the versions of this book.")] = "",
) -> Answer:
    """List price books, or the versions of one, the newest first."""
    stub = PricingServiceStub(session.channel("metering"))
    if book:
        versions = list(_versions(session, stub, book))
        current = _in_force(versions, session.now)
        columns = (">version", "state", "applies from", "published", "by", ">prices")
        rows = [_version_row(one, is_current=one is current) for one in versions]
        data = [_version_data(one) for one in versions]
        return Answer({"versions": data}, [Table(f"Versions of {book}", columns, rows)])
    books = list(_books(session, stub))
    rows_ = [
        (one.price_book_id, one.organization_id or "the platform", one.currency_code, one.display_name)
        for one in books
    ]
    return Answer(
        {"price_books": list(map(_book_data, books))},
        [Table("Price books", ("book", "of", "currency", "name"), rows_)],
    )


def show(
    session: Session,
    book: Annotated[str, typer.Argument(metavar="BOOK", help='The book, "pb_…".', show_default=False)],
    version: Annotated[
        int | None, typer.Option(min=1, help="Its number; that in force by default.", show_default=False)
    ] = None,
    yaml: Annotated[bool, typer.Option("--yaml", help="As a file that `prices apply` takes.")] = False,
) -> Answer:
    """Show what a version of a book says."""
    stub = PricingServiceStub(session.channel("metering"))
    found = _found_version(session, stub, book, version)
    says = document(found.prices, found.meters, found.plans)
    data = {**_version_data(found), **says}
    if yaml:
        owner = session.call(stub.GetPriceBook, pb.GetPriceBookRequest(price_book_id=book)).price_book
        return Answer(data, [to_yaml(owner, found).removesuffix("\n")])
    table = Table("What it says", ("line", "value"), list(lines(says).items()))
    return Answer(data, [_version_facts(found), table])


def diff(
    session: Session,
    before: Annotated[str, typer.Argument(metavar="A", help=_WHICH, show_default=False)],
    after: Annotated[str, typer.Argument(metavar="B", help="What to compare it with.", show_default=False)],
) -> Answer:
    """Show what B says that A does not, line by line."""
    found = differences(_says(session, before), _says(session, after))
    data = {"before": before, "after": after, "differences": list(map(_plain, found))}
    if not found:
        return Answer(data, [f"{before} and {after} say the same."])
    return Answer(data, [_table(f"From {before} to {after}", found)])


def _read(file: Path) -> PriceFile:
    try:
        return read(file)
    except OSError as error:
        raise Misuse(f"cannot read {file}: {error.strerror}") from None


def _exists(session: Session, stub: Any, wanted: PriceFile) -> bool:
    """Whether there is the book of a file. Raises PriceFileError if it is another one than the file says."""
    try:
        request = pb.GetPriceBookRequest(price_book_id=wanted.price_book_id)
        book = session.call(stub.GetPriceBook, request).price_book
    except NotFound:
        return False
    except InvalidArgument as error:
        _raise_at(wanted, error)
    problems = [
        wanted.problem(field, f"{book.price_book_id} has {there or 'none'!r}, and that never changes")
        for field in ("organization_id", "currency_code", "display_name", "for_contracts")
        if (there := getattr(book, field)) != getattr(wanted, field)
        # A file need not tell the name.
        and (field != "display_name" or wanted.display_name)
    ]
    if problems:
        raise PriceFileError(wanted.path, sorted(problems))
    return True


def _preview(
    session: Session, stub: Any, wanted: PriceFile, *, is_new: bool, from_when: datetime | None
) -> pb.PreviewPriceVersionResponse:
    request = pb.PreviewPriceVersionRequest(
        price_book_id="" if is_new else wanted.price_book_id,
        prices=wanted.prices,
        meters=wanted.meters,
        plans=wanted.plans,
        effective_time=timestamp_of(from_when) if from_when is not None else None,
        currency_code=wanted.currency_code if is_new else "",
    )
    try:
        answer: pb.PreviewPriceVersionResponse = session.call(stub.PreviewPriceVersion, request)
    except InvalidArgument as error:
        _raise_at(wanted, error)
    return answer


def _publish(
    session: Session,
    stub: Any,
    wanted: PriceFile,
    preview: pb.PreviewPriceVersionResponse,
    *,
    is_new: bool,
    from_when: datetime | None,
) -> price_book_pb2.PriceVersion:
    create = pb.CreatePriceVersionRequest(
        price_book_id=wanted.price_book_id, prices=wanted.prices, meters=wanted.meters, plans=wanted.plans
    )
    # The same list after the same version is the same draft: what was interrupted here goes on there.
    content = create.SerializeToString(deterministic=True) + preview.base_price_version_id.encode()
    create.idempotency_key = f"prices apply {hashlib.sha256(content).hexdigest()}"
    try:
        if is_new:
            session.call(
                stub.CreatePriceBook,
                pb.CreatePriceBookRequest(
                    price_book_id=wanted.price_book_id,
                    organization_id=wanted.organization_id,
                    currency_code=wanted.currency_code,
                    display_name=wanted.display_name,
                    for_contracts=wanted.for_contracts,
                ),
            )
        draft = session.call(stub.CreatePriceVersion, create).price_version
    except InvalidArgument as error:
        _raise_at(wanted, error)
    publish = pb.PublishPriceVersionRequest(
        price_version_id=draft.price_version_id,
        effective_time=timestamp_of(from_when) if from_when is not None else None,
    )
    published: pb.PublishPriceVersionResponse = session.call(stub.PublishPriceVersion, publish)
    return published.price_version


def _raise_at(wanted: PriceFile, error: InvalidArgument) -> NoReturn:
    """Raise what the service finds wrong where the file says it; the error itself if the file does not."""
    of_file = ("prices", "meters", "plans", *_fields_of_book())
    if not error.field_violations or any(not one.field.startswith(of_file) for one in error.field_violations):
        raise error
    problems = [wanted.problem(one.field, one.description) for one in error.field_violations]
    raise PriceFileError(wanted.path, sorted(problems)) from None


def _fields_of_book() -> tuple[str, ...]:
    return tuple(pb.CreatePriceBookRequest.DESCRIPTOR.fields_by_name)


def _ask(shown: Sequence[Part]) -> None:
    """Ask whether to publish what is shown. Raises Misuse where nobody can answer, and typer.Abort."""
    if not sys.stdin.isatty():
        raise Misuse("nobody is here to be asked; do: give --yes, or --dry-run to see what would change")
    output.show(Answer(None, shown), as_json=False, out=sys.stdout)
    typer.confirm("Publish this?", abort=True, err=True)


def _nothing(book: str, preview: pb.PreviewPriceVersionResponse, now: datetime) -> str:
    starts = optional_time(preview, "base_effective_time")
    tense = "applies from" if starts is None or starts > now else "has applied since"
    version = f"version {preview.base_version_number} of {book}"
    return f"Nothing to change: {version} {tense} {moment(starts)}, and says this."


def _changes(wanted: PriceFile, preview: pb.PreviewPriceVersionResponse, *, is_new: bool) -> list[Part]:
    base = preview.base_version_number
    title = (
        f"Changes of {wanted.price_book_id} after version {base}" if base else f"New: {wanted.price_book_id}"
    )
    parts: list[Part] = [
        _table(title, [Difference(one.path, one.before, one.after) for one in preview.differences])
    ]
    if preview.difference_count > len(preview.differences):
        parts.append(f"… and {preview.difference_count - len(preview.differences)} more.")
    if is_new:
        owner = wanted.organization_id or "the platform"
        parts.append(f"The book is new: {wanted.currency_code}, of {owner}.")
    return parts


def _table(title: str, found: Sequence[Difference]) -> Table:
    rows = [
        ("+" if not one.before else "-" if not one.after else "~", one.path, one.before, one.after)
        for one in found
    ]
    return Table(title, ("", "line", "before", "after"), rows)


def _plain(one: Difference | pb.PriceDifference) -> dict[str, str]:
    return {"path": one.path, "before": one.before, "after": one.after}


def _says(session: Session, which: str) -> Document:
    """What a file, a book or a version says."""
    book, _, number = which.partition("@")
    if Path(which).suffix in (".yaml", ".yml") or not book.startswith("pb_"):
        return _read(Path(which)).document
    if number and not number.isdecimal():
        raise Misuse(f"{which} is no version; do: give a number, such as {book}@3")
    stub = PricingServiceStub(session.channel("metering"))
    found = _found_version(session, stub, book, int(number) if number else None)
    return document(found.prices, found.meters, found.plans)


def _found_version(session: Session, stub: Any, book: str, number: int | None) -> price_book_pb2.PriceVersion:
    """A version by its number, or the one in force. Raises Misuse if there is none."""
    versions = _versions(session, stub, book)
    if number is None:
        current = _in_force(list(versions), session.now)
        if current is None:
            raise Misuse(f"no version of {book} is in force; do: name one with its number")
        return current
    for version in versions:
        if version.version_number == number:
            return version
    raise Misuse(f"{book} has no version {number}; do: see `tallystick prices list {book}`")


def _versions(session: Session, stub: Any, book: str) -> Iterator[price_book_pb2.PriceVersion]:
    """The versions of a book, the newest first."""
    request = pb.ListPriceVersionsRequest(price_book_id=book)
    while True:
        page: pb.ListPriceVersionsResponse = session.call(stub.ListPriceVersions, request)
        yield from page.price_versions
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _books(session: Session, stub: Any) -> Iterator[price_book_pb2.PriceBook]:
    request = pb.ListPriceBooksRequest()
    while True:
        page: pb.ListPriceBooksResponse = session.call(stub.ListPriceBooks, request)
        yield from page.price_books
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _in_force(
    versions: Sequence[price_book_pb2.PriceVersion], now: datetime
) -> price_book_pb2.PriceVersion | None:
    """The published version that began to apply last."""
    begun = [
        one
        for one in versions
        if one.HasField("effective_time") and one.effective_time.ToDatetime(UTC) <= now
    ]
    return max(begun, key=lambda one: one.effective_time.ToDatetime(UTC), default=None)


def _state(version: price_book_pb2.PriceVersion) -> str:
    return "published" if version.state == price_book_pb2.PRICE_VERSION_STATE_PUBLISHED else "draft"


def _version_row(version: price_book_pb2.PriceVersion, *, is_current: bool) -> tuple[str, ...]:
    return (
        str(version.version_number),
        "in force" if is_current else _state(version),
        moment(optional_time(version, "effective_time")),
        moment(optional_time(version, "publish_time")),
        version.publisher_api_key_id or "–",
        str(len(version.prices)),
    )


def _version_facts(version: price_book_pb2.PriceVersion) -> Facts:
    starts = optional_time(version, "effective_time")
    rows = [
        ("version", f"{version.version_number} of {version.price_book_id}"),
        ("id", version.price_version_id),
        ("state", _state(version)),
        ("applies from", moment(starts)),
        ("published", moment(optional_time(version, "publish_time"))),
        ("by", version.publisher_api_key_id or "–"),
    ]
    return Facts("Price version", rows)


def _version_data(version: price_book_pb2.PriceVersion) -> dict[str, object]:
    return {
        "price_version_id": version.price_version_id,
        "price_book_id": version.price_book_id,
        "version_number": version.version_number,
        "state": _state(version),
        "effective_time": optional_time(version, "effective_time"),
        "create_time": version.create_time.ToDatetime(UTC),
        "publish_time": optional_time(version, "publish_time"),
        "publisher_api_key_id": version.publisher_api_key_id,
    }


def _book_data(book: price_book_pb2.PriceBook) -> dict[str, object]:
    return {
        "price_book_id": book.price_book_id,
        "organization_id": book.organization_id,
        "currency_code": book.currency_code,
        "display_name": book.display_name,
        "create_time": book.create_time.ToDatetime(UTC),
    }
