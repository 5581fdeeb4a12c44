"""Everything that speaks protobuf: the services that payouts answers, and the ledger that it asks.

Transactions are opened here, one per step of a call, and never across a call to another system. The SQL is in
`store`.
"""
