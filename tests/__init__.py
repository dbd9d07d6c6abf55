"""Tests of adh-auth, with real sockets, processes and files."""
