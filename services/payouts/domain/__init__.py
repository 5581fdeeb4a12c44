"""The rules of payouts: what may be asked for, what follows from an answer, and when. Pure Python."""
