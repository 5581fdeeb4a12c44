"""Metering: usage events, price books, rating, and the charges that follow."""
