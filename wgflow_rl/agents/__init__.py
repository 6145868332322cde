"""One file per algorithm, on the base class of `agent`; `presets` names them and holds their settings.

An agent knows networks, batches and noise; it knows no buffer, environment or training loop. `fields` reads the
fields of DFP from the command line.
"""
