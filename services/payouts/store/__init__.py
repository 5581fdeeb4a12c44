"""All SQL of payouts. Functions take a connection whose transaction the caller opened, and never commit."""
