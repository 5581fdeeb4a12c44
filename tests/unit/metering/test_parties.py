"""Looking parties up: what is remembered, and what is asked again."""

from collections.abc import Sequence
from datetime import timedelta

from services.metering.rpc.ledger import Ledger
from services.metering.rpc.parties import Directory
from tallystick.ledger.v1 import directory_pb2, directory_service_pb2
from tests.support.waiting import eventually


class FakeLedger(Ledger):
    """Knows some customers, and versions of agents of org_a; remembers what it was asked."""

    def __init__(self, customers: set[str], agents: dict[str, set[str]]) -> None:
        self.customers = customers
        self.agents = agents
        self.asked: list[tuple[list[str], list[str]]] = []

    async def look_up(
        self, customer_ids: Sequence[str], agent_ids: Sequence[str]
    ) -> directory_service_pb2.LookupPartiesResponse:
        self.asked.append((list(customer_ids), list(agent_ids)))
        found = [agent_id for agent_id in agent_ids if agent_id in self.agents]
        return directory_service_pb2.LookupPartiesResponse(
            customer_ids=[customer_id for customer_id in customer_ids if customer_id in self.customers],
            agents=[directory_pb2.Agent(agent_id=agent_id, organization_id="org_a") for agent_id in found],
            agent_versions=[
                directory_pb2.AgentVersion(agent_id=agent_id, agent_version=version)
                for agent_id in found
                for version in self.agents[agent_id]
            ],
        )


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_all_strangers_of_a_batch_are_asked_for_in_one_call_and_then_remembered() -> None:
    ledger = FakeLedger({"cus_1", "cus_2"}, {"agt_a": {"1"}, "agt_b": set()})
    directory = Directory(ledger)

    found = await directory.find(["cus_2", "cus_1", "cus_1"], [("agt_a", "1"), ("agt_b", ""), ("agt_a", "")])
    again = await directory.find(["cus_1"], [("agt_b", "")])

    assert set(found.customers) == {"cus_1", "cus_2"}
    assert found.agents["agt_a"].organization_id == "org_a"
    assert found.agents["agt_a"].has_version("1")
    assert set(again.customers) == {"cus_1"}
    assert ledger.asked == [(["cus_1", "cus_2"], ["agt_a", "agt_b"])]


async def test_who_was_not_found_is_asked_for_again() -> None:
    ledger = FakeLedger(set(), {})
    directory = Directory(ledger)
    assert not (await directory.find(["cus_new"], [("agt_new", "")])).customers

    ledger.customers.add("cus_new")
    ledger.agents["agt_new"] = set()

    found = await directory.find(["cus_new"], [("agt_new", "")])
    assert "cus_new" in found.customers
    assert "agt_new" in found.agents


async def test_a_version_that_is_not_known_yet_is_asked_for() -> None:
    ledger = FakeLedger(set(), {"agt_a": {"1"}})
    directory = Directory(ledger)
    await directory.find([], [("agt_a", "1")])
    ledger.agents["agt_a"].add("2")

    found = await directory.find([], [("agt_a", "2")])

    assert found.agents["agt_a"].has_version("2")
    assert len(ledger.asked) == 2


async def test_what_was_found_is_believed_for_a_time() -> None:
    ledger, time = FakeLedger({"cus_1"}, {}), Time()
    directory = Directory(ledger, ttl=timedelta(seconds=30), monotonic=time)
    await directory.find(["cus_1"], [])
    ledger.customers.clear()

    time.now = 29.9
    assert "cus_1" in (await directory.find(["cus_1"], [])).customers
    time.now = 30.0
    assert "cus_1" not in (await directory.find(["cus_1"], [])).customers


async def test_the_memory_is_bounded_and_what_was_learned_first_gives_way() -> None:
    ledger = FakeLedger({"cus_1", "cus_2", "cus_3"}, {})
    directory = Directory(ledger, max_entries=2)
    for customer_id in ("cus_1", "cus_2", "cus_3"):
        await directory.find([customer_id], [])
    ledger.asked.clear()

    await directory.find(["cus_2", "cus_3"], [])
    assert ledger.asked == []
    await directory.find(["cus_1"], [])
    assert ledger.asked == [(["cus_1"], [])]


async def test_an_answer_holds_all_that_was_asked_even_beyond_the_bound() -> None:
    everybody = {f"cus_{number}" for number in range(10)}
    directory = Directory(FakeLedger(everybody, {}), max_entries=3)

    assert set((await directory.find(everybody, [])).customers) == everybody


async def test_those_that_grow_old_are_asked_for_again_together_before_anybody_has_to_wait() -> None:
    ledger = FakeLedger({"cus_1", "cus_2", "cus_3"}, {"agt_a": set()})
    time = Time()
    directory = Directory(ledger, ttl=timedelta(seconds=30), monotonic=time)
    for customer_id in ("cus_1", "cus_2", "cus_3"):
        await directory.find([customer_id], [("agt_a", "")])
    ledger.asked.clear()

    time.now = 20.0
    for customer_id in ("cus_1", "cus_2"):
        await directory.find([customer_id], [("agt_a", "")])

    async def is_asked() -> bool:
        return bool(ledger.asked)

    await eventually(is_asked)
    assert ledger.asked == [(["cus_1", "cus_2"], ["agt_a"])]
    # Their time starts again; of those that nobody used it is over.
    time.now = 31.0
    await directory.find(["cus_1", "cus_2"], [("agt_a", "")])
    assert len(ledger.asked) == 1
    await directory.find(["cus_3"], [])
    assert ledger.asked[1:] == [(["cus_3"], [])]
