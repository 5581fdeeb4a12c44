"""The ledger: accounts and the append-only journal, and the directory of who takes part."""
