"""`python -m services.payouts reconcile`: compare Stripe's books with the ledger, and say what differs."""

import sys

from services.kit.client import connect
from services.kit.clock import SystemClock
from services.kit.errors import TallystickError
from services.payouts.app import open_stripe
from services.payouts.config import StripeConfig
from services.payouts.domain.reconciliation import Comparison, Difference, money
from services.payouts.processor.balance import Balance
from services.payouts.processor.errors import ProcessorError
from services.payouts.reconciler import Reconciler
from services.payouts.rpc.ledger import Ledger


async def reconcile(config: StripeConfig) -> int:
    """Compare everything until a minute ago, print a line each, and answer the exit status.

    0 if nothing differs, 1 if something does, 2 if one of the two could not be read.
    """
    api = open_stripe(config)
    try:
        async with connect(
            config.ledger_address, config.ledger_api_key, tls_ca=config.ledger_tls_ca_file
        ) as channel:
            reconciler = Reconciler(ledger=Ledger(channel), balance=Balance(api), clock=SystemClock())
            found = await reconciler.compare(None, None)
    except (ProcessorError, TallystickError) as error:
        sys.stderr.write(f"error: {error.message}\n")
        return 2
    finally:
        await api.close()
    sys.stdout.writelines(f"{line}\n" for line in _lines(found))
    return 1 if found.differences else 0


def _lines(found: Comparison) -> list[str]:
    lines = [
        f"{currency}: Stripe {total.processor(currency)}, ledger {total.ledger(currency)},"
        f" movements that agree {total.matched:,}"
        for currency, total in sorted(found.totals.items())
    ]
    for one in sorted(found.differences, key=lambda one: one.time):
        lines += _difference(one)
    count = len(found.differences)
    return [*lines, f"differences: {count:,}" if count else "nothing differs"]


def _difference(one: Difference) -> list[str]:
    currency = one.currency_code
    names = [
        name
        for name in (
            one.processor and one.processor.stripe_id,
            one.processor and one.processor.balance_transaction_id,
            one.ledger and one.ledger.transaction_id,
        )
        if name
    ]
    amounts = f"Stripe {money(one.processor, currency)}, ledger {money(one.ledger, currency)}"
    what = f"{one.time:%Y-%m-%d %H:%M:%S} {one.kind}: {amounts} ({', '.join(names)})"
    return [what, f"    {one.explanation}"]
