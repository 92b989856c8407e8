"""Declarations: what an operator is, apart from any kernel: arguments, axes, dtypes, rules and inputs to try."""
