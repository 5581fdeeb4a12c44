"""Prices with tiers, conditions, discounts and limits: from the draft to lines of charges and of the feed."""

from google.protobuf.json_format import ParseDict

from services.metering.rpc.prices import price_list_from_proto
from tallystick.metering.v1 import charge_line_pb2, metering_service_pb2, usage_pb2
from tallystick.metering.v1 import pricing_service_pb2 as pb
from tallystick.metering.v1 import usage_feed_service_pb2 as feed_pb
from tests.integration.metering.world import World, fields_of, refused, run
from tests.support.waiting import eventually

PRICE_LIST = {
    "prices": [
        {
            "name": "run",
            "components": [
                {"name": "fee", "base_fee": {"price": {"amount": "0.01"}}},
                {
                    "name": "units",
                    "meter_rate": {
                        "meter": "compute_units",
                        "tier_mode": "TIER_MODE_GRADUATED",
                        "tiers": [
                            {"up_to": 2, "price": {"amount": "0.002"}},
                            {"price": {"amount": "0.001"}},
                        ],
                    },
                },
                {
                    "name": "solved",
                    "outcome_bonus": {"outcome": "OUTCOME_SUCCESS", "price": {"amount": "0.20"}},
                    "condition": "result.score >= 4",
                },
            ],
            "outcome_factors": [{"outcome": "OUTCOME_FAILURE", "basis_points": 5000}],
            "discounts": [{"name": "tenth", "basis_points": 1000}],
            "maximum": {"amount": "0.15"},
        }
    ],
    "meters": [
        {
            "meter": "compute_units",
            "terms": [
                {"meter": "cpu_milliseconds", "units": "1", "per_units": "1000"},
                {"meter": "pages", "units": "0.5"},
            ],
        }
    ],
    "plans": [
        {"name": "team", "fee": {"amount": "20"}, "allowances": [{"meter": "pages", "quantity": "10"}]}
    ],
}


def drafted(**changes: object) -> pb.CreatePriceVersionRequest:
    fields = {"price_book_id": "pb_a", "idempotency_key": "key-1", **PRICE_LIST, **changes}
    return ParseDict(fields, pb.CreatePriceVersionRequest())


async def publish(world: World) -> str:
    """Publish the list for the organization of agt_a."""
    pricing = (await world.new_owner("org_a")).pricing
    await pricing.CreatePriceBook(
        pb.CreatePriceBookRequest(price_book_id="pb_a", organization_id="org_a", currency_code="USD")
    )
    draft = (await pricing.CreatePriceVersion(drafted())).price_version
    published = await pricing.PublishPriceVersion(
        pb.PublishPriceVersionRequest(price_version_id=draft.price_version_id)
    )
    assert price_list_from_proto(published.price_version) == price_list_from_proto(drafted())
    return draft.price_version_id


def worked(workflow_id: str, score: int, **changes: object) -> usage_pb2.UsageEvent:
    event = run(workflow_id, usage=usage_pb2.Usage(cpu_milliseconds=2_001, meters={"pages": 1}), **changes)
    event.result.update({"score": score})
    return event


def lines_of(
    lines: object,
) -> list[tuple[str, int, int, int, charge_line_pb2.ChargeLineKind.ValueType]]:
    return [
        (line.component_name, line.quantity, line.amount.amount_micros, line.tier, line.kind)
        for line in lines  # type: ignore[attr-defined]
    ]


COMPONENT = charge_line_pb2.CHARGE_LINE_KIND_UNSPECIFIED
FACTOR = charge_line_pb2.CHARGE_LINE_KIND_OUTCOME_FACTOR
DISCOUNT = charge_line_pb2.CHARGE_LINE_KIND_DISCOUNT
MAXIMUM = charge_line_pb2.CHARGE_LINE_KIND_MAXIMUM
# Two and a half units are three, of which the third is in the second tier.
BASE = [
    ("fee", 1, 10_000, 0, COMPONENT),
    ("units", 2, 4_000, 1, COMPONENT),
    ("units", 1, 1_000, 2, COMPONENT),
]


