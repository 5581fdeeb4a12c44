"""The gRPC services of the ledger: transactions are opened here, requests checked, answers put into words."""
