"""Everything that speaks protobuf: the services that metering answers, and the ledger that it asks.

Transactions are opened here, one per RPC or per gathered batch of them. The SQL is in `store`.
"""
