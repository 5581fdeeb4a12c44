"""The servers of Tallystick: an application, run as `python -m services.<name>`, never installed."""
