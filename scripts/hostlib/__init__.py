"""Hosts for tests and for scripts/chaos.py, made of Linux namespaces on one machine."""
