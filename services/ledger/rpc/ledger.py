"""LedgerService: each RPC opens one database transaction, or one coalesced batch of calls does."""

from collections.abc import Sequence

from services.kit import ids
from services.kit.auth import Principal, current_principal
from services.kit.clock import Clock
from services.kit.coalesce import Coalescer
from services.kit.db import Database, retry_transaction
from services.kit.errors import Aborted, InvalidArgument, TallystickError
from services.kit.money import check_currency
from services.kit.pages import Page
from services.kit.status import to_item_error
from services.kit.tenancy import Tenants, scope, tenants_of
from services.ledger.domain.accounts import DEFAULT_CURRENCY, PLATFORM_OWNER
from services.ledger.domain.charges import MAX_CHARGES_PER_CALL, ChargeIntent, PostedCharge, check
from services.ledger.rpc import convert
from services.ledger.rpc.adjustments import AdjustmentRpcs
from services.ledger.rpc.corrections import CorrectionRpcs
from services.ledger.rpc.credits_convert import customer_balance_to_proto
from services.ledger.rpc.grants import GrantRpcs
from services.ledger.rpc.journal import JournalRpcs
from services.ledger.rpc.ledger_base import Context, check_owner
from services.ledger.store import balances, charges, transactions
from tallystick.ledger.v1 import charge_pb2, ledger_service_pb2, ledger_service_pb2_grpc

_MAX_REASON_LENGTH = 500
_MAX_KEY_LENGTH = 128
# Database calls for one batch: more than one only if a charge comes again after it was refused.
_MAX_ROUNDS = 3

Verdict = PostedCharge | TallystickError


