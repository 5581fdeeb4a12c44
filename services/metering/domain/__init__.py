"""The rules of metering: prices, rating, and what a usage event must look like. Pure Python."""
