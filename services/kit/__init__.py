"""What every server shares: bootstrap, interceptors, authentication, errors, database, money, ids."""
