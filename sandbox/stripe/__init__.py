"""A stand-in for Stripe's HTTP API on loopback: objects, money, webhooks and failures on demand."""
