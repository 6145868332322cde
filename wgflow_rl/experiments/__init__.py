"""Many runs: the tables of the paper as data, planning, running, reading and comparing."""
