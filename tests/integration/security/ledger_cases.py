"""Cases of the ledger's RPCs."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.auth import hash_api_key
from tallystick.common.v1 import access_pb2
from tallystick.ledger.v1 import audit_service_pb2 as audit
from tallystick.ledger.v1 import credit_pb2, write_off_pb2
from tallystick.ledger.v1 import credit_service_pb2 as credit
from tallystick.ledger.v1 import directory_service_pb2 as directory
from tallystick.ledger.v1 import earnings_service_pb2 as earnings
from tallystick.ledger.v1 import funding_service_pb2 as funding
from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tallystick.ledger.v1 import proof_service_pb2 as proofs
from tests.integration.security.case import (
    AUDIT,
    CREDIT,
    DENIED,
    DIRECTORY,
    EARNINGS,
    FUNDING,
    HOSTS_OF_ANY_AGENT,
    HOSTS_OF_ANY_CUSTOMER,
    LEDGER,
    LISTED,
    NOT_FOUND,
    NOTHING,
    PROOFS,
    TAKEN,
    Case,
    case_of,
    one,
)
from tests.integration.security.requests import (
    adjust_request,
    charge_intent,
    correct_request,
    debit_request,
    grant_request,
    reverse_request,
    usd,
)
from tests.integration.security.world import PLATFORM, World

# LedgerService

one(
    LEDGER,
    "PostCharge",
    lambda w: ledger.PostChargeRequest(intent=charge_intent(w.bravo.customer, "wf-post", 7, w.bravo)),
)
one(
    LEDGER,
    "PostCharges",
    lambda w: ledger.PostChargesRequest(intents=[charge_intent(w.bravo.customer, "wf-posts", 7, w.bravo)]),
)
one(LEDGER, "CorrectCharge", lambda w: correct_request(w.bravo.charge, "matrix"))


@case_of(LEDGER, "ListCorrections")
def _(world: World) -> Iterator[Case]:
    yield Case(ledger.ListCorrectionsRequest(charge_id=world.bravo.charge))
    yield Case(ledger.ListCorrectionsRequest(charge_id=world.shared_charge), shared=True)


one(LEDGER, "GrantCredits", lambda w: grant_request(w.bravo))
one(LEDGER, "AdjustBalances", lambda w: adjust_request("matrix", w.bravo))
one(
    LEDGER,
    "ApproveAdjustment",
    lambda w: ledger.ApproveAdjustmentRequest(adjustment_id=w.proposals[0]),
)
one(
    LEDGER,
    "RejectAdjustment",
    lambda w: ledger.RejectAdjustmentRequest(adjustment_id=w.proposals[1], reason="A test of tenants."),
)
one(LEDGER, "ListAdjustments", lambda w: ledger.ListAdjustmentsRequest())
one(
    LEDGER,
    "GetCustomerBalance",
    lambda w: ledger.GetCustomerBalanceRequest(customer_id=w.bravo.customer),
    reach=PLATFORM | HOSTS_OF_ANY_CUSTOMER,
)
one(
    LEDGER,
    "GetEarningsBalance",
    lambda w: ledger.GetEarningsBalanceRequest(organization_id=w.bravo.organization),
)


@case_of(LEDGER, "GetCharge")
def _(world: World) -> Iterator[Case]:
    yield Case(ledger.GetChargeRequest(charge_id=world.bravo.charge))
    yield Case(ledger.GetChargeRequest(charge_id=world.shared_charge), shared=True)


@case_of(LEDGER, "GetTransaction")
def _(world: World) -> Iterator[Case]:
    for transaction_id in (world.bravo.transaction, world.bravo.grant):
        yield Case(ledger.GetTransactionRequest(transaction_id=transaction_id))
    yield Case(ledger.GetTransactionRequest(transaction_id=world.shared_transaction), shared=True)


def _owners(world: World) -> tuple[str, ...]:
    return (world.bravo.customer, world.bravo.organization, "platform")


@case_of(LEDGER, "ListAccounts")
def _(world: World) -> Iterator[Case]:
    for owner_id in _owners(world):
        yield Case(ledger.ListAccountsRequest(owner_id=owner_id))
    yield Case(ledger.ListAccountsRequest(), refusals=LISTED)


@case_of(LEDGER, "ListTransactions")
def _(world: World) -> Iterator[Case]:
    for owner_id in _owners(world):
        yield Case(ledger.ListTransactionsRequest(owner_id=owner_id))
    yield Case(ledger.ListTransactionsRequest(), refusals=LISTED)


@case_of(LEDGER, "ListEntries")
def _(world: World) -> Iterator[Case]:
    for owner_id in _owners(world):
        yield Case(ledger.ListEntriesRequest(owner_id=owner_id))
    yield Case(ledger.ListEntriesRequest(), refusals=LISTED)


@case_of(LEDGER, "ReadJournal")
def _(world: World) -> Iterator[Case]:
    yield Case(ledger.ReadJournalRequest(include_charges=True))
    yield Case(ledger.ReadJournalRequest(owner_ids=[world.bravo.customer]))
    yield Case(ledger.ReadJournalRequest(include_charges=True, form=ledger.JOURNAL_FORM_COLUMNS))


# LedgerProofService


@case_of(PROOFS, "GetCheckpoint")
def _(world: World) -> Iterator[Case]:
    yield Case(proofs.GetCheckpointRequest(), shared=True)


@case_of(PROOFS, "GetConsistencyProof")
def _(world: World) -> Iterator[Case]:
    yield Case(proofs.GetConsistencyProofRequest(from_size=1), shared=True)


@case_of(PROOFS, "GetTransactionProof")
def _(world: World) -> Iterator[Case]:
    for transaction_id in (world.bravo.transaction, world.bravo.grant):
        yield Case(proofs.GetTransactionProofRequest(transaction_id=transaction_id))
    yield Case(proofs.GetTransactionProofRequest(transaction_id=world.shared_transaction), shared=True)


# DirectoryService

one(
    DIRECTORY,
    "CreateOrganization",
    lambda w: directory.CreateOrganizationRequest(
        organization_id=w.bravo.organization,
        display_name=w.bravo.organization,
        platform_fee_bps=1500,
        processing_fee_bps=290,
    ),
)
one(
    DIRECTORY,
    "GetOrganization",
    lambda w: directory.GetOrganizationRequest(organization_id=w.bravo.organization),
)
case_of(DIRECTORY, "ListOrganizations")(
    lambda w: [Case(directory.ListOrganizationsRequest(), refusals=LISTED)]
)
one(
    DIRECTORY,
    "CreateRevenueShareAgreement",
    lambda w: directory.CreateRevenueShareAgreementRequest(
        organization_id=w.bravo.organization, platform_fee_bps=10_000, idempotency_key="matrix"
    ),
)
one(
    DIRECTORY,
    "ListRevenueShareAgreements",
    lambda w: directory.ListRevenueShareAgreementsRequest(organization_id=w.bravo.organization),
)
one(DIRECTORY, "CreateCustomer", lambda w: directory.CreateCustomerRequest(customer_id=w.bravo.customer))
one(DIRECTORY, "GetCustomer", lambda w: directory.GetCustomerRequest(customer_id=w.bravo.customer))
case_of(DIRECTORY, "ListCustomers")(lambda w: [Case(directory.ListCustomersRequest(), refusals=LISTED)])
one(
    DIRECTORY,
    "SetCreditLimit",
    lambda w: directory.SetCreditLimitRequest(customer_id=w.bravo.customer, credit_limit=usd(1)),
)

one(
    DIRECTORY,
    "FreezePayouts",
    lambda w: directory.FreezePayoutsRequest(organization_id=w.bravo.idle_organization, reason="matrix"),
)
one(
    DIRECTORY,
    "UnfreezePayouts",
    lambda w: directory.UnfreezePayoutsRequest(organization_id=w.bravo.idle_organization, reason="matrix"),
)
one(
    DIRECTORY,
    "FreezeCustomer",
    lambda w: directory.FreezeCustomerRequest(customer_id=w.bravo.idle_customer, reason="matrix"),
)
one(
    DIRECTORY,
    "UnfreezeCustomer",
    lambda w: directory.UnfreezeCustomerRequest(customer_id=w.bravo.idle_customer, reason="matrix"),
)


@case_of(DIRECTORY, "CreateAgent")
def _(world: World) -> Iterator[Case]:
    alpha, bravo = world.alpha, world.bravo
    yield Case(
        directory.CreateAgentRequest(
            agent_id=bravo.agent, organization_id=bravo.organization, display_name=bravo.agent
        )
    )
    yield Case(
        directory.CreateAgentRequest(agent_id=bravo.agent, organization_id=alpha.organization),
        reach=frozenset(),
        refusals=TAKEN,
    )


one(
    DIRECTORY,
    "GetAgent",
    lambda w: directory.GetAgentRequest(agent_id=w.bravo.agent),
    reach=PLATFORM | HOSTS_OF_ANY_AGENT,
)


@case_of(DIRECTORY, "ListAgents")
def _(world: World) -> Iterator[Case]:
    reach = PLATFORM | HOSTS_OF_ANY_AGENT
    of_bravo = directory.ListAgentsRequest(organization_id=world.bravo.organization)
    yield Case(of_bravo, reach, refusals=NOTHING)
    yield Case(directory.ListAgentsRequest(), reach, refusals=LISTED)


one(
    DIRECTORY,
    "CreateAgentVersion",
    lambda w: directory.CreateAgentVersionRequest(agent_id=w.bravo.agent, agent_version="matrix"),
)
one(
    DIRECTORY,
    "ListAgentVersions",
    lambda w: directory.ListAgentVersionsRequest(agent_id=w.bravo.agent),
    reach=PLATFORM | HOSTS_OF_ANY_AGENT,
)


@case_of(DIRECTORY, "CreateMember")
def _(world: World) -> Iterator[Case]:
    alpha, bravo = world.alpha, world.bravo
    yield Case(
        directory.CreateMemberRequest(
            member_id=bravo.member, organization_id=bravo.organization, role=access_pb2.ROLE_OWNER
        )
    )
    yield Case(
        directory.CreateMemberRequest(
            member_id=bravo.member, organization_id=alpha.organization, role=access_pb2.ROLE_OWNER
        ),
        reach=frozenset(),
        refusals=TAKEN,
    )


one(DIRECTORY, "ListMembers", lambda w: directory.ListMembersRequest(organization_id=w.bravo.organization))
one(DIRECTORY, "DeleteMember", lambda w: directory.DeleteMemberRequest(member_id=w.bravo.member))


@case_of(DIRECTORY, "CreateApiKey")
def _(world: World) -> Iterator[Case]:
    alpha, bravo = world.alpha, world.bravo

    def key(role: access_pb2.Role.ValueType, **fields: object) -> Message:
        fields["idempotency_key"] = f"matrix-{role}-{'-'.join(sorted(fields))}"
        return directory.CreateApiKeyRequest(role=role, **fields)  # type: ignore[arg-type]

    yield Case(key(access_pb2.ROLE_MEMBER, organization_id=bravo.organization))
    # What nobody may have, since it would be alpha's and reach what is bravo's.
    yield Case(
        key(access_pb2.ROLE_OWNER, organization_id=alpha.organization, member_id=bravo.member),
        reach=frozenset(),
    )
    # What only operators hand out.
    yield Case(
        key(access_pb2.ROLE_HOST, organization_id=alpha.organization, agent_ids=[bravo.agent]),
        refusals=DENIED | NOT_FOUND,
        reach=frozenset(),
    )
    yield Case(key(access_pb2.ROLE_CUSTOMER, customer_id=bravo.customer), refusals=DENIED)
    yield Case(key(access_pb2.ROLE_HOST, customer_ids=[bravo.customer]), refusals=DENIED)
    for role in (access_pb2.ROLE_OPERATOR, access_pb2.ROLE_SERVICE):
        yield Case(key(role), refusals=DENIED)


@case_of(DIRECTORY, "ListApiKeys")
def _(world: World) -> Iterator[Case]:
    yield Case(directory.ListApiKeysRequest(organization_id=world.bravo.organization))
    yield Case(directory.ListApiKeysRequest(), refusals=LISTED)


@case_of(DIRECTORY, "RevokeApiKey")
def _(world: World) -> Iterator[Case]:
    for api_key_id in (world.bravo.owner_key, world.bravo.host_key, world.bravo.customer_key):
        yield Case(directory.RevokeApiKeyRequest(api_key_id=api_key_id))


@case_of(DIRECTORY, "GetCurrentApiKey")
def _(world: World) -> Iterator[Case]:
    # It names nobody: everybody gets their own.
    yield Case(directory.GetCurrentApiKeyRequest(), refusals=LISTED)


one(
    DIRECTORY,
    "ResolveApiKey",
    lambda w: directory.ResolveApiKeyRequest(key_hash=hash_api_key(w.principals["operator"].key)),
)
one(
    DIRECTORY,
    "LookupParties",
    lambda w: directory.LookupPartiesRequest(customer_ids=[w.bravo.customer], agent_ids=[w.bravo.agent]),
)


# CreditService


def _soon() -> Timestamp:
    return Timestamp(seconds=int((datetime.now(UTC) + timedelta(hours=1)).timestamp()))


one(
    CREDIT,
    "OpenLease",
    # Metering has opened the first one.
    lambda w: credit.OpenLeaseRequest(customer_id=w.bravo.customer, currency_code="USD", wanted_micros=1),
)
one(
    CREDIT,
    "RenewLeases",
    lambda w: credit.RenewLeasesRequest(
        renewals=[credit.LeaseRenewal(customer_id=w.bravo.customer, currency_code="USD", epoch=1)]
    ),
)
one(
    CREDIT,
    "ReturnLease",
    lambda w: credit.ReturnLeaseRequest(
        customer_id=w.bravo.customer, currency_code="USD", epoch=1, return_number=1, amount_micros=1
    ),
)


@case_of(CREDIT, "PlaceHolds")
def _(world: World) -> Iterator[Case]:
    for purpose, hold_id in (
        (credit_pb2.HOLD_PURPOSE_RUN, "matrix-run"),
        (credit_pb2.HOLD_PURPOSE_OUTCOME, "matrix-outcome"),
    ):
        hold = credit.HoldRequest(
            customer_id=world.bravo.customer,
            hold_id=hold_id,
            purpose=purpose,
            amount=usd(1),
            expire_time=_soon(),
            content_hash=bytes(32),
        )
        yield Case(credit.PlaceHoldsRequest(holds=[hold]))


@case_of(CREDIT, "ReleaseReservations")
def _(world: World) -> Iterator[Case]:
    for epoch in (0, 1):
        release = credit.ReservationRelease(
            customer_id=world.bravo.customer,
            currency_code="USD",
            reservation_id="matrix-run",
            lease_epoch=epoch,
            expire_time=_soon(),
        )
        yield Case(credit.ReleaseReservationsRequest(releases=[release]))


@case_of(CREDIT, "ListLeases")
def _(world: World) -> Iterator[Case]:
    yield Case(credit.ListLeasesRequest())
    yield Case(credit.ListLeasesRequest(customer_id=world.bravo.customer))


@case_of(CREDIT, "ListHolds")
def _(world: World) -> Iterator[Case]:
    yield Case(credit.ListHoldsRequest())
    yield Case(
        credit.ListHoldsRequest(customer_id=world.bravo.customer, purpose=credit_pb2.HOLD_PURPOSE_OUTCOME)
    )


@case_of(CREDIT, "ListCreditLots")
def _(world: World) -> Iterator[Case]:
    yield Case(credit.ListCreditLotsRequest(), refusals=LISTED)
    yield Case(credit.ListCreditLotsRequest(customer_id=world.bravo.customer))


# EarningsService

one(EARNINGS, "DebitPayout", lambda w: debit_request(w.bravo, "po_first"))
one(
    EARNINGS,
    "GetPayoutDebit",
    lambda w: earnings.GetPayoutDebitRequest(organization_id=w.bravo.organization, payout_id="po_first"),
)
one(
    EARNINGS,
    "ReturnPayout",
    lambda w: earnings.ReturnPayoutRequest(organization_id=w.bravo.organization, payout_id="po_cancelled"),
)
one(
    EARNINGS,
    "CompletePayout",
    lambda w: earnings.CompletePayoutRequest(organization_id=w.bravo.organization, payout_id="po_sent"),
)
one(
    EARNINGS,
    "ReversePayout",
    lambda w: earnings.ReversePayoutRequest(
        organization_id=w.bravo.organization,
        payout_id="po_completed",
        reversal_id="trr_1",
        amount=usd(1),
    ),
)


@case_of(EARNINGS, "ListPayoutDebits")
def _(world: World) -> Iterator[Case]:
    yield Case(earnings.ListPayoutDebitsRequest())
    yield Case(earnings.ListPayoutDebitsRequest(organization_id=world.bravo.organization))


one(
    EARNINGS,
    "ListPayableEarnings",
    lambda w: earnings.ListPayableEarningsRequest(organization_id=w.bravo.organization),
)


# FundingService

one(FUNDING, "ReversePurchase", lambda w: reverse_request(w.bravo, "re_matrix"))
one(
    FUNDING,
    "ReinstatePurchase",
    lambda w: funding.ReinstatePurchaseRequest(
        customer_id=w.bravo.customer, reversal_id="re_first", reinstatement_id="adj_matrix"
    ),
)
one(
    FUNDING,
    "RecordProcessorFee",
    lambda w: funding.RecordProcessorFeeRequest(fee_id="fee_of_bravo", amount=usd(1)),
)
one(FUNDING, "ListClearingMovements", lambda w: funding.ListClearingMovementsRequest())
one(
    FUNDING,
    "WriteOff",
    lambda w: funding.WriteOffRequest(
        kind=write_off_pb2.WRITE_OFF_KIND_UNPAID,
        charge_id=w.unpaid_charge,
        reason="A test of tenants.",
        idempotency_key="matrix",
    ),
)
one(FUNDING, "ListWriteOffs", lambda w: funding.ListWriteOffsRequest(owner_id=w.bravo.customer))


# AuditService

one(AUDIT, "RunAudit", lambda w: audit.RunAuditRequest())
one(AUDIT, "StartAudit", lambda w: audit.StartAuditRequest())
one(AUDIT, "GetLatestAudit", lambda w: audit.GetLatestAuditRequest())
one(AUDIT, "ListAudits", lambda w: audit.ListAuditsRequest())


@case_of(AUDIT, "ExportJournal")
def _(world: World) -> Iterator[Case]:
    for format in (audit.JOURNAL_FORMAT_HLEDGER, audit.JOURNAL_FORMAT_BEANCOUNT):
        yield Case(audit.ExportJournalRequest(format=format))
