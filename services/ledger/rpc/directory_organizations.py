"""RPCs about organizations and their revenue share agreements."""

from services.kit import ids
from services.kit.auth import current_principal
from services.kit.times import time_from_page_key
from services.ledger.domain import directory as rules
from services.ledger.domain.directory import Organization, RevenueShareAgreement
from services.ledger.domain.violations import Violations
from services.ledger.rpc import directory_convert as convert
from services.ledger.rpc.directory_base import Context, DirectoryBase, after, key_owner, page_of
from services.ledger.store import idempotency, organizations
from services.ledger.store.directory_rows import Connection
from tallystick.ledger.v1 import directory_service_pb2 as pb


class OrganizationRpcs(DirectoryBase):
    """Part of DirectoryService."""

    async def CreateOrganization(
        self, request: pb.CreateOrganizationRequest, context: Context
    ) -> pb.CreateOrganizationResponse:
        violations = Violations()
        rules.check_optional_id(violations, request.organization_id, ids.ORGANIZATION, "organization_id")
        rules.check_text(violations, request.display_name, "display_name", longest=rules.MAX_TEXT_LENGTH)
        rules.check_terms(
            violations,
            request.platform_fee_bps,
            request.processing_fee_bps,
            request.settlement_hold_days,
            request.dispute_window_days,
        )
        violations.raise_if_any()
        now = self._clock.now()
        new = Organization(self._id(ids.ORGANIZATION, request.organization_id), request.display_name, now)
        first = RevenueShareAgreement(
            agreement_id=self._id(rules.AGREEMENT),
            organization_id=new.organization_id,
            platform_fee_bps=request.platform_fee_bps,
            processing_fee_bps=request.processing_fee_bps,
            settlement_hold_days=request.settlement_hold_days,
            dispute_window_days=request.dispute_window_days,
            effective_time=None,
            create_time=now,
        )
        organization, agreement = await self._write(
            lambda connection: organizations.create_organization(
                connection, new, first, convert.request_hash(request)
            )
        )
        return pb.CreateOrganizationResponse(
            organization=convert.organization_to_proto(organization),
            agreement=convert.agreement_to_proto(agreement),
        )

    async def GetOrganization(
        self, request: pb.GetOrganizationRequest, context: Context
    ) -> pb.GetOrganizationResponse:
        ids.check_id(request.organization_id, ids.ORGANIZATION, field="organization_id")
        async with self._read() as connection:
            organization = await organizations.get_organization(connection, request.organization_id)
        return pb.GetOrganizationResponse(organization=convert.organization_to_proto(organization))

    async def ListOrganizations(
        self, request: pb.ListOrganizationsRequest, context: Context
    ) -> pb.ListOrganizationsResponse:
        page = page_of(request, Violations())
        async with self._read() as connection:
            found = await organizations.list_organizations(
                connection, only=current_principal().organization_id, after=after(page), limit=page.limit
            )
        shown, next_page_token = page.cut(found, lambda one: (one.organization_id,))
        return pb.ListOrganizationsResponse(
            organizations=map(convert.organization_to_proto, shown), next_page_token=next_page_token
        )

    async def FreezePayouts(
        self, request: pb.FreezePayoutsRequest, context: Context
    ) -> pb.FreezePayoutsResponse:
        organization = await self._freeze_payouts(request, frozen=True)
        return pb.FreezePayoutsResponse(organization=convert.organization_to_proto(organization))

    async def UnfreezePayouts(
        self, request: pb.UnfreezePayoutsRequest, context: Context
    ) -> pb.UnfreezePayoutsResponse:
        organization = await self._freeze_payouts(request, frozen=False)
        return pb.UnfreezePayoutsResponse(organization=convert.organization_to_proto(organization))

    async def _freeze_payouts(
        self, request: pb.FreezePayoutsRequest | pb.UnfreezePayoutsRequest, *, frozen: bool
    ) -> Organization:
        violations = Violations()
        rules.check_id(violations, request.organization_id, ids.ORGANIZATION, "organization_id")
        rules.check_reason(violations, request.reason)
        violations.raise_if_any()
        actor = current_principal().api_key_id
        return await self._write(
            lambda connection: organizations.freeze_payouts(
                connection,
                request.organization_id,
                frozen=frozen,
                reason=request.reason,
                actor_api_key_id=actor,
            )
        )

    async def CreateRevenueShareAgreement(
        self, request: pb.CreateRevenueShareAgreementRequest, context: Context
    ) -> pb.CreateRevenueShareAgreementResponse:
        violations = Violations()
        rules.check_id(violations, request.organization_id, ids.ORGANIZATION, "organization_id")
        rules.check_terms(
            violations,
            request.platform_fee_bps,
            request.processing_fee_bps,
            request.settlement_hold_days,
            request.dispute_window_days,
        )
        rules.check_idempotency_key(violations, request.idempotency_key)
        wanted_time = None
        if request.HasField("effective_time"):
            wanted_time = convert.time_from_proto(violations, request.effective_time, "effective_time")
        if violations:
            # Such a request cannot have been granted before, so its time is judged too.
            rules.check_not_past(violations, wanted_time, self._clock.now(), "effective_time")
        violations.raise_if_any()
        agreement_id = self._id(rules.AGREEMENT)
        owner_id = key_owner(current_principal())

        async def create(connection: Connection) -> RevenueShareAgreement:
            first = await idempotency.claim(
                connection,
                owner_id,
                "agreement",
                request.idempotency_key,
                convert.request_hash(request),
                agreement_id,
            )
            if first is not None:
                return await organizations.get_agreement(connection, first)
            # Locked before anybody looks at the clock and at the newest agreement: of two that are recorded
            # at once, the second sees the first.
            await organizations.lock_organization(connection, request.organization_id)
            now = self._clock.now()
            (newest,) = await organizations.list_agreements(
                connection, request.organization_id, before=None, limit=1
            )
            rules.check_succession(wanted_time, now, newest)
            new = RevenueShareAgreement(
                agreement_id=agreement_id,
                organization_id=request.organization_id,
                platform_fee_bps=request.platform_fee_bps,
                processing_fee_bps=request.processing_fee_bps,
                settlement_hold_days=request.settlement_hold_days,
                dispute_window_days=request.dispute_window_days,
                effective_time=wanted_time or now,
                create_time=now,
            )
            await organizations.insert_agreement(connection, new)
            return new

        agreement = await self._write(create)
        return pb.CreateRevenueShareAgreementResponse(agreement=convert.agreement_to_proto(agreement))

    async def ListRevenueShareAgreements(
        self, request: pb.ListRevenueShareAgreementsRequest, context: Context
    ) -> pb.ListRevenueShareAgreementsResponse:
        violations = Violations()
        rules.check_id(violations, request.organization_id, ids.ORGANIZATION, "organization_id")
        page = page_of(request, violations, organization_id=request.organization_id)
        before = None if page.after is None else time_from_page_key(page.after[0])
        async with self._read() as connection:
            await organizations.get_organization(connection, request.organization_id)
            found = await organizations.list_agreements(
                connection, request.organization_id, before=before, limit=page.limit
            )
        # The agreement without a beginning is the oldest, so no page continues behind it.
        shown, next_page_token = page.cut(
            found, lambda one: (one.effective_time.isoformat() if one.effective_time else "",)
        )
        return pb.ListRevenueShareAgreementsResponse(
            agreements=map(convert.agreement_to_proto, shown), next_page_token=next_page_token
        )