class LedgerService(
    AdjustmentRpcs,
    CorrectionRpcs,
    GrantRpcs,
    JournalRpcs,
    ledger_service_pb2_grpc.LedgerServiceServicer,
):
    """The journal and the balances, over gRPC."""

    def __init__(
        self, writer: Database, reader: Database, clock: Clock, *, adjustments_need_approval: bool
    ) -> None:
        super().__init__(writer, reader)
        self._adjustments_need_approval = adjustments_need_approval
        self._clock = clock
        # What a statement costs PostgreSQL beside its charges is a quarter less per charge when they gather.
        self._coalescer = Coalescer[tuple[ChargeIntent, str], PostedCharge](self._post_gathered, patience=1.0)

    async def PostCharge(
        self, request: ledger_service_pb2.PostChargeRequest, context: Context
    ) -> ledger_service_pb2.PostChargeResponse:
        intent = self._intent(request.intent)
        posted = await self._coalescer.submit((intent, current_principal().api_key_id))
        response = ledger_service_pb2.PostChargeResponse()
        convert.fill_posted(response.posted, posted)
        return response

    async def PostCharges(
        self, request: ledger_service_pb2.PostChargesRequest, context: Context
    ) -> ledger_service_pb2.PostChargesResponse:
        if not 1 <= len(request.intents) <= MAX_CHARGES_PER_CALL:
            raise InvalidArgument.of("intents", f"must be one to {MAX_CHARGES_PER_CALL}")
        intents = [self._try_intent(message) for message in request.intents]
        verdicts = await self._post(intents, current_principal().api_key_id)
        response = ledger_service_pb2.PostChargesResponse()
        for verdict in verdicts:
            _fill_verdict(response.verdicts.add(), verdict)
        return response

    def _intent(self, message: charge_pb2.ChargeIntent) -> ChargeIntent:
        intent = convert.intent_from_proto(message)
        check(intent, self._clock.now())
        return intent

    def _try_intent(self, message: charge_pb2.ChargeIntent) -> ChargeIntent | TallystickError:
        try:
            return self._intent(message)
        except InvalidArgument as error:
            return error

    async def _post_gathered(
        self, calls: list[tuple[ChargeIntent, str]]
    ) -> Sequence[PostedCharge | TallystickError]:
        """Single calls of one API key go into one statement; those of several keys into one each."""
        verdicts: dict[int, Verdict] = {}
        for actor in dict.fromkeys(actor for _, actor in calls):
            numbers = [number for number, (_, caller) in enumerate(calls) if caller == actor]
            posted = await self._post([calls[number][0] for number in numbers], actor)
            verdicts.update(zip(numbers, posted, strict=True))
        return [verdicts[number] for number in range(len(calls))]

    async def _post(
        self, intents: Sequence[ChargeIntent | TallystickError], actor_api_key_id: str
    ) -> list[Verdict]:
        """Verdicts in the order of the intents; an intent that comes again in a batch is a duplicate."""
        verdicts: dict[int, Verdict] = {}
        waiting = dict(enumerate(intents))
        for _ in range(_MAX_ROUNDS):
            # A database call judges each charge once. What comes again is judged by the first of its charge,
            # unless that was refused: the refusal of one content says nothing about another.
            first: dict[str, ChargeIntent] = {}
            for intent in waiting.values():
                if isinstance(intent, ChargeIntent):
                    first.setdefault(intent.charge_id, intent)
            posted = await self._post_distinct(list(first.values()), actor_api_key_id)
            for number, intent in list(waiting.items()):
                verdict = (
                    intent
                    if isinstance(intent, TallystickError)
                    else _repeated(intent, first[intent.charge_id], posted[intent.charge_id])
                )
                if verdict is not None:
                    verdicts[number] = verdict
                    del waiting[number]
            if not waiting:
                break
        # Somebody sends many wrong contents of one charge: the rest may come again on its own.
        verdicts |= dict.fromkeys(waiting, Aborted("too many contents of one charge in a batch"))
        return [verdicts[number] for number in range(len(intents))]

    async def _post_distinct(self, intents: list[ChargeIntent], actor_api_key_id: str) -> dict[str, Verdict]:
        """The verdicts on intents of different charges, by charge id."""
        if not intents:
            return {}

        async def post() -> list[Verdict]:
            async with self._writer.call() as connection:
                return await charges.post_charges(connection, intents, actor_api_key_id)

        try:
            # Idempotent by charge id, so it may be repeated even if the connection broke at its commit.
            posted = await retry_transaction(post, idempotent=True)
        except charges.TotalOutOfRange:
            if len(intents) == 1:
                return {intents[0].charge_id: charges.out_of_range(intents[0])}
            # Halved until the one is found: it must not fail its neighbours.
            half = len(intents) // 2
            return await self._post_distinct(intents[:half], actor_api_key_id) | await self._post_distinct(
                intents[half:], actor_api_key_id
            )
        return {intent.charge_id: verdict for intent, verdict in zip(intents, posted, strict=True)}

    async def GetCharge(
        self, request: ledger_service_pb2.GetChargeRequest, context: Context
    ) -> ledger_service_pb2.GetChargeResponse:
        charge_id = ids.check_id(request.charge_id, ids.CHARGE, field="charge_id")
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            charge = await charges.get_charge(connection, charge_id)
        return ledger_service_pb2.GetChargeResponse(charge=convert.charge_to_proto(charge))

    async def GetCustomerBalance(
        self, request: ledger_service_pb2.GetCustomerBalanceRequest, context: Context
    ) -> ledger_service_pb2.GetCustomerBalanceResponse:
        customer_id = ids.check_id(request.customer_id, ids.CUSTOMER, field="customer_id")
        currency = check_currency(request.currency_code or DEFAULT_CURRENCY)
        tenants = _balance_tenants(current_principal(), customer_id)
        balance = await self._customer_balance(tenants, customer_id, currency)
        return ledger_service_pb2.GetCustomerBalanceResponse(balance=customer_balance_to_proto(balance))

    async def GetEarningsBalance(
        self, request: ledger_service_pb2.GetEarningsBalanceRequest, context: Context
    ) -> ledger_service_pb2.GetEarningsBalanceResponse:
        organization_id = ids.check_id(request.organization_id, ids.ORGANIZATION, field="organization_id")
        currency = check_currency(request.currency_code or DEFAULT_CURRENCY)
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            balance = await balances.earnings_balance(connection, organization_id, currency)
        return ledger_service_pb2.GetEarningsBalanceResponse(
            balance=convert.earnings_balance_to_proto(balance)
        )

    async def ListAccounts(
        self, request: ledger_service_pb2.ListAccountsRequest, context: Context
    ) -> ledger_service_pb2.ListAccountsResponse:
        owner_id = _owner(request.owner_id, current_principal())
        page = Page.parse(
            request.page_size, request.page_token, key_types=(str, str), filter={"owner_id": owner_id}
        )
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            await balances.check_owner(connection, owner_id)
            found = await balances.list_accounts(connection, owner_id, page)
        accounts, next_page_token = page.cut(found, lambda one: (one.ref.kind, one.ref.currency_code))
        return ledger_service_pb2.ListAccountsResponse(
            accounts=[convert.account_to_proto(account) for account in accounts],
            next_page_token=next_page_token,
        )

    async def GetTransaction(
        self, request: ledger_service_pb2.GetTransactionRequest, context: Context
    ) -> ledger_service_pb2.GetTransactionResponse:
        transaction_id = ids.check_id(request.transaction_id, ids.TRANSACTION, field="transaction_id")
        transaction = await self._transaction(transaction_id, current_principal())
        return ledger_service_pb2.GetTransactionResponse(transaction=transaction)

    async def ListTransactions(
        self, request: ledger_service_pb2.ListTransactionsRequest, context: Context
    ) -> ledger_service_pb2.ListTransactionsResponse:
        principal = current_principal()
        owner_id = _owner(request.owner_id, principal)
        type = convert.type_from_proto(request.type, "type") if request.type else None
        page = Page.parse(
            request.page_size,
            request.page_token,
            key_types=(str,),
            filter={"owner_id": owner_id, "type": type},
        )
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(principal))
            await balances.check_owner(connection, owner_id)
            found = await transactions.list_transactions(connection, owner_id, type, page)
        shown, next_page_token = page.cut(found, lambda one: (one.transaction_id,))
        return ledger_service_pb2.ListTransactionsResponse(
            transactions=[
                convert.transaction_to_proto(one, show_actor=principal.is_platform) for one in shown
            ],
            next_page_token=next_page_token,
        )

    async def ListEntries(
        self, request: ledger_service_pb2.ListEntriesRequest, context: Context
    ) -> ledger_service_pb2.ListEntriesResponse:
        owner_id = _owner(request.owner_id, current_principal())
        kind = convert.kind_from_proto(request.kind, "kind") if request.kind else None
        currency = check_currency(request.currency_code) if request.currency_code else None
        page = Page.parse(
            request.page_size,
            request.page_token,
            key_types=(str, int),
            filter={"owner_id": owner_id, "kind": kind, "currency_code": currency},
        )
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            await balances.check_owner(connection, owner_id)
            found = await transactions.list_entries(connection, owner_id, kind, currency, page)
        shown, next_page_token = page.cut(found, lambda one: (one.transaction_id, one.entry.entry_number))
        return ledger_service_pb2.ListEntriesResponse(
            entries=[convert.posted_entry_to_proto(one) for one in shown], next_page_token=next_page_token
        )


