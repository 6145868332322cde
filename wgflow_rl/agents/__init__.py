"""One file per algorithm, on the base class of `agent`; `methods` names them and holds their settings.

An agent knows networks, batches and noise; it knows no buffer, environment or training loop.
"""
