"""Oblivious arrays, each after its paper."""
