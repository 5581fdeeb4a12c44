"""A call that was decided long ago is judged once more when its turn has come."""

from typing import Any

import pytest

from services.payouts.processor.api import StripeApi
from services.payouts.processor.errors import InDoubt
from services.payouts.processor.pace import Pace


@pytest.mark.parametrize("may_begin", [True, False])
async def test_a_call_whose_key_grew_old_while_it_waited_is_not_made(may_begin: bool) -> None:
    calls = []

    async def method(*_: Any, **__: Any) -> str:
        calls.append("called")
        return "made"

    api = StripeApi("sk_test_1", base_url=None, pace=Pace(1000))
    call = api.call("payment_intents.create", method, key="key", may_begin=lambda: may_begin)
    if may_begin:
        assert await call == "made"
    else:
        with pytest.raises(InDoubt):
            await call
    assert len(calls) == may_begin
    await api.close()
