"""The rules of the ledger: who takes part, what a charge is, what accounts mean. Pure Python."""
