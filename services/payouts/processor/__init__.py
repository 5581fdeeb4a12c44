"""Stripe, as payouts uses it: one class per subject, over one client that paces calls and sorts errors."""
