"""What several tests share: servers in the test's own process, and oracles."""
