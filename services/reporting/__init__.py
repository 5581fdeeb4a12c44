"""Reporting: read models that follow the feeds of the other services, and the web pages."""
