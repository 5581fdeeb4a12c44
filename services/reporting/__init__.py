"""Reporting: what was earned, used and moved, from read models that follow the feeds of other services."""
