"""Measures the suite against its floors: `python -m bench`. See docs/performance.md."""
