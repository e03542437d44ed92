"""Faults for a supervised cluster under load, and whether a request suffered by them: scripts/chaos.py."""
