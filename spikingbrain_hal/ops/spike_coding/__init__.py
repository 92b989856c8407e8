"""Spike coding: activations to integer counts, counts to spike trains, and back."""
