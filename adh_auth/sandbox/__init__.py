"""The rooms behind `adh_auth.testing`: a local ADH. Import the public names from there.

settings.py   what a test may set, also while the server runs
ledger.py     sessions, tokens and codes: what the server knows. One lock, no I/O
faults.py     what goes wrong on demand, and calls that stand still
routes.py     the endpoints: a request in, a reply out
wire.py       sockets and HTTP/1.1; knows nothing of ADH
"""
