"""All SQL of metering. Functions take a connection whose transaction the caller opened, and never commit."""
