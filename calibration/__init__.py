"""Calibration of the conformance suite: planted bugs it must reject, correct variants it must accept."""
