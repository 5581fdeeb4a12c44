"""All SQL of the ledger. Functions take a connection in a transaction of the caller, and never commit."""
