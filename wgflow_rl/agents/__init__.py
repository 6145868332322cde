"""One file per algorithm. An agent knows networks, batches and noise; it knows no buffer, environment or loop.

What each of them offers is `protocol.Agent`; `methods` names them and holds their numbers.
"""
