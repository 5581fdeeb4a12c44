"""What payouts serves over HTTP, to browsers and to Stripe."""
