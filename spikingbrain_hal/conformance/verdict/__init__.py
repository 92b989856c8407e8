"""Verdicts: the oracle, the rules of acceptance, records of cases and the levels they add up to."""
