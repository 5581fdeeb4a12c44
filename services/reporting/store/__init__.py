"""All SQL of reporting. Functions take a connection and never commit."""
