"""Payouts: everything that touches Stripe. Connected accounts, payouts, webhooks, purchases of credits."""
