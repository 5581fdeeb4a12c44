"""Price books: who may change prices, what never changes, and which price applies."""

import asyncio
import itertools
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg import sql

from services.kit.errors import Code
from tallystick.metering.v1 import price_book_pb2, usage_pb2
from tallystick.metering.v1 import pricing_service_pb2 as pb
from tests.integration.metering.world import RUN_MICROS, World, fields_of, refused, run
from tests.support.metering_server import AGENT_RUN, Caller, bonus, fee, price, tokens
from tests.support.waiting import eventually

HOUR = timedelta(hours=1)


async def new_book(
    caller: Caller,
    book_id: str = "",
    *,
    organization_id: str = "org_a",
    currency: str = "USD",
    name: str = "",
) -> price_book_pb2.PriceBook:
    response = await caller.pricing.CreatePriceBook(
        pb.CreatePriceBookRequest(
            price_book_id=book_id, organization_id=organization_id, currency_code=currency, display_name=name
        )
    )
    return response.price_book


async def draft(
    caller: Caller, book_id: str, *prices: price_book_pb2.Price, key: str = "k"
) -> price_book_pb2.PriceVersion:
    response = await caller.pricing.CreatePriceVersion(
        pb.CreatePriceVersionRequest(
            price_book_id=book_id, prices=prices or [price(fee("1"))], idempotency_key=key
        )
    )
    return response.price_version


async def publish(
    caller: Caller, version_id: str, effective: datetime | None = None
) -> price_book_pb2.PriceVersion:
    request = pb.PublishPriceVersionRequest(price_version_id=version_id)
    if effective is not None:
        request.effective_time.FromDatetime(effective)
    return (await caller.pricing.PublishPriceVersion(request)).price_version


