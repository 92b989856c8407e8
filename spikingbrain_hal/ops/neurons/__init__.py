"""Spiking neurons over time."""
