"""The rules of reporting: which time a report is about, what models cost, what a file says. Pure Python."""