class TestBooks:
    async def test_an_owner_creates_and_reads_the_book_of_its_organization(self, world: World) -> None:
        owner = await world.new_owner("org_a")
        book = await new_book(owner, "pb_a", currency="EUR", name="List prices")

        assert (book.price_book_id, book.organization_id, book.currency_code) == ("pb_a", "org_a", "EUR")
        assert (
            await owner.pricing.GetPriceBook(pb.GetPriceBookRequest(price_book_id="pb_a"))
        ).price_book == book

    async def test_creating_it_again_answers_the_same_and_other_content_is_refused(
        self, world: World
    ) -> None:
        operator = world.server.operator
        book = await new_book(operator, "pb_a", name="one")

        assert await new_book(operator, "pb_a", name="one") == book
        assert await new_book(operator, name="one") == book
        for answer in (
            await refused(new_book(operator, "pb_a", name="two")),
            await refused(new_book(operator, "pb_b", name="one")),
            await refused(new_book(operator, "pb_a", currency="EUR", name="one")),
        ):
            assert (answer.code, answer.reason) == (Code.ALREADY_EXISTS, "RESOURCE_ALREADY_EXISTS")
            assert answer.metadata["resource_id"] == "pb_a"

    async def test_books_are_the_business_of_their_owner(self, world: World) -> None:
        owner_a, owner_b = await world.new_owner("org_a"), await world.new_owner("org_b")
        book = await new_book(owner_a, "pb_a")

        unknown = pb.GetPriceBookRequest(price_book_id=book.price_book_id)
        assert (await refused(owner_b.pricing.GetPriceBook(unknown))).reason == "PRICE_BOOK_NOT_FOUND"
        assert (await refused(draft(owner_b, "pb_a"))).reason == "PRICE_BOOK_NOT_FOUND"
        assert (await refused(new_book(owner_b))).reason == "ORGANIZATION_NOT_FOUND"
        assert (await refused(new_book(owner_b, "pb_a", organization_id="org_b"))).metadata == {
            "resource_id": "pb_a"
        }
        with pytest.raises(Exception, match="operators"):
            await new_book(owner_b, organization_id="")

    async def test_a_book_needs_an_organization_that_exists(self, world: World) -> None:
        answer = await refused(new_book(world.server.operator, organization_id="org_none"))

        assert (answer.code, answer.reason) == (Code.NOT_FOUND, "ORGANIZATION_NOT_FOUND")
        assert answer.metadata["organization_id"] == "org_none"

    @pytest.mark.parametrize(
        ("request_", "field"),
        [
            (pb.CreatePriceBookRequest(currency_code="usd"), "currency_code"),
            (pb.CreatePriceBookRequest(currency_code="USD", price_book_id="book"), "price_book_id"),
            (pb.CreatePriceBookRequest(currency_code="USD", organization_id="acme"), "organization_id"),
            (pb.CreatePriceBookRequest(currency_code="USD", display_name="x" * 201), "display_name"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    async def test_malformed_fields_are_named(
        self, world: World, request_: pb.CreatePriceBookRequest, field: str
    ) -> None:
        answer = await refused(world.server.operator.pricing.CreatePriceBook(request_))

        assert fields_of(answer) == [field]

    async def test_a_list_shows_what_the_caller_may_see_page_by_page(self, world: World) -> None:
        operator, owner = world.server.operator, await world.new_owner("org_a")
        for currency in ("CHF", "EUR", "GBP"):
            await new_book(operator, f"pb_{currency}", currency=currency)
        await new_book(operator, "pb_b", organization_id="org_b")

        first = await owner.pricing.ListPriceBooks(pb.ListPriceBooksRequest(page_size=2))
        second = await owner.pricing.ListPriceBooks(
            pb.ListPriceBooksRequest(page_size=2, page_token=first.next_page_token)
        )

        assert [book.price_book_id for book in first.price_books] == ["pb_CHF", "pb_EUR"]
        assert [book.price_book_id for book in second.price_books] == ["pb_GBP"]
        assert second.next_page_token == ""
        # Three of org_a, one of org_b, and the platform's own.
        assert len((await operator.pricing.ListPriceBooks(pb.ListPriceBooksRequest())).price_books) == 5


class TestVersions:
    async def test_a_draft_is_kept_as_it_was_written(self, world: World) -> None:
        operator = world.server.operator
        await new_book(operator, "pb_a")
        wanted = price(
            fee("0.0050"),
            tokens(price_book_pb2.TOKEN_KIND_INPUT, "0.60", "input"),
            tokens(price_book_pb2.TOKEN_KIND_OUTPUT, "0.000000000001", "output", per_units=7),
            bonus("0.2", usage_pb2.OUTCOME_PARTIAL),
            action_types=["a", "b"],
            agent_ids=["agt_a"],
        )

        version = await draft(operator, "pb_a", wanted, price(fee("1"), name="other"))

        assert (version.version_number, version.state) == (1, price_book_pb2.PRICE_VERSION_STATE_DRAFT)
        wanted.components[0].base_fee.price.per_units = 1
        wanted.components[3].outcome_bonus.price.per_units = 1
        assert version.prices[0] == wanted
        found = await operator.pricing.GetPriceVersion(
            pb.GetPriceVersionRequest(price_version_id=version.price_version_id)
        )
        assert found.price_version == version

    async def test_the_same_key_drafts_once(self, world: World) -> None:
        operator = world.server.operator
        await new_book(operator, "pb_a")
        version = await draft(operator, "pb_a", key="k")

        assert await draft(operator, "pb_a", key="k") == version
        answer = await refused(draft(operator, "pb_a", price(fee("2")), key="k"))
        assert (answer.reason, answer.metadata) == ("IDEMPOTENCY_KEY_REUSED", {"key": "k"})
        assert fields_of(await refused(draft(operator, "pb_a", key=""))) == ["idempotency_key"]
        assert (await draft(operator, "pb_a", key="k2")).version_number == 2

    async def test_versions_drafted_at_once_get_different_numbers(self, world: World) -> None:
        operator = world.server.operator
        await new_book(operator, "pb_a")

        versions = await asyncio.gather(*(draft(operator, "pb_a", key=f"k{number}") for number in range(10)))

        assert sorted(version.version_number for version in versions) == list(range(1, 11))
        listed = await operator.pricing.ListPriceVersions(
            pb.ListPriceVersionsRequest(price_book_id="pb_a", page_size=4)
        )
        assert [version.version_number for version in listed.price_versions] == [10, 9, 8, 7]
        rest = await operator.pricing.ListPriceVersions(
            pb.ListPriceVersionsRequest(price_book_id="pb_a", page_token=listed.next_page_token)
        )
        assert [version.version_number for version in rest.price_versions] == [6, 5, 4, 3, 2, 1]

    async def test_bad_prices_are_refused_where_they_are_wrong(self, world: World) -> None:
        operator = world.server.operator
        await new_book(operator, "pb_a")
        bad = price(fee("-1"), tokens(price_book_pb2.TOKEN_KIND_INPUT, "1e3", "input"), name="bad name")

        assert fields_of(await refused(draft(operator, "pb_a", bad))) == [
            "prices[0].name",
            "prices[0].components[0].base_fee.price.amount",
            "prices[0].components[1].token_rate.price.amount",
        ]
        empty = price(price_book_pb2.PriceComponent(name="nothing"))
        assert fields_of(await refused(draft(operator, "pb_a", empty))) == ["prices[0].components[0]"]
        unspecified = price(tokens(price_book_pb2.TOKEN_KIND_UNSPECIFIED, "1", "input"))
        assert fields_of(await refused(draft(operator, "pb_a", unspecified))) == [
            "prices[0].components[0].token_rate.token_kind"
        ]
        unknown = price(bonus("1", usage_pb2.OUTCOME_UNKNOWN))
        assert fields_of(await refused(draft(operator, "pb_a", unknown))) == [
            "prices[0].components[0].outcome_bonus.outcome"
        ]

    @pytest.mark.parametrize(
        ("prices", "field"),
        [
            ([], "prices"),
            ([price_book_pb2.Price()] * 1_001, "prices"),
            ([price(fee("1")), price(*[fee("1")] * 101)], "prices[1].components"),
            ([price(*[fee("1")] * 100, action_types=["a"] * 400, agent_ids=["b"] * 501)] * 10, "prices"),
        ],
        ids=["none", "prices", "components", "entries"],
    )
    async def test_a_version_that_is_too_large_is_refused_before_it_is_read(
        self, world: World, prices: list[price_book_pb2.Price], field: str
    ) -> None:
        pricing = world.server.operator.pricing
        create = pb.CreatePriceVersionRequest(price_book_id="pb_a", prices=prices, idempotency_key="k")
        update = pb.UpdatePriceVersionRequest(price_version_id="pv_a", prices=prices)

        for call in (pricing.CreatePriceVersion(create), pricing.UpdatePriceVersion(update)):
            answer = await refused(call)
            assert (answer.code, fields_of(answer)) == (Code.INVALID_ARGUMENT, [field])

    async def test_a_page_ends_before_it_is_too_large_to_travel(self, world: World) -> None:
        operator = world.server.operator
        await new_book(operator, "pb_a")
        # 1.2 megabytes: two of them are more than a page holds, four more than a message does.
        large = [
            price(fee("1"), name=f"p{number}", action_types=[f"{one:0128}" for one in range(990)])
            for number in range(10)
        ]
        for key in "abcd":
            await draft(operator, "pb_a", *large, key=key)
        await draft(operator, "pb_a", key="e")

        pages: list[list[int]] = []
        request = pb.ListPriceVersionsRequest(price_book_id="pb_a")
        while not pages or request.page_token:
            page = await operator.pricing.ListPriceVersions(request)
            pages.append([version.version_number for version in page.price_versions])
            request.page_token = page.next_page_token
        assert pages == [[5, 4], [3], [2], [1]]

    @pytest.mark.parametrize("suffix", ["", "\0", "a\0", "a b"])
    async def test_malformed_ids_are_named(self, world: World, suffix: str) -> None:
        pricing = world.server.operator.pricing
        book, version = f"pb_{suffix}", f"pv_{suffix}"

        for call, field in (
            (pricing.GetPriceBook(pb.GetPriceBookRequest(price_book_id=book)), "price_book_id"),
            (pricing.CreatePriceVersion(pb.CreatePriceVersionRequest(price_book_id=book)), "price_book_id"),
            (pricing.ListPriceVersions(pb.ListPriceVersionsRequest(price_book_id=book)), "price_book_id"),
            (
                pricing.GetPriceVersion(pb.GetPriceVersionRequest(price_version_id=version)),
                "price_version_id",
            ),
            (
                pricing.UpdatePriceVersion(pb.UpdatePriceVersionRequest(price_version_id=version)),
                "price_version_id",
            ),
            (
                pricing.PublishPriceVersion(pb.PublishPriceVersionRequest(price_version_id=version)),
                "price_version_id",
            ),
        ):
            answer = await refused(call)
            assert (answer.code, fields_of(answer)) == (Code.INVALID_ARGUMENT, [field])

    async def test_a_draft_changes_until_it_is_published_and_never_again(self, world: World) -> None:
        operator = world.server.operator
        await new_book(operator, "pb_a")
        id_ = (await draft(operator, "pb_a")).price_version_id
        update = pb.UpdatePriceVersionRequest(price_version_id=id_, prices=[price(fee("2"))])

        updated = (await operator.pricing.UpdatePriceVersion(update)).price_version
        assert updated.prices[0].components[0].base_fee.price.amount == "2"
        published = await publish(operator, id_)
        assert published.state == price_book_pb2.PRICE_VERSION_STATE_PUBLISHED
        assert published.publisher_api_key_id.startswith("key_")
        assert published.creator_api_key_id == published.publisher_api_key_id
        answer = await refused(operator.pricing.UpdatePriceVersion(update))
        assert (answer.code, answer.reason) == (Code.FAILED_PRECONDITION, "PRICE_VERSION_PUBLISHED")
        assert answer.metadata == {"price_version_id": id_}

    async def test_publishing_again_answers_the_same(self, world: World) -> None:
        operator = world.server.operator
        await new_book(operator, "pb_a")
        id_ = (await draft(operator, "pb_a")).price_version_id
        published = await publish(operator, id_)

        assert await publish(operator, id_) == published
        assert await publish(operator, id_, published.effective_time.ToDatetime(UTC)) == published
        answer = await refused(publish(operator, id_, datetime.now(UTC) + HOUR))
        assert answer.reason == "PRICE_VERSION_PUBLISHED"

    async def test_only_the_first_version_applies_to_the_past(self, world: World) -> None:
        operator = world.server.operator
        await new_book(operator, "pb_a")
        first, second, third = [
            (await draft(operator, "pb_a", key=key)).price_version_id for key in ("1", "2", "3")
        ]
        now = datetime.now(UTC)

        await publish(operator, first, now - 1000 * HOUR)
        assert fields_of(await refused(publish(operator, second, now - HOUR))) == ["effective_time"]
        await publish(operator, second, now + HOUR)
        # Now is before the version that is already announced.
        assert fields_of(await refused(publish(operator, third))) == ["effective_time"]
        await publish(operator, third, now + 2 * HOUR)

    async def test_unknown_versions_are_named(self, world: World) -> None:
        answer = await refused(publish(world.server.operator, "pv_none"))

        assert (answer.code, answer.reason) == (Code.NOT_FOUND, "PRICE_VERSION_NOT_FOUND")
        assert answer.metadata == {"price_version_id": "pv_none"}

    @pytest.mark.parametrize("role", ["metering_owner", "metering_writer", "metering_reader", None])
    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE metering.price_version SET prices = '[]'",
            "DELETE FROM metering.price_version",
            # With what refers to it, which PostgreSQL would mind first.
            "TRUNCATE metering.price_version CASCADE",
        ],
    )
    async def test_no_database_role_changes_a_published_version(
        self, world: World, role: str | None, statement: str
    ) -> None:
        def change() -> None:
            with psycopg.connect(world.server.database_url) as connection:
                if role is not None:
                    connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
                connection.execute("SELECT set_config('tallystick.platform', 'on', true)")
                connection.execute(statement.encode())

        with pytest.raises((psycopg.errors.RestrictViolation, psycopg.errors.InsufficientPrivilege)):
            change()


class TestWhichPriceApplies:
    async def test_a_new_price_applies_from_now_on_and_old_charges_stay(self, world: World) -> None:
        before = await world.meter(run("run-1"))

        await world.server.publish(price(fee("1")))

        assert (await world.meter(run("run-2"))).price_charged.amount_micros == 1_000_000
        again = await world.meter(run("run-1"))
        assert again.duplicate
        assert again.price_charged.amount_micros == RUN_MICROS
        assert again.lines == before.lines
        assert again.price_version_id == before.price_version_id

    async def test_late_news_are_priced_by_the_version_of_their_time(self, world: World) -> None:
        await world.server.publish(price(fee("1")))
        late = run("run-1")
        late.occur_time.FromDatetime(datetime.now(UTC) - HOUR)

        assert (await world.meter(late)).price_charged.amount_micros == RUN_MICROS

    async def test_a_version_that_is_announced_does_not_apply_yet(self, world: World) -> None:
        operator = world.server.operator
        await new_book(operator, "pb_a")
        first = await draft(operator, "pb_a", price(fee("1")), key="1")
        second = await draft(operator, "pb_a", price(fee("2")), key="2")
        await publish(operator, first.price_version_id)
        await publish(operator, second.price_version_id, datetime.now(UTC) + HOUR)

        assert (await world.meter(run("run-1"))).price_version_id == first.price_version_id

    async def test_the_organizations_own_book_comes_first(self, world: World) -> None:
        owner = await world.new_owner("org_a")
        own = await world.server.publish(
            price(fee("3"), action_types=["special"]), organization_id="org_a", caller=owner
        )

        special = await world.meter(run("run-1", action_type="special"))
        assert (special.price_version_id, special.price_charged.amount_micros) == (own, 3_000_000)
        # What it has no price for costs what the platform says, as do the agents of others.
        assert (await world.meter(run("run-2"))).price_charged.amount_micros == RUN_MICROS
        other = await world.meter(run("run-3", agent_id="agt_b", action_type="special"))
        assert other.price_charged.amount_micros == RUN_MICROS

    async def test_a_draft_prices_nothing(self, world: World) -> None:
        operator = world.server.operator
        await new_book(operator, "pb_a")
        await draft(operator, "pb_a", price(fee("9")))

        assert (await world.meter(run("run-1"))).price_charged.amount_micros == RUN_MICROS

    async def test_the_first_matching_price_of_a_version_applies(self, world: World) -> None:
        await world.server.publish(
            price(fee("1"), name="by-agent", agent_ids=["agt_a"], action_types=["search"]),
            price(fee("2"), name="by-action", action_types=["search"]),
        )

        assert (
            await world.meter(run("run-1", action_type="search"))
        ).price_charged.amount_micros == 1_000_000
        assert (
            await world.meter(run("run-2", action_type="search", agent_id="agt_b"))
        ).price_charged.amount_micros == 2_000_000
        answer = await refused(world.meter(run("run-3")))
        assert (answer.reason, answer.metadata["action_type"]) == ("PRICE_NOT_FOUND", "run")

    async def test_without_a_currency_the_only_book_of_the_organization_decides(self, world: World) -> None:
        await world.server.publish(price(fee("7")), organization_id="org_a", currency_code="EUR")

        implied = await world.meter(run("run-1"))
        assert (implied.price_charged.currency_code, implied.price_charged.amount_micros) == (
            "EUR",
            7_000_000,
        )
        named = await world.meter(run("run-2", currency_code="USD"))
        assert (named.price_charged.currency_code, named.price_charged.amount_micros) == ("USD", RUN_MICROS)

    async def test_a_price_published_elsewhere_is_seen_within_a_second(self, world: World) -> None:
        """Another replica publishes: this one is not told, and finds out by looking."""
        await world.meter(run("run-0"))
        with psycopg.connect(world.server.database_url) as connection:
            connection.execute(
                "INSERT INTO metering.price_book VALUES ('pb_x', 'org_a', 'USD', '', 1, now())"
            )
            connection.execute(
                "INSERT INTO metering.price_version SELECT 'pv_x', 'pb_x', 'org_a', 'USD', 1, prices, now(),"
                " now() - interval '1 day', now(), 'key_x' FROM metering.price_version LIMIT 1"
            )
        workflow_ids = (f"run-{number}" for number in itertools.count(1))

        async def seen() -> bool:
            return (await world.meter(run(next(workflow_ids)))).price_version_id == "pv_x"

        await eventually(seen)


async def test_prices_cannot_be_managed_by_hosts(world: World) -> None:
    with pytest.raises(Exception, match="may not call"):
        await world.server.publish(AGENT_RUN, caller=world.host)


class TestPreviews:
    async def preview(
        self, caller: Caller, *prices: price_book_pb2.Price, book: str = "pb_a", **fields: object
    ) -> pb.PreviewPriceVersionResponse:
        request = pb.PreviewPriceVersionRequest(price_book_id=book, prices=prices, **fields)  # type: ignore[arg-type]
        return await caller.pricing.PreviewPriceVersion(request)

    async def test_what_would_change_is_told_line_by_line_and_nothing_is_stored(self, world: World) -> None:
        owner = await world.new_owner("org_a")
        await new_book(owner, "pb_a")
        before = price(fee("0.50"), tokens(price_book_pb2.TOKEN_KIND_INPUT, "0.60", "input"), name="chat")
        published = await publish(owner, (await draft(owner, "pb_a", before)).price_version_id)

        same = await self.preview(owner, price(fee("0.5"), before.components[1], name="chat"))
        assert (same.base_price_version_id, same.base_version_number) == (published.price_version_id, 1)
        assert (same.base_effective_time, list(same.differences)) == (published.effective_time, [])

        after = price(
            fee("0.5"), tokens(price_book_pb2.TOKEN_KIND_INPUT, "0.7", "input"), bonus("1"), name="chat"
        )
        found = await self.preview(owner, after)
        base = "prices[chat].components"
        assert [(one.path, one.before, one.after) for one in found.differences] == [
            (f"{base}[input].price", "0.60 per 1_000_000", "0.7 per 1_000_000"),
            (f"{base}[bonus].bonus", "", "1"),
            (f"{base}[bonus].outcome", "", "success"),
        ]
        assert found.difference_count == 3
        listed = await owner.pricing.ListPriceVersions(pb.ListPriceVersionsRequest(price_book_id="pb_a"))
        assert list(listed.price_versions) == [published]

    async def test_it_is_compared_with_what_it_would_follow_or_a_version_that_is_named(
        self, world: World
    ) -> None:
        operator = world.server.operator
        await new_book(operator, "pb_a")
        one, two, three = [
            (await draft(operator, "pb_a", price(fee(fee_)), key=fee_)).price_version_id for fee_ in "123"
        ]
        assert (await self.preview(operator, price(fee("1")))).base_version_number == 0
        await publish(operator, one)
        later = datetime.now(UTC) + HOUR
        await publish(operator, two, later)

        assert (await self.preview(operator, price(fee("1")))).base_price_version_id == two
        drafted = await self.preview(operator, price(fee("3")), base_price_version_id=three)
        assert (drafted.base_version_number, drafted.difference_count) == (3, 0)
        assert not drafted.HasField("base_effective_time")
        assert not (await self.preview(operator, price(fee("1")), base_price_version_id=one)).differences

        for time in (datetime.now(UTC), later):
            answer = await refused(self.preview(operator, price(fee("1")), effective_time=time))
            assert fields_of(answer) == ["effective_time"]
        announced = await self.preview(operator, price(fee("1")), effective_time=later + HOUR)
        assert announced.base_price_version_id == two

    async def test_a_list_for_a_book_that_is_yet_to_be_made_is_all_new(self, world: World) -> None:
        found = await self.preview(await world.new_owner("org_a"), price(fee("1"), name="chat"), book="")

        assert [(one.path, one.after) for one in found.differences] == [
            ("prices[chat].components[fee].fee", "1")
        ]
        assert found.base_price_version_id == ""

    async def test_it_refuses_what_a_draft_is_refused_for(self, world: World) -> None:
        operator, other = world.server.operator, await world.new_owner("org_b")
        await new_book(operator, "pb_a")
        await new_book(operator, "pb_b", organization_id="org_b")
        version = await draft(operator, "pb_b")

        assert fields_of(await refused(self.preview(operator, price(fee("-1"))))) == [
            "prices[0].components[0].base_fee.price.amount"
        ]
        assert fields_of(await refused(self.preview(operator))) == ["prices"]
        assert (await refused(self.preview(other, price(fee("1"))))).reason == "PRICE_BOOK_NOT_FOUND"
        for book, currency in (("", "XAX"), ("pb_a", "USD")):
            answer = await refused(self.preview(operator, price(fee("1")), book=book, currency_code=currency))
            assert fields_of(answer) == ["currency_code"]
        named = {"base_price_version_id": version.price_version_id}
        for book in ("pb_a", ""):
            answer = await refused(self.preview(operator, price(fee("1")), book=book, **named))
            assert fields_of(answer) == ["base_price_version_id"]

    async def test_more_differences_than_travel_are_counted(self, world: World) -> None:
        operator = world.server.operator
        await new_book(operator, "pb_a")
        # Each says of which tokens, and at what price.
        rates = [tokens(price_book_pb2.TOKEN_KIND_INPUT, "1", f"rate{number}") for number in range(10)]

        found = await self.preview(operator, *[price(*rates, name=f"p{number}") for number in range(600)])

        assert (len(found.differences), found.difference_count) == (10_000, 12_000)