def _fill_verdict(message: ledger_service_pb2.ChargeVerdict, verdict: Verdict) -> None:
    if isinstance(verdict, TallystickError):
        message.error.CopyFrom(to_item_error(verdict))
    else:
        convert.fill_posted(message.posted, verdict)


def _repeated(intent: ChargeIntent, first: ChargeIntent, verdict: Verdict) -> Verdict | None:
    """The verdict on an intent, given that on the first of its charge; None if that says nothing of it."""
    same = intent.content_hash == first.content_hash
    if isinstance(verdict, TallystickError):
        return verdict if same else None
    if intent is first:
        return verdict
    if not same:
        return charges.key_reused(intent.charge_id)
    if (intent.reservation, intent.outcome_hold) != (first.reservation, first.outcome_hold):
        # What became of its own reservation, only the database knows.
        return None
    return verdict._replace(
        duplicate=True, evidence_differs=intent.evidence_hash != verdict.charge.evidence_hash
    )


def _balance_tenants(principal: Principal, customer_id: str) -> Tenants:
    """Whose rows a caller sees who asks for a customer's balance: what is its own, within what its key names.

    What an organization's key names proves nothing, since the organization itself may have named it.
    """
    return tenants_of(principal) if principal.may_use_customer(customer_id) else Tenants()


def _owner(owner_id: str, principal: Principal) -> str:
    """The owner that a list is about: the one that is named, or the caller itself."""
    if not owner_id:
        return principal.organization_id or principal.customer_id or PLATFORM_OWNER
    return check_owner(owner_id, "owner_id")