async def test_work_is_charged_line_by_line_and_told_so(world: World) -> None:
    version_id = await publish(world)
    metered = [
        await world.meter(worked("won", 5)),
        await world.meter(worked("poor", 3)),
        await world.meter(worked("lost", 5, outcome=usage_pb2.OUTCOME_FAILURE)),
    ]

    won, poor, lost = (lines_of(one.lines) for one in metered)
    assert won == [
        *BASE,
        ("solved", 1, 200_000, 0, COMPONENT),
        ("tenth", 1, -21_500, 0, DISCOUNT),
        ("run", 1, -43_500, 0, MAXIMUM),
    ]
    assert poor == [*BASE, ("tenth", 1, -1_500, 0, DISCOUNT)]
    assert lost == [*BASE, ("run", 1, -7_500, 0, FACTOR), ("tenth", 1, -750, 0, DISCOUNT)]
    assert [one.price_charged.amount_micros for one in metered] == [150_000, 13_500, 6_750]
    assert {one.price_version_id for one in metered} == {version_id}

    # Stored and read again, by a repeated report, by a look at the event, and by who follows the feed.
    repeated = await world.meter(worked("won", 5))
    found = await world.find(worked("won", 5))
    assert repeated.duplicate
    assert lines_of(repeated.lines) == lines_of(found.metered.lines) == won
    assert found.event.result == worked("won", 5).result
    records: list[feed_pb.SequencedUsage] = []

    async def is_told() -> bool:
        feed = world.server.operator.feed.ReadUsage(feed_pb.ReadUsageRequest())
        records[:] = [one async for batch in feed for one in batch.records]
        return len(records) == 3

    await eventually(is_told)
    assert [lines_of(one.recorded.lines) for one in records] == [won, poor, lost]


async def test_a_pending_outcome_is_charged_what_it_owes_in_any_case(world: World) -> None:
    await publish(world)
    metered = await world.meter(worked("run-1", 5, outcome=usage_pb2.OUTCOME_PENDING))

    assert metered.price_charged.amount_micros == 6_750
    assert metered.deferred_outcome.max_bonus.amount_micros == 150_000 - 6_750
    resolved = await world.host.metering.ResolveOutcome(
        metering_service_pb2.ResolveOutcomeRequest(
            outcome_id=metered.deferred_outcome.outcome_id, outcome=usage_pb2.OUTCOME_SUCCESS
        )
    )
    assert resolved.outcome.bonus.amount_micros == 150_000 - 6_750


async def test_a_draft_that_says_something_wrong_is_refused_by_path(world: World) -> None:
    owner = await world.new_owner("org_a")
    await owner.pricing.CreatePriceBook(
        pb.CreatePriceBookRequest(price_book_id="pb_a", organization_id="org_a", currency_code="USD")
    )
    draft = drafted()
    draft.prices[0].components[1].meter_rate.tiers[0].up_to = 0
    draft.prices[0].components[2].condition = "result.score >= 4 &&"
    draft.meters[0].terms[1].meter = "compute_units"

    error = await refused(owner.pricing.CreatePriceVersion(draft))
    assert fields_of(error) == [
        "prices[0].components[1].meter_rate.tiers[0].up_to",
        "prices[0].components[2].condition",
        "meters[0].terms[1].meter",
    ]
    listed = await owner.pricing.ListPriceVersions(pb.ListPriceVersionsRequest(price_book_id="pb_a"))
    assert not listed.price_versions


async def test_an_update_replaces_all_that_a_draft_says(world: World) -> None:
    owner = await world.new_owner("org_a")
    await owner.pricing.CreatePriceBook(
        pb.CreatePriceBookRequest(price_book_id="pb_a", organization_id="org_a", currency_code="USD")
    )
    draft = (await owner.pricing.CreatePriceVersion(drafted())).price_version
    assert price_list_from_proto(draft) == price_list_from_proto(drafted())

    fee = {"name": "fee", "base_fee": {"price": {"amount": "1"}}}
    request = ParseDict(
        {"price_version_id": draft.price_version_id, "prices": [{"name": "run", "components": [fee]}]},
        pb.UpdatePriceVersionRequest(),
    )
    updated = (await owner.pricing.UpdatePriceVersion(request)).price_version
    assert not updated.meters
    assert not updated.plans


async def test_a_result_that_is_too_large_is_refused_with_the_resolution(world: World) -> None:
    metered = await world.meter(run("run-1", outcome=usage_pb2.OUTCOME_PENDING))
    request = metering_service_pb2.ResolveOutcomeRequest(
        outcome_id=metered.deferred_outcome.outcome_id, outcome=usage_pb2.OUTCOME_SUCCESS
    )
    request.result.update({"text": "x" * 16 * 1024})

    assert fields_of(await refused(world.host.metering.ResolveOutcome(request))) == ["result"]
