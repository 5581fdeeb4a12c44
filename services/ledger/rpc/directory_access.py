"""RPCs about who may act: members and API keys."""

from services.kit import ids
from services.kit.auth import current_principal, generate_api_key, hash_api_key, visible_prefix
from services.kit.errors import InvalidArgument
from services.ledger.domain import directory as rules
from services.ledger.domain.directory import ApiKey, Member
from services.ledger.domain.violations import Violations
from services.ledger.rpc import directory_convert as convert
from services.ledger.rpc.directory_base import Context, DirectoryBase, after, key_owner, page_of
from services.ledger.store import api_keys, idempotency, members, organizations
from services.ledger.store.directory_rows import Connection
from tallystick.ledger.v1 import directory_service_pb2 as pb

_CREATE_API_KEY = "/tallystick.ledger.v1.DirectoryService/CreateApiKey"


class AccessRpcs(DirectoryBase):
    """Part of DirectoryService."""

    async def CreateMember(
        self, request: pb.CreateMemberRequest, context: Context
    ) -> pb.CreateMemberResponse:
        violations = Violations()
        rules.check_optional_id(violations, request.member_id, ids.MEMBER, "member_id")
        rules.check_id(violations, request.organization_id, ids.ORGANIZATION, "organization_id")
        role = convert.role_from_proto(request.role)
        rules.check_member_role(violations, role)
        if violations or role is None:
            raise violations.error()
        new = Member(
            self._id(ids.MEMBER, request.member_id), request.organization_id, role, self._clock.now()
        )
        member = await self._write(
            lambda connection: members.create_member(connection, new, convert.request_hash(request))
        )
        return pb.CreateMemberResponse(member=convert.member_to_proto(member))

    async def ListMembers(self, request: pb.ListMembersRequest, context: Context) -> pb.ListMembersResponse:
        violations = Violations()
        rules.check_id(violations, request.organization_id, ids.ORGANIZATION, "organization_id")
        page = page_of(request, violations, organization_id=request.organization_id)
        async with self._read() as connection:
            await organizations.get_organization(connection, request.organization_id)
            found = await members.list_members(
                connection, request.organization_id, after=after(page), limit=page.limit
            )
        shown, next_page_token = page.cut(found, lambda one: (one.member_id,))
        return pb.ListMembersResponse(
            members=map(convert.member_to_proto, shown), next_page_token=next_page_token
        )

    async def DeleteMember(
        self, request: pb.DeleteMemberRequest, context: Context
    ) -> pb.DeleteMemberResponse:
        ids.check_id(request.member_id, ids.MEMBER, field="member_id")
        now = self._clock.now()
        member = await self._write(
            lambda connection: members.delete_member(connection, request.member_id, now)
        )
        return pb.DeleteMemberResponse(member=convert.member_to_proto(member))

    async def CreateApiKey(
        self, request: pb.CreateApiKeyRequest, context: Context
    ) -> pb.CreateApiKeyResponse:
        principal = current_principal()
        new = self._new_key(request)
        rules.check_may_create_key(principal, new, method=_CREATE_API_KEY)
        secret = generate_api_key(new.api_key_id)

        async def create(connection: Connection) -> ApiKey:
            first = await idempotency.claim(
                connection,
                key_owner(principal),
                "api-key",
                request.idempotency_key,
                convert.request_hash(request),
                new.api_key_id,
            )
            if first is not None:
                return await api_keys.get_key(connection, first)
            # Only now: the first request was in time, its repetition need not be.
            rules.check_expiry(new)
            await api_keys.create_key(
                connection, new, hash_api_key(secret), customers_visible=principal.is_platform
            )
            return new

        key = await self._write(create)
        # Also when an earlier run of this very call had committed; not when another call had.
        is_ours = key.api_key_id == new.api_key_id
        return pb.CreateApiKeyResponse(
            api_key=convert.api_key_to_proto(key), secret=secret if is_ours else ""
        )

    def _new_key(self, request: pb.CreateApiKeyRequest) -> ApiKey:
        """The key that a request asks for. Raises InvalidArgument."""
        violations = Violations()
        role = convert.role_from_proto(request.role)
        if violations.require(role is not None, "role", "is required") and role is not None:
            rules.check_key_scope(
                violations, role, request.organization_id, request.customer_id, request.member_id
            )
        rules.check_key_restrictions(violations, role, request.agent_ids, request.customer_ids)
        rules.check_text(violations, request.description, "description", longest=rules.MAX_TEXT_LENGTH)
        rules.check_idempotency_key(violations, request.idempotency_key)
        expire_time = None
        if request.HasField("expire_time"):
            expire_time = convert.time_from_proto(violations, request.expire_time, "expire_time")
        now = self._clock.now()
        if violations:
            # Such a request cannot have been granted before, so its time is judged too.
            rules.check_not_past(violations, expire_time, now, "expire_time")
        if violations or role is None:
            raise violations.error()
        api_key_id = self._id(ids.API_KEY)
        return ApiKey(
            api_key_id=api_key_id,
            visible_prefix=visible_prefix(api_key_id),
            role=role,
            organization_id=request.organization_id or None,
            customer_id=request.customer_id or None,
            member_id=request.member_id or None,
            agent_ids=tuple(sorted(set(request.agent_ids))),
            customer_ids=tuple(sorted(set(request.customer_ids))),
            description=request.description,
            create_time=now,
            expire_time=expire_time,
        )

    async def ListApiKeys(self, request: pb.ListApiKeysRequest, context: Context) -> pb.ListApiKeysResponse:
        violations = Violations()
        rules.check_optional_id(violations, request.organization_id, ids.ORGANIZATION, "organization_id")
        page = page_of(request, violations, organization_id=request.organization_id)
        async with self._read() as connection:
            if request.organization_id:
                await organizations.get_organization(connection, request.organization_id)
            found = await api_keys.list_keys(
                connection,
                organization_id=request.organization_id or current_principal().organization_id,
                after=after(page),
                limit=page.limit,
            )
        shown, next_page_token = page.cut(found, lambda one: (one.api_key_id,))
        return pb.ListApiKeysResponse(
            api_keys=map(convert.api_key_to_proto, shown), next_page_token=next_page_token
        )

    async def RevokeApiKey(
        self, request: pb.RevokeApiKeyRequest, context: Context
    ) -> pb.RevokeApiKeyResponse:
        ids.check_id(request.api_key_id, ids.API_KEY, field="api_key_id")
        now = self._clock.now()
        key = await self._write(lambda connection: api_keys.revoke_key(connection, request.api_key_id, now))
        return pb.RevokeApiKeyResponse(api_key=convert.api_key_to_proto(key))

    async def GetCurrentApiKey(
        self, request: pb.GetCurrentApiKeyRequest, context: Context
    ) -> pb.GetCurrentApiKeyResponse:
        async with self._read() as connection:
            key = await api_keys.get_key(connection, current_principal().api_key_id)
        return pb.GetCurrentApiKeyResponse(api_key=convert.api_key_to_proto(key))

    async def ResolveApiKey(
        self, request: pb.ResolveApiKeyRequest, context: Context
    ) -> pb.ResolveApiKeyResponse:
        if len(request.key_hash) != rules.KEY_HASH_BYTES:
            raise InvalidArgument.of("key_hash", f"must be the {rules.KEY_HASH_BYTES} bytes of a SHA-256")
        async with self._read() as connection:
            key = await api_keys.find_valid_key(connection, request.key_hash)
        return pb.ResolveApiKeyResponse(api_key=None if key is None else convert.api_key_to_proto(key))
