"""What payouts serves over HTTP: webhooks of the payment processor, and pages for browsers."""
